"""compressed-tensors, as llm-compressor writes it."""
