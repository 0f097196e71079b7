"""Build the daily windows with Spark: the tables that dbt builds, for data beyond one database.

`python -m data_transformation_pipelines.spark_jobs_feast.build_daily_windows --source postgresql --out DIR`

| option | meaning |
|---|---|
| `--source` | `postgresql` (the raw tables), or a landing folder: a path, or an address (`s3a://...`) |
| `--out` | a folder for Parquet, path or address, or `postgresql:SCHEMA` |
| `--from-date`, `--to-date` | only the rows of these days (`event_timestamp`); default: all |
| `--check-against-tables [SCHEMA]` | compare with the tables in PostgreSQL (`features`), bit by bit |

The schemas' names get `FEATURE_STORE_SCHEMA_PREFIX` in front. Rerunning days replaces exactly their rows.
The report is `REPORTS_DIR/build_daily_windows.json`.

Exit 0: built, and equal where a comparison was asked for; 1: they differ, or source, database or Spark
failed; 2: bad options or settings.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

import psycopg
from py4j.protocol import Py4JError
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import (
    BAD_USAGE,
    OneLineParser,
    ReportSettings,
    iso_date,
    write_report,
)
from data_transformation_pipelines.python_scripts_feast.label_maturity import (
    LabelMaturityError,
    read_label_maturity,
)

from .command_errors import one_line
from .daily_windows import RawFrames, Span, customer_daily, first_raw_day, terminal_daily
from .feature_tables import (
    CUSTOMER_DAILY,
    POSTGRESQL,
    TERMINAL_DAILY,
    Comparison,
    FeatureTable,
    Schema,
    TableError,
    compare,
    read_table,
    write_parquet,
    write_postgresql,
)
from .raw_sources import LandingSource, PostgresqlSource, RawSource, SourceError, date_of, day_number
from .spark_session import SparkSettings, spark_session

COMMAND = "build_daily_windows"
SCHEMA_NAME = re.compile("[a-z][a-z0-9_]{0,50}")


class SchemaSettings(BaseSettings):
    """What goes before every schema's name, and the raw schema's where the loaders use another."""

    model_config = SettingsConfigDict(env_prefix="FEATURE_STORE_", frozen=True)

    schema_prefix: str = Field(default="", pattern="^[a-z0-9_]{0,30}$")
    raw_schema: str | None = Field(default=None, pattern="^[a-z][a-z0-9_]{0,62}$")


@dataclass(frozen=True)
class JobSettings:
    """The job's settings; `database` is None where nothing needs it."""

    spark: SparkSettings
    schemas: SchemaSettings
    database: DatabaseSettings | None
    reports: ReportSettings
    label_delay_days: int

    @classmethod
    def read(cls, *, with_database: bool) -> JobSettings:
        """Return the settings; raises SettingsError or LabelMaturityError."""
        return cls(
            read_settings(SparkSettings),
            read_settings(SchemaSettings),
            read_settings(DatabaseSettings) if with_database else None,
            read_settings(ReportSettings),
            read_label_maturity("fraud").delay_days,
        )

    def schema(self, name: str) -> str:
        """Return the full name of a schema."""
        return self.schemas.schema_prefix + name

    def place(self, name: str) -> Schema:
        """Return a schema of the database."""
        assert self.database is not None
        return Schema(self.database, self.schema(name))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Build the daily windows with Spark.")
    parser.add_argument(
        "--source", required=True, metavar="postgresql|FOLDER", help="where raw rows are read"
    )
    parser.add_argument("--out", metavar=f"FOLDER|{POSTGRESQL}SCHEMA", help="where the tables are written")
    parser.add_argument("--from-date", type=iso_date, metavar="D", help="the first day to build")
    parser.add_argument("--to-date", type=iso_date, metavar="D", help="the last day to build")
    parser.add_argument(
        "--check-against-tables",
        nargs="?",
        const="features",
        metavar="SCHEMA",
        help="compare with the tables of this schema, default %(const)s",
    )
    arguments = parser.parse_args(argv)
    if not arguments.out and not arguments.check_against_tables:
        parser.error("nothing to do: give --out, --check-against-tables or both")
    if arguments.from_date and arguments.to_date and arguments.from_date > arguments.to_date:
        parser.error(f"--from-date {arguments.from_date} is after --to-date {arguments.to_date}")
    for schema in (arguments.check_against_tables, _schema_of(arguments.out)):
        if schema is not None and not SCHEMA_NAME.fullmatch(schema):
            parser.error(f"{schema!r} is no schema's name")
    return arguments


def _schema_of(out: str | None) -> str | None:
    return out.removeprefix(POSTGRESQL) if out and out.startswith(POSTGRESQL) else None


