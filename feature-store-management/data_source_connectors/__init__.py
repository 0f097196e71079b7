"""Connections to the systems that hold the data."""
