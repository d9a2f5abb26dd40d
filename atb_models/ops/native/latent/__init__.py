"""Latent attention by the library."""
