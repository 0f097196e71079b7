"""Notebooks that look at the data, and what they share."""
