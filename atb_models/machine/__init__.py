"""What this host has and how it is set up: devices, cores, memory, determinism. Knows nothing of models or ranks."""
