"""Backup, restore and drill: PostgreSQL, Redis, object store, Jenkins home, spools and secrets.

What runs inside the image `mlops/backup` (`agent` and all it imports) needs the standard library alone.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Run the verb `backup`, `restore` or `drill`."""
    from server_tools.backup import command_line  # noqa: PLC0415 - the image has no Docker and no drill

    return command_line.main(arguments)
