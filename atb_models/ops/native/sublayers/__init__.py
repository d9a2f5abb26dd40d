"""The sublayers of a decoder layer by the library, each as one call."""