@contextmanager
def open_source(spark: SparkSession, source: str, settings: JobSettings) -> Iterator[RawSource]:
    """Yield the source of raw rows that the option names."""
    if source != "postgresql":
        yield LandingSource(spark, source, settings.label_delay_days)
        return
    place = settings.place("raw")
    schema = settings.schemas.raw_schema or place.name
    with PostgresqlSource.open(spark, place.database, schema) as tables:
        yield tables


def span_to_build(days: tuple[int, int], from_date: date | None, to_date: date | None) -> Span:
    """Return the days whose rows are asked for, of those from the second day to the one after the last.

    SourceError where none of them has rows.
    """
    first, last = days[0] + 1, days[1] + 1
    span = Span(
        max(first, day_number(from_date)) if from_date else first,
        min(last, day_number(to_date)) if to_date else last,
    )
    if span.first > span.last:
        raise SourceError(f"the source's transactions make rows from {date_of(first)} to {date_of(last)}")
    return span


def asked_span(built: Span, from_date: date | None, to_date: date | None) -> Span:
    """Return the days whose old rows are replaced: those asked for, also where they have no rows now."""
    return Span(
        day_number(from_date) if from_date else min(built.first, 0),
        day_number(to_date) if to_date else max(built.last, day_number(date.max) - 1),
    )


def build(source: RawSource, span: Span, label_delay_days: int) -> dict[FeatureTable, DataFrame]:
    """Return the span's rows of both tables."""
    raw = RawFrames(
        source.transactions(first_raw_day(span, label_delay_days), span.last),
        source.first_days("customer_id"),
        source.first_days("terminal_id"),
        label_delay_days,
    )
    return {
        CUSTOMER_DAILY: customer_daily(raw, span).select(*CUSTOMER_DAILY.columns),
        TERMINAL_DAILY: terminal_daily(raw, span).select(*TERMINAL_DAILY.columns),
    }


def run(arguments: argparse.Namespace, settings: JobSettings, report: dict[str, Any]) -> int:
    """Build, write and compare; fill in the report and return the exit code."""
    differing = 0
    everything = not arguments.from_date and not arguments.to_date
    with (
        spark_session(COMMAND, settings.spark) as spark,
        open_source(spark, arguments.source, settings) as source,
    ):
        span = span_to_build(source.days(), arguments.from_date, arguments.to_date)
        asked = asked_span(span, arguments.from_date, arguments.to_date)
        report |= {"from_date": date_of(span.first), "to_date": date_of(span.last)}
        for table, computed in build(source, span, settings.label_delay_days).items():
            rows = computed.persist() if arguments.out and arguments.check_against_tables else computed
            done: dict[str, Any] = {}
            report["tables"][table.name] = done
            if arguments.out:
                started = time.monotonic()
                if (schema := _schema_of(arguments.out)) is None:
                    write_parquet(rows, table, arguments.out, None if everything else asked, span)
                else:
                    write_postgresql(rows, table, settings.place(schema), None if everything else asked)
                done["write_seconds"] = round(time.monotonic() - started, 3)
                print(f"{table.name}: written to {arguments.out}, {done['write_seconds']:.1f} s", flush=True)
            if arguments.check_against_tables:
                place = settings.place(arguments.check_against_tables)
                found = compare(rows, read_table(spark, table, place, asked, strides=span), table)
                done |= {**asdict(found), "compared_with": place.name}
                differing += found.mismatches
                say(found, place.name)
            rows.unpersist()
    return 1 if differing else 0


def say(found: Comparison, schema: str) -> None:
    """Print what a comparison found."""
    print(f"{found.table}: {found.mismatches:,} of {found.rows:,} rows differ from {schema}", flush=True)
    for example in found.examples:
        print(f"  {example}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    in_database = (
        arguments.source == "postgresql",
        arguments.check_against_tables,
        _schema_of(arguments.out),
    )
    try:
        settings = JobSettings.read(with_database=any(in_database))
    except (SettingsError, LabelMaturityError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    started = time.monotonic()
    report: dict[str, Any] = {
        "command": COMMAND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": arguments.source,
        "out": arguments.out,
        "tables": {},
        "error": None,
    }
    try:
        code = run(arguments, settings, report)
    except (
        SourceError,
        TableError,
        DatabaseUnavailableError,
        psycopg.Error,
        PySparkException,
        Py4JError,
    ) as error:
        code, report["error"] = 1, one_line(error)
        print(f"{COMMAND}: {report['error']}", file=sys.stderr)
    report["seconds"] = round(time.monotonic() - started, 3)
    path = write_report(settings.reports.reports_dir, f"{COMMAND}.json", report)
    print(f"{report['seconds']:.1f} s; report {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
