"""Layers: they hold weights, say how each is sharded, and call operations."""
