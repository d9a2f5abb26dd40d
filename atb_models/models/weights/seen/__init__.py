"""Sources of weights that show those of another source in another way."""
