"""Wait until the feature store's database answers and has the tables of the arguments; exit 1 after five minutes.

The database belongs to another stack, so Compose can't order the two.
"""

from __future__ import annotations

import sys
import time

from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError, connect
from data_source_connectors.settings import read_settings

LONGEST_SECONDS = 300


def missing(tables: list[str]) -> list[str]:
    """Return what is not there yet: the database itself, or tables."""
    try:
        with connect(read_settings(DatabaseSettings), application_name="wait_for_database") as connection:
            rows = {name: connection.execute("select to_regclass(%s)", (name,)).fetchone() for name in tables}
    except DatabaseUnavailableError as error:
        return [str(error)]
    return [name for name, row in rows.items() if row is None or row[0] is None]


def main(tables: list[str]) -> int:
    """Ask once a second."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while (waiting := missing(tables)) and time.monotonic() < deadline:
        time.sleep(1)
    print(f"missing: {', '.join(waiting)}" if waiting else "there", flush=True)
    return 1 if waiting else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
