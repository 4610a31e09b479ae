"""Queries and documents to scores."""
