"""One short file of differences for each model family; the registry is models/family.py."""
