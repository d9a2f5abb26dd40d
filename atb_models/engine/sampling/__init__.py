"""From logits to the next token: what shapes logits, how a token is drawn, and log-probabilities."""
