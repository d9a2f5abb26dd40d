"""Chat templates: where they stand, what they read, and the sandbox that they run in."""
