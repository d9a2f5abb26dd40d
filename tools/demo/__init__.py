"""How the embedded checkpoint was made, from its sentences to its weights; nothing here is installed."""
