"""Builders of the seeded checkpoints, tokenizers, adapters and pictures that the tests load."""
