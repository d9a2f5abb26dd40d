"""Models: config.json to ModelConfig, the shared decoder, one short file of differences per family, the loader."""
