"""The words and flags of a command, and what they must agree with."""
