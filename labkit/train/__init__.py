"""Text to train on, with its domains known, and the training loop."""
