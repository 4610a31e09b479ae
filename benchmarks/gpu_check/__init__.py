"""What a GPU gives: right vectors, what happens when its memory is full, and speed. Run as `python -m`."""
