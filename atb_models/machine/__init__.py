"""The devices, cores and memory of this host, and its setting for determinism. Knows nothing of models or ranks."""
