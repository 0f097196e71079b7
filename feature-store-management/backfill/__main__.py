"""Rebuild days of feature tables from the raw rows, many batches of days side by side.

`python -m backfill --from D --to D [--views NAME ...] [--workers N] [--batch-days N] [--dry-run] [--restart]`

Each batch of days is computed by the table's dbt model on its own, and replaces its rows in one transaction:
a rerun changes nothing, and the result is that of a full build bit for bit. Without --views, all feature and
label tables are rebuilt; a view names its table `fct_<view>`. What the tables are made from is rebuilt with
them. A backfill that was broken off continues with the batches it lacks, unless the raw rows or a model have
changed since. A table that does not exist yet is created. dbt builds on what a backfill left; what lies
outside its days stays, and the next build finds whatever else the raw rows have changed.

Exit 0: done; 1: another build runs, the database failed, or raw rows came in meanwhile; 2: bad options or
settings. The report is `REPORTS_DIR/backfill.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime

import psycopg

from data_source_connectors.database_connector import DatabaseSettings, DatabaseUnavailableError
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import (
    BAD_USAGE,
    OneLineParser,
    ReportSettings,
    iso_date,
    whole_number,
    write_report,
)
from lineage.dbt_models import ModelError, Project

from .build_lock import BuildRunningError, BuildSettings, build_lock
from .plan import PlanError, Step, default_batch_days, plan_steps, read_day_tables
from .run import Backfill, RawChangedError, TableMismatchError

COMMAND = "backfill"


def target_models(project: Project, views: Sequence[str] | None) -> list[str]:
    """Return the tables of the views, all published tables without any; PlanError for an unknown view."""
    published = sorted(name for name in project.models if name.startswith("fct_"))
    if not views:
        return published
    unknown = [view for view in views if f"fct_{view}" not in published]
    if unknown:
        known = ", ".join(name.removeprefix("fct_") for name in published)
        raise PlanError(f"no view is named {', '.join(unknown)}: there are {known}")
    return [f"fct_{view}" for view in views]


def describe(steps: Sequence[Step]) -> str:
    """Return the plan for people, a line a table."""
    lines = []
    for step in steps:
        first, last = step.batches[0].first, step.batches[-1].last
        days = "whole" if first is None else f"{first} to {last} in {len(step.batches)} batches"
        lines.append(f"  {step.model.relation}: {days}")
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Rebuild days of feature tables from the raw rows.")
    first, last = "the first day of the rows to rebuild (UTC)", "the last day"
    parser.add_argument("--from", dest="first", type=iso_date, required=True, metavar="D", help=first)
    parser.add_argument("--to", dest="last", type=iso_date, required=True, metavar="D", help=last)
    parser.add_argument(
        "--views", nargs="+", metavar="NAME", help="only these views and what they are made from"
    )
    parser.add_argument(
        "--workers", type=whole_number, default=2, metavar="N", help="batches side by side (2)"
    )
    parser.add_argument(
        "--batch-days", type=whole_number, metavar="N", help="days a batch (eight batches a worker)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be rebuilt")
    parser.add_argument(
        "--restart", action="store_true", help="do not continue a backfill that was broken off"
    )
    arguments = parser.parse_args(argv)
    if arguments.first > arguments.last:
        parser.error(f"--from {arguments.first} is after --to {arguments.last}")
    return arguments


def run(arguments: argparse.Namespace, database: DatabaseSettings, build: BuildSettings) -> dict[str, object]:
    """Plan and rebuild; return the report's figures."""
    project, entries = Project(prefix=build.schema_prefix), read_day_tables()
    days: tuple[date, date] = (arguments.first, arguments.last)
    targets = target_models(project, arguments.views)

    def batch_days(covered: tuple[date, date]) -> int:
        return arguments.batch_days or default_batch_days(covered, arguments.workers)

    with build_lock(database, build, builder=COMMAND) as connection:
        backfill = Backfill(connection, database, project, arguments.workers)
        missing = backfill.missing_tables(targets)
        history = backfill.first_raw_day(targets) if missing else None
        steps = plan_steps(project, entries, targets, days, batch_days, missing, history)
        if arguments.dry_run:
            print(f"would rebuild\n{describe(steps)}")
            return {"dry_run": True, "batches": sum(len(step.batches) for step in steps)}
        print(f"rebuilding\n{describe(steps)}", flush=True)
        return backfill.run(steps, days, restart=arguments.restart)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    started = time.monotonic()
    try:
        database, build = read_settings(DatabaseSettings), read_settings(BuildSettings)
        reports_dir = read_settings(ReportSettings).reports_dir
        figures = run(arguments, database, build)
    except (SettingsError, PlanError, ModelError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (
        *(BuildRunningError, RawChangedError, TableMismatchError, DatabaseUnavailableError),
        *(psycopg.Error, OSError),
    ) as error:
        print(f"{COMMAND}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if arguments.dry_run:
        return 0
    seconds = round(time.monotonic() - started, 3)
    report = {
        "command": COMMAND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": arguments.first,
        "to": arguments.last,
        "views": arguments.views,
        "workers": arguments.workers,
        **figures,
        "seconds": seconds,
    }
    path = write_report(reports_dir, f"{COMMAND}.json", report)
    print(
        f"rebuilt {figures['rows']:,} rows of {figures['tables']} tables in {figures['batches']} batches"
        f" ({figures['batches_done_before']} done before); {seconds:.1f} s; report {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
