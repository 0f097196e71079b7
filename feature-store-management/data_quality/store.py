"""What checks found, kept in PostgreSQL in the schema `quality`: verdicts, results, days that passed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from data_source_connectors.database_connector import Connection

from .engine import Result
from .suites import Level, Schemas, Suite, Window

TABLES = """
create table if not exists check_runs (
    run_id bigint generated always as identity primary key,
    level text not null,
    started_at timestamptz not null,
    seconds double precision not null,
    first_day date,
    last_day date,
    status text not null check (status in ('passed', 'failed')),
    reason text,
    critical_failures integer not null,
    warnings integer not null
);
create index if not exists check_runs_level on check_runs (level, run_id);
create table if not exists check_results (
    run_id bigint not null references check_runs (run_id) on delete cascade,
    suite text not null,
    expectation text not null,
    severity text not null,
    owner text not null,
    status text not null check (status in ('passed', 'failed', 'crashed')),
    observed text not null,
    broken_rows bigint,
    checked_rows bigint,
    sample jsonb not null,
    primary key (run_id, suite, expectation)
);
-- For each suite and UTC day: which rows last passed.
create table if not exists passed_days (
    suite text not null,
    day date not null,
    fingerprint text not null,
    primary key (suite, day)
);
"""

Fingerprints = dict[date, str]
HISTORY = ("run_id", "started_at", "status", "critical_failures", "warnings", "not_passed")


@dataclass(frozen=True)
class Run:
    """One check of one level: its verdict, what it looked at and what it found."""

    level: Level
    started_at: datetime
    seconds: float
    window: Window | None
    results: Sequence[Result]
    reason: str | None = None

    @property
    def critical_failures(self) -> int:
        """How many critical expectations failed or crashed; a check that did not run counts as one."""
        return sum(result.is_critical_failure for result in self.results) + (self.reason is not None)

    @property
    def warnings(self) -> int:
        """How many expectations failed that do not stop publication."""
        failed = [result for result in self.results if result.status != "passed"]
        return sum(not result.is_critical_failure for result in failed)

    @property
    def status(self) -> str:
        """`failed` where publication must stop."""
        return "failed" if self.critical_failures else "passed"


def create_tables(connection: Connection, schemas: Schemas) -> None:
    """Create what is missing of the schema `quality`, and put it first in the search path."""
    schema = schemas.name("quality")
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (schema,))
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
        connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(schema)))
        connection.execute(TABLES)


def fingerprints(connection: Connection, suite: Suite, schemas: Schemas) -> Fingerprints:
    """Return a fingerprint of each UTC day: number of rows, a hash over them, and the suite's definition."""
    if suite.day is None:
        return {}
    column = sql.Identifier(suite.day.column)
    day = sql.SQL("({} at time zone 'UTC')::date").format(column) if suite.day.kind == "timestamp" else column
    rows = connection.execute(
        sql.SQL(
            "select {day}, count(*) || ':' || bit_xor(hash_record_extended(t, 0)) from {table} as t"
            " where {column} is not null group by 1"
        ).format(day=day, column=column, table=sql.Identifier(*schemas.table(suite.table).split(".")))
    )
    return {day: f"{text}:{suite.definition}" for day, text in rows}


def changed_days(connection: Connection, suite: Suite, now: Mapping[date, str]) -> set[date]:
    """Return the days that did not pass as they are now: rows new, changed or gone, or another suite."""
    rows = connection.execute("select day, fingerprint from passed_days where suite = %s", (suite.name,))
    passed: dict[date, str] = dict(rows.fetchall())
    return {day for day in now.keys() | passed.keys() if now.get(day) != passed.get(day)}


def unresolved_windows(connection: Connection, level: Level) -> list[Window]:
    """Return the windows of failed runs that no later passed run of the level covers."""
    rows = connection.execute(
        "select distinct failed.first_day, failed.last_day from check_runs as failed"
        " where failed.level = %s and failed.status = 'failed' and failed.first_day is not null"
        " and not exists (select 1 from check_runs as later where later.level = failed.level"
        "  and later.run_id > failed.run_id and later.status = 'passed'"
        "  and later.first_day <= failed.first_day and later.last_day >= failed.last_day)",
        (level,),
    )
    return [Window(first, last) for first, last in rows]


def record(connection: Connection, run: Run, passed: Mapping[str, Fingerprints]) -> int:
    """Write a run, its results and the days that passed (by suite, as they are now), all or nothing."""
    first, last = (run.window.first, run.window.last) if run.window else (None, None)
    with connection.transaction():
        row = connection.execute(
            "insert into check_runs (level, started_at, seconds, first_day, last_day, status, reason,"
            " critical_failures, warnings) values (%s, %s, %s, %s, %s, %s, %s, %s, %s) returning run_id",
            (run.level, run.started_at, run.seconds, first, last, run.status, run.reason,
             run.critical_failures, run.warnings),
        ).fetchone()  # fmt: skip
        assert row is not None
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into check_results (run_id, suite, expectation, severity, owner, status, observed,"
                " broken_rows, checked_rows, sample) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    (row[0], r.suite.name, r.expectation.name, r.expectation.severity, r.suite.owner,
                     r.status, r.observed, r.broken, r.rows, Jsonb(as_json(r.sample)))
                    for r in run.results
                ],
            )  # fmt: skip
            for suite, days in passed.items():
                cursor.execute(
                    "delete from passed_days where suite = %s and day between %s and %s", (suite, first, last)
                )
                cursor.executemany(
                    "insert into passed_days (suite, day, fingerprint) values (%s, %s, %s)",
                    [(suite, day, fingerprint) for day, fingerprint in days.items()],
                )
    return int(row[0])


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: dates and numbers of other kinds as text."""
    return json.loads(json.dumps(value, default=str).replace("NaN", "null").replace("Infinity", "null"))


def history(connection: Connection, level: Level, runs: int) -> list[dict[str, Any]]:
    """Return the newest runs of a level, oldest first, each with the status of its expectations."""
    rows = connection.execute(
        "select run_id, started_at, status, critical_failures, warnings,"
        " coalesce((select jsonb_object_agg(suite || '.' || expectation, r.status) from check_results as r"
        "  where r.run_id = c.run_id and r.status <> 'passed'), '{}')"
        " from check_runs as c where level = %s order by run_id desc limit %s",
        (level, runs),
    ).fetchall()
    return [dict(zip(HISTORY, row, strict=True)) for row in reversed(rows)]


def newest_results(connection: Connection) -> list[dict[str, Any]]:
    """Return the results of the newest run of every level, with the run's time and length."""
    rows = connection.execute(
        "select c.level, c.started_at, c.seconds, c.status as run_status, r.suite, r.expectation, r.severity,"
        " r.status, r.broken_rows from check_runs as c left join check_results as r using (run_id)"
        " where c.run_id in (select max(run_id) from check_runs group by level) order by 1, 5, 6"
    ).fetchall()
    names = ("level", "started_at", "seconds", "run_status", "suite", "expectation", "severity", "status")
    return [dict(zip((*names, "broken_rows"), row, strict=True)) for row in rows]
