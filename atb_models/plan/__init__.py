"""What a model needs and how fast it can be, computed from its configuration alone."""
