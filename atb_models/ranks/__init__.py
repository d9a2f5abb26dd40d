"""Several processes as one machine: groups, transports, lives that end together. Knows nothing of models."""
