"""What every room speaks. Imports nothing above it; only what reads a `Routing` or a mask needs torch."""
