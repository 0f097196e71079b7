"""The embedded stack: real servers from PyPI wheels as processes on loopback, all state in one folder."""
