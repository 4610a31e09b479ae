"""Ways of executing a model, one file each."""
