"""Small tokenizers in forms that transformers 4.36 cannot read, and what a newer one makes of them."""
