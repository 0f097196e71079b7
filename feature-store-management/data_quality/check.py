"""Check a level of the feature store: `python -m data_quality.check --level raw|staging|features [--date D]`.

Without dates it looks at the UTC days whose rows are not those that last passed, and at least at the newest
one; `--date D` or `--from D --to D` name days. `--level` may be given several times. Every run leaves a page,
JSON and metrics under `REPORTS_DIR/quality/` and its verdict in the tables of the schema `quality`.

Exit 0: nothing critical failed (warnings never stop anything). Exit 1: a critical expectation failed, the
check could not be made, or the database is away; publication stops. Exit 2: wrong options or settings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from tqdm import tqdm

from data_source_connectors.database_connector import (
    Connection,
    DatabaseSettings,
    DatabaseUnavailableError,
    connect,
)
from data_source_connectors.settings import SettingsError, read_settings

from . import engine, report, store
from .suites import LEVELS, Level, Schemas, Suite, SuiteError, Window, read_suites

BAD_USAGE = 2
SHOWN_RUNS = 30
PROGRESS_AFTER_SECONDS = 3


class QualitySettings(BaseSettings):
    """Where reports go (`REPORTS_DIR`) and, for rehearsals, other names of the schemas."""

    model_config = SettingsConfigDict(frozen=True)

    reports_dir: Path
    feature_store_schema_prefix: str = Field(default="", pattern="^([a-z][a-z0-9_]{0,40})?$")
    feature_store_raw_schema: str | None = Field(default=None, pattern="^[a-z][a-z0-9_]{0,62}$")

    @property
    def schemas(self) -> Schemas:
        """The names of the schemas."""
        prefix = self.feature_store_schema_prefix
        return Schemas(prefix, self.feature_store_raw_schema or f"{prefix}raw")


@dataclass(frozen=True)
class Bench:
    """What every check works with: the verdicts' connection, Great Expectations, names and folders."""

    connection: Connection
    checker: engine.Checker
    settings: QualitySettings


def window_to_check(
    asked: Window | None, newest: set[date], changed: set[date], unresolved: Sequence[Window]
) -> Window | None:
    """Return the days to check: those asked for, else from the first to the last not known to be good.

    With nothing changed the newest day of each table is looked at again, as time alone can make it wrong.
    None: the tables hold no day at all.
    """
    if asked is not None:
        return asked
    days = changed | {day for window in unresolved for day in (window.first, window.last)} or newest
    return Window(min(days), max(days)) if days else None


def check_level(
    level: Level, suites: Sequence[Suite], bench: Bench, asked: Window | None
) -> tuple[store.Run, dict[str, store.Fingerprints]]:
    """Run the suites of a level and record the verdict; return the run and the rows of each suite by day."""
    connection, schemas = bench.connection, bench.settings.schemas
    started, began = datetime.now(UTC), time.monotonic()
    now = {suite.name: _fingerprints(connection, suite, schemas) for suite in suites}
    changed: set[date] = set()
    for suite in suites:
        changed |= store.changed_days(connection, suite, now[suite.name])
    newest = {max(days) for days in now.values() if days}
    window = window_to_check(asked, newest, changed, store.unresolved_windows(connection, level))
    results: list[engine.Result] = []
    for suite in tqdm(suites, unit="suite", desc=level, delay=PROGRESS_AFTER_SECONDS, disable=None):
        results += bench.checker.run(suite, schemas, window)
    run = store.Run(level, started, time.monotonic() - began, window, results)
    refused = {result.suite.name for result in results if result.is_critical_failure}
    passed = {
        suite.name: {day: text for day, text in now[suite.name].items() if window.first <= day <= window.last}
        for suite in suites
        if suite.day and window and suite.name not in refused
    }
    store.record(connection, run, passed)
    return run, now


def _fingerprints(connection: Connection, suite: Suite, schemas: Schemas) -> store.Fingerprints:
    try:
        return store.fingerprints(connection, suite, schemas)
    except psycopg.errors.ProgrammingError:
        return {}  # a table or column that is not there: running the suite says so, and counts


def check_and_report(level: Level, bench: Bench, asked: Window | None) -> int:
    """Check a level, write its reports, say what failed; return how many critical failures there are."""
    started, began = datetime.now(UTC), time.monotonic()
    volumes: dict[str, store.Fingerprints] = {}
    try:
        run, volumes = check_level(level, read_suites(level), bench, asked)
    except psycopg.Error as error:
        # What kept the check from being made is the verdict.
        reason = " ".join(str(error).split())[: engine.REASON_LENGTH]
        run = store.Run(level, started, time.monotonic() - began, asked, [], reason)
        store.record(bench.connection, run, {})
    folder = bench.settings.reports_dir / "quality"
    page = report.write(folder, run, store.history(bench.connection, level, SHOWN_RUNS), volumes)
    report.write_metrics(folder / "metrics.prom", store.newest_results(bench.connection))
    for line in report.lines(run):
        print(line, flush=True)
    print(f"report: {page}", flush=True)
    return run.critical_failures


def parse_arguments(argv: Sequence[str] | None) -> tuple[list[Level], Window | None]:
    """Return the levels and the days asked for; leaves with exit 2 where the options are wrong."""
    parser = argparse.ArgumentParser(prog="python -m data_quality.check", description=__doc__)
    parser.add_argument("--level", action="append", choices=LEVELS, required=True, help="may be repeated")
    parser.add_argument("--date", type=_day, metavar="D", help="only this UTC day")
    parser.add_argument("--from", dest="first", type=_day, metavar="D", help="first UTC day")
    parser.add_argument("--to", dest="last", type=_day, metavar="D", help="last UTC day")
    options = parser.parse_args(argv)
    if options.date and (options.first or options.last):
        parser.error("--date or --from and --to, not both")
    if bool(options.first) != bool(options.last):
        parser.error("--from and --to go together")
    first, last = options.date or options.first, options.date or options.last
    if first and first > last:
        parser.error(f"--from {first} is after --to {last}")
    return list(dict.fromkeys(options.level)), Window(first, last) if first else None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: write YYYY-MM-DD") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    levels, asked = parse_arguments(argv)
    try:
        database, settings = read_settings(DatabaseSettings), read_settings(QualitySettings)
        read_suites()
    except (SettingsError, SuiteError) as error:
        print(f"data_quality: {error}", file=sys.stderr)
        return BAD_USAGE
    failures = 0
    try:
        with (
            connect(database, application_name="data_quality") as connection,
            engine.opened(database) as checker,
        ):
            store.create_tables(connection, settings.schemas)
            for level in levels:
                failures += check_and_report(level, Bench(connection, checker, settings), asked)
    except (DatabaseUnavailableError, psycopg.Error, OSError) as error:
        print(f"data_quality: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
