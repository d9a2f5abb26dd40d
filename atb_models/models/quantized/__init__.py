"""The formats in which quantised checkpoints come, each read to one internal form."""
