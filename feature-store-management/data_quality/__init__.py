"""Quality of raw, staged and feature rows: suites as data, and a verdict that publication asks for."""
