"""Encoders without padding."""
