"""Weights in memory, once per process."""
