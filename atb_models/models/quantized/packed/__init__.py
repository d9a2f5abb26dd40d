"""Weights that are packed in tensors of other shapes and types, unpacked one by one while they are read."""
