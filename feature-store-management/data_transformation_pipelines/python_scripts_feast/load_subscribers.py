"""Load the subscribers' cleaned demographics, and apart whether they churned, into the raw tables.

`python -m data_transformation_pipelines.python_scripts_feast.load_subscribers --snapshot-date D`

The file is a snapshot of all subscribers: ids are given in file order from 1, and both tables are replaced in
one transaction, so a rerun changes nothing and another snapshot replaces the former. Snapshot time and label
time are midnight UTC of D; the label becomes known after the delay of `churn`.

Exit 0: loaded; 1: the file was refused or the database failed; 2: bad options or settings. The report is
`REPORTS_DIR/load_subscribers.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg

from data_source_connectors.database_connector import (
    Connection,
    DatabaseUnavailableError,
    copy_rows,
)
from data_source_connectors.settings import SettingsError

from .clean_user_demographics import (
    DEFAULT_SOURCE,
    FEATURES,
    CleanSubscribers,
    DirtyFileError,
    clean,
    log_line,
    read_source,
)
from .command_line import BAD_USAGE, OneLineParser, iso_date, write_report
from .label_maturity import LabelMaturity, LabelMaturityError
from .load_settings import LoadSettings
from .raw_tables import LoadRunningError, open_raw_tables

COMMAND = "load_subscribers"


def replace_snapshot(
    connection: Connection, subscribers: CleanSubscribers, snapshot: date, maturity: LabelMaturity
) -> None:
    """Replace all subscribers and their labels by those of a snapshot, in one transaction."""
    snapshot_at, label_known_at = label_times(snapshot, maturity)
    columns = [subscribers.profiles[name].to_pylist() for name in FEATURES]
    with connection.transaction():
        connection.execute("delete from subscribers")
        connection.execute("delete from subscriber_labels")
        copy_rows(
            connection,
            "subscribers",
            ["subscriber_id", *FEATURES, "snapshot_at", "known_at"],
            (
                (subscriber_id, *values, snapshot_at, snapshot_at)
                for subscriber_id, values in enumerate(zip(*columns, strict=True), start=1)
            ),
        )
        copy_rows(
            connection,
            "subscriber_labels",
            ["subscriber_id", "churned", "event_timestamp", "known_at"],
            (
                (subscriber_id, churned, snapshot_at, label_known_at)
                for subscriber_id, churned in enumerate(subscribers.churned, start=1)
            ),
        )
    connection.execute("analyze subscribers, subscriber_labels")


def label_times(snapshot: date, maturity: LabelMaturity) -> tuple[datetime, datetime]:
    """Return when the snapshot was taken and when its labels become known; OverflowError past year 9999."""
    snapshot_at = datetime.combine(snapshot, datetime.min.time(), UTC)
    return snapshot_at, snapshot_at + maturity.delay


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Load the subscribers of a snapshot into PostgreSQL.")
    parser.add_argument(
        "--snapshot-date", type=iso_date, required=True, metavar="D", help="the UTC day the file was true"
    )
    parser.add_argument(
        "--source", type=Path, default=DEFAULT_SOURCE, metavar="FILE", help="the Telco CSV file"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    started = time.monotonic()
    try:
        settings = LoadSettings.read("churn")
        maturity = settings.maturity
        subscribers = clean(read_source(arguments.source))
        with open_raw_tables(settings.database, settings.raw, application_name=COMMAND) as connection:
            replace_snapshot(connection, subscribers, arguments.snapshot_date, maturity)
        report = {
            "command": COMMAND,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": str(arguments.source.resolve()),
            "snapshot_date": arguments.snapshot_date,
            "label_delay_days": maturity.delay_days,
            "label_policy_version": maturity.policy_version,
            **subscribers.report(),
            "seconds": round(time.monotonic() - started, 3),
        }
        path = write_report(settings.reports_dir, f"{COMMAND}.json", report)
    except OverflowError:
        print(
            f"{COMMAND}: labels of {arguments.snapshot_date} would be known after year 9999", file=sys.stderr
        )
        return BAD_USAGE
    except (SettingsError, LabelMaturityError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (DirtyFileError, DatabaseUnavailableError, LoadRunningError, psycopg.Error, OSError) as error:
        print(f"{COMMAND}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{log_line(subscribers)}; loaded as of {arguments.snapshot_date}; report {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
