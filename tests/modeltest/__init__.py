"""Accuracy and speed of a model on a machine, with the commands of MindIE's modeltest; see README.md."""
