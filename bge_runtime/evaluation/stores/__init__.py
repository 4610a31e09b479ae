"""Vector stores as they lie on disk: recognised by their files, listed, and written anew with other vectors."""
