"""Backup, restore and drill: PostgreSQL, Redis, object store, Jenkins home, spools and secrets.

What runs inside the image `mlops/backup` (`agent` and all it imports) needs the standard library alone.
"""

from __future__ import annotations

import importlib


def main(arguments: list[str]) -> int:
    """Run the verb `backup`, `restore` or `drill`."""
    # Imported here: the containers need none of it.
    return int(importlib.import_module("server_tools.backup.command_line").main(arguments))
