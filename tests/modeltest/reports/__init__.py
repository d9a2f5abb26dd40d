"""Results as tables, plots, a page, and the comparison of two runs."""
