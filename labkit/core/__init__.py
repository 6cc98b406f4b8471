"""What every room speaks. Imports nothing above it; only `routing` and `metrics` need torch."""
