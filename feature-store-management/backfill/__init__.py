"""Rebuild any range of days of the feature tables, and let one builder write them at a time."""
