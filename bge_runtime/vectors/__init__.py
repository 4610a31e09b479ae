"""What is done with vectors: remembered, quantised, compared."""
