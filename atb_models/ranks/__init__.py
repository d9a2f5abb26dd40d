"""Processes that work as one: groups of ranks, their transports and their common end. Knows nothing of models."""
