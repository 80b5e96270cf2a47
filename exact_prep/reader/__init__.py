"""Rows of a packed dataset for whoever trains on them: NumPy only, no framework."""
