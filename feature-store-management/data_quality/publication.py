"""Whether the feature tables may be published: `python -m data_quality.publication`.

The verdict of the feature-level checks. `require_publishable(connection)`, or this command, belongs before
anything that makes features visible to others; it loads nothing but psycopg, so that asking costs a query.

Exit 0: nothing forbids it, also where nothing was ever checked. Exit 1: a check failed and no later one that
passed covers its days, or the database is away. Exit 2: wrong settings.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql

from data_source_connectors.settings import SettingsError, read_settings
from schema_registry.database import DatabaseSettings, connect


class NotPublishableError(Exception):
    """Features failed a critical expectation; the message names the check, its days and the expectations."""


@dataclass(frozen=True)
class Obstacle:
    """A failed check of the feature tables that nothing has made good since."""

    run_id: int
    started_at: datetime
    first_day: date | None
    last_day: date | None
    reason: str | None
    failed: tuple[str, ...]

    def __str__(self) -> str:
        days = f"{self.first_day} to {self.last_day}" if self.first_day else "all days"
        what = self.reason or ", ".join(self.failed)
        return f"check {self.run_id} of {self.started_at:%Y-%m-%d %H:%M} UTC, {days}: {what}"


def quality_schema() -> str:
    """Return the name of the schema of verdicts, with the prefix of a rehearsal where there is one."""
    return f"{os.environ.get('FEATURE_STORE_SCHEMA_PREFIX', '')}quality"


def obstacles(connection: psycopg.Connection[Any], schema: str | None = None) -> list[Obstacle]:
    """Return the failed feature-level checks that no later passed one covers; none where none was made."""
    schema = schema or quality_schema()
    with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        cursor.execute("select to_regclass(%s)", (f"{schema}.check_runs",))
        [found] = cursor.fetchone() or [None]
        if found is None:
            return []
        cursor.execute(
            sql.SQL(
                "select f.run_id, f.started_at at time zone 'UTC', f.first_day, f.last_day, f.reason,"
                " array(select r.suite || '.' || r.expectation from {results} as r where r.run_id = f.run_id"
                "  and r.severity = 'critical' and r.status <> 'passed' order by 1)"
                " from {runs} as f where f.level = 'features' and f.status = 'failed'"
                " and not exists (select 1 from {runs} as later where later.level = f.level"
                "  and later.run_id > f.run_id and later.status = 'passed' and (f.first_day is null"
                "   or (later.first_day <= f.first_day and later.last_day >= f.last_day)))"
                " order by f.run_id"
            ).format(
                runs=sql.Identifier(schema, "check_runs"), results=sql.Identifier(schema, "check_results")
            )
        )
        return [
            Obstacle(run_id, started_at, first_day, last_day, reason, tuple(failed))
            for run_id, started_at, first_day, last_day, reason, failed in cursor.fetchall()
        ]


def require_publishable(connection: psycopg.Connection[Any], schema: str | None = None) -> None:
    """Raise NotPublishableError while the feature tables' newest verdict is a critical failure."""
    found = obstacles(connection, schema)
    if found:
        raise NotPublishableError(
            f"the feature tables are not published: {found[-1]}; repair them and run"
            " `python -m data_quality.check --level features`"
        )


def main() -> int:
    """Run the command and return its exit code."""
    try:
        database = read_settings(DatabaseSettings)
    except SettingsError as error:
        print(f"data_quality: {error}", file=sys.stderr)
        return 2
    try:
        with connect(database, application_name="data_quality") as connection:
            require_publishable(connection)
    except (NotPublishableError, psycopg.Error) as error:
        print(f"data_quality: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
