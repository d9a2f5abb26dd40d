"""What a model needs and how fast it can be, worked out from its configuration alone."""
