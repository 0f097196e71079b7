"""Schemas of the data that crosses a boundary of this root."""
