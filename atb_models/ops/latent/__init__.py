"""Multi-head latent attention: the cache of latents, and attention over it (DeepSeek-V2, section 2.1)."""
