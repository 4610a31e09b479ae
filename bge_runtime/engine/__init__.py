"""Calls become batches."""
