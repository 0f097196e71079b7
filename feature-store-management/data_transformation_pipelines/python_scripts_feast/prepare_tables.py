"""Give a new database its raw tables and, built by dbt over no rows, its feature tables.

The stream processor writes into them and Feast describes them before the first day has landed. A database
that has them is left alone: what changes in the models `scripts/run_dbt_for_feast.sh` builds. Safe to rerun.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from data_source_connectors.database_connector import DatabaseSettings, connect
from data_source_connectors.settings import read_settings

from .raw_tables import RawSettings, open_raw_tables

LAST_BUILT = "features.fct_terminal_today"
BUILD = Path(__file__).resolve().parents[2] / "scripts" / "run_dbt_for_feast.sh"


def main() -> int:
    """Create what is missing; return dbt's exit code."""
    database = read_settings(DatabaseSettings)
    with open_raw_tables(database, read_settings(RawSettings), application_name="prepare_tables"):
        print("raw tables: ready", flush=True)
    with connect(database, application_name="prepare_tables") as connection:
        row = connection.execute("select to_regclass(%s)", (LAST_BUILT,)).fetchone()
    if row is not None and row[0] is not None:
        print("feature tables: there", flush=True)
        return 0
    return subprocess.run([str(BUILD)], check=False).returncode  # noqa: S603 - a script of this root


if __name__ == "__main__":
    sys.exit(main())
