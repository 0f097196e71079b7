"""Run dbt with the lock of the tables it builds: `python -m backfill.run_dbt build ...`, as dbt's own
command.

dbt runs in this very process, so whatever ends it frees the lock too. Where a definition changed since the
tables were built, all of them are rebuilt. Exit code: dbt's own (0 done, 1 a
model or a test failed, 2 dbt could not run); 1 where another build holds the lock.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError
from data_source_connectors.settings import SettingsError, read_settings

from .build_lock import BuildRunningError, BuildSettings, build_lock
from .built_definition import changed, definitions, remember


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    try:
        database, build = read_settings(DatabaseSettings), read_settings(BuildSettings)
        with build_lock(database, build, builder="run_dbt_for_feast.sh") as connection:
            from dbt.cli.main import dbtRunner  # noqa: PLC0415 (seconds of imports, for those who may build)

            named = "--project-dir" in arguments
            now = definitions(Path(arguments[arguments.index("--project-dir") + 1]) if named else Path())
            if names := changed(connection, build.schema_prefix, now):
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                print(f"everything is rebuilt, for definitions changed: {shown}", flush=True)
                arguments = [*arguments, "--full-refresh"]
            result = dbtRunner().invoke(arguments)
            if result.success:
                remember(connection, build.schema_prefix, now)
    except SettingsError as error:
        print(f"run_dbt: {error}", file=sys.stderr)
        return 2
    except (BuildRunningError, DatabaseUnavailableError) as error:
        print(f"run_dbt: {error}", file=sys.stderr)
        return 1
    if result.exception is not None:
        print(f"run_dbt: {result.exception}", file=sys.stderr)
        return 2
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
