"""Checkpoint files, the table of their tensors, and the loader that fills a model's parameters from them."""
