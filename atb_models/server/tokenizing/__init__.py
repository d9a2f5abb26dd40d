"""Tokenizing beside the event loop: long texts never hold up short ones, and end with the client that sent them."""
