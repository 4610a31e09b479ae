"""What callers hand in, made ready for a forward pass."""
