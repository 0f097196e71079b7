"""Load landed transactions and their labels into the raw tables, day by day.

`python -m data_transformation_pipelines.python_scripts_feast.load_transactions --source DIR [--date D ...]`

A day's rows are replaced in one transaction: whatever a rerun, a duplicate file or a run that broke off did,
the tables end as one clean run leaves them. Without --date, the days that are new or whose files changed are
loaded. A file that is not what it must be is refused: nothing of its day is loaded, the version loaded before
stays, and the other days go on.

Exit 0: every day asked for is in the tables; 1: a file was refused or the database failed; 2: bad options,
settings or data set. The report is `REPORTS_DIR/load_transactions.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from tqdm import tqdm

from data_source_connectors.binary_copy import Column
from data_source_connectors.database_connector import (
    Connection,
    DatabaseUnavailableError,
    copy_columns,
    copy_rows,
)
from data_source_connectors.settings import SettingsError

from .command_line import BAD_USAGE, OneLineParser, iso_date, write_report
from .label_maturity import LabelMaturity, LabelMaturityError
from .landing_files import Kind, LandingError, Manifest, day_of, file_name, locked, read_manifest, sha256_of
from .load_settings import LoadSettings
from .raw_tables import LoadRunningError, open_raw_tables
from .transaction_files import (
    LabelColumns,
    RefusedFileError,
    TransactionColumns,
    label_known_at,
    parse_labels,
    parse_transactions,
)

COMMAND = "load_transactions"
PROGRESS_AFTER_SECONDS = 1.0
KINDS: tuple[Kind, ...] = ("transactions", "labels")


class OtherDatasetError(Exception):
    """The tables hold another data set than the folder."""


@dataclass(frozen=True)
class LoadedFile:
    """A line of the ledger: which version of a file is in the tables, labels with which delay."""

    sha256: str
    label_delay_days: int | None


@dataclass(frozen=True)
class Source:
    """What is loaded from: the landing folder, its manifest, and the delay of its labels."""

    folder: Path
    manifest: Manifest
    maturity: LabelMaturity


@dataclass
class Summary:
    """What a run did; becomes the report."""

    dataset_id: str
    days_loaded: list[date] = field(default_factory=list)
    days_unchanged: int = 0
    transactions: int = 0
    frauds: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class LandedDay:
    """A day's validated columns and the ledger's lines about its files."""

    day: date
    transactions: TransactionColumns
    labels: LabelColumns
    sha256: Mapping[Kind, str]


def days_to_load(
    landed: Mapping[str, str], ledger: Mapping[str, LoadedFile], manifest_days: set[date], delay_days: int
) -> list[date]:
    """Return the days, ascending, whose loaded version is missing or not the landed one.

    `landed` maps file names to SHA-256. A day that is loaded and has left the folder needs nothing.
    """
    days = []
    for day in sorted(manifest_days | {named for name in landed if (named := day_of(name))}):
        for kind in KINDS:
            name = file_name(kind, day)
            loaded = ledger.get(name)
            stale_delay = kind == "labels" and loaded is not None and loaded.label_delay_days != delay_days
            if loaded is None or stale_delay or landed.get(name, loaded.sha256) != loaded.sha256:
                days.append(day)
                break
    return days


def read_day(folder: Path, day: date) -> LandedDay:
    """Read and validate a day's two files; RefusedFileError names the one that is wrong."""
    contents = {}
    for kind in KINDS:
        name = file_name(kind, day)
        try:
            contents[kind] = (folder / name).read_bytes()
        except OSError as error:
            raise RefusedFileError(name, f"can't be read: {error.strerror}") from None
    transactions = parse_transactions(contents["transactions"], day)
    labels = parse_labels(contents["labels"], day, transactions.transaction_id)
    digests = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
    return LandedDay(day, transactions, labels, digests)


def replace_day(connection: Connection, landed: LandedDay, dataset_id: str, maturity: LabelMaturity) -> None:
    """Replace a day's rows in all tables in one transaction; RefusedFileError on an id of another day."""
    try:
        with connection.transaction():
            for table in ("transactions", "transaction_labels", "loaded_file"):
                connection.execute(f"delete from {table} where tx_date = %s", (landed.day,))  # noqa: S608
            _copy_day(connection, landed, maturity)
            connection.execute(
                "insert into dataset values (%s, now())"
                " on conflict ((true)) do update set loaded_at = excluded.loaded_at",
                (dataset_id,),
            )
    except psycopg.errors.UniqueViolation as error:
        key = re.search(r"\(transaction_id\)=\((-?\d+)\)", error.diag.message_detail or "")
        if key is None:
            raise
        raise RefusedFileError(
            file_name("transactions", landed.day), f"transaction {key[1]} is already loaded on another day"
        ) from None


def _copy_day(connection: Connection, landed: LandedDay, maturity: LabelMaturity) -> None:
    transactions, labels = landed.transactions, landed.labels
    ids = Column("transaction_id", "bigint", transactions.transaction_id)
    days = Column("tx_date", "date", np.full(len(ids.values), np.datetime64(landed.day, "D")))
    copy_columns(
        connection,
        "transactions",
        [
            ids,
            Column("tx_datetime", "timestamptz", transactions.tx_datetime),
            days,
            Column("customer_id", "bigint", transactions.customer_id),
            Column("terminal_id", "bigint", transactions.terminal_id),
            Column("tx_amount", "double precision", transactions.tx_amount),
            Column("known_at", "timestamptz", transactions.tx_datetime),
        ],
    )
    copy_columns(
        connection,
        "transaction_labels",
        [
            ids,
            days,
            Column("is_fraud", "smallint", labels.is_fraud),
            Column("fraud_scenario", "smallint", labels.fraud_scenario),
            Column("known_at", "timestamptz", label_known_at(transactions.tx_datetime, maturity.delay)),
        ],
    )
    copy_rows(
        connection,
        "loaded_file",
        ("file_name", "tx_date", "sha256", "rows", "label_delay_days"),
        [
            (
                file_name(kind, landed.day),
                landed.day,
                landed.sha256[kind],
                len(ids.values),
                maturity.delay_days if kind == "labels" else None,
            )
            for kind in KINDS
        ],
    )


def settle_dataset(connection: Connection, manifest: Manifest, *, replace: bool) -> None:
    """Make sure that the tables hold the folder's data set or nothing; OtherDatasetError unless `replace`."""
    row = connection.execute("select dataset_id from dataset").fetchone()
    if row is None or row[0] == manifest.dataset_id:
        return
    if not replace:
        raise OtherDatasetError(
            f"the tables hold data set {row[0]}, the folder holds {manifest.dataset_id}:"
            " --replace-dataset empties the tables first"
        )
    with connection.transaction():
        connection.execute("truncate transactions, transaction_labels, loaded_file, dataset")
    print(f"emptied the tables of data set {row[0]}", flush=True)


def read_ledger(connection: Connection) -> dict[str, LoadedFile]:
    """Return the ledger by file name."""
    rows = connection.execute("select file_name, sha256, label_delay_days from loaded_file").fetchall()
    return {name: LoadedFile(sha256, delay) for name, sha256, delay in rows}


def load(connection: Connection, source: Source, requested: Sequence[date] | None, summary: Summary) -> None:
    """Load the requested days, or those that need it, into the tables; what happened goes to the summary."""
    folder, manifest, maturity = source.folder, source.manifest, source.maturity
    landed = {path.name: sha256_of(path) for path in folder.glob("*.parquet") if day_of(path.name)}
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in landed:
            refuse(summary, folder, RefusedFileError(path.name, "is not named after its kind and day"))
    manifest_days = {file.tx_date for file in manifest.files}
    stale = days_to_load(landed, read_ledger(connection), manifest_days, maturity.delay_days)
    days = stale if requested is None else sorted(set(requested))
    all_days = manifest_days | {named for name in landed if (named := day_of(name))}
    summary.days_unchanged = len(all_days - set(stale) - set(days))
    for day in tqdm(days, unit="day", delay=PROGRESS_AFTER_SECONDS, disable=None):
        try:
            parsed = read_day(folder, day)
            replace_day(connection, parsed, manifest.dataset_id, maturity)
        except RefusedFileError as error:
            refuse(summary, folder, error)
            continue
        summary.days_loaded.append(day)
        summary.transactions += len(parsed.transactions.transaction_id)
        summary.frauds += int(parsed.labels.is_fraud.sum())
    if summary.days_loaded:
        connection.execute("analyze transactions, transaction_labels")


def refuse(summary: Summary, folder: Path, error: RefusedFileError) -> None:
    """Note a refused file and say so."""
    summary.refused.append(
        {"file": error.file, "path": str((folder / error.file).resolve()), "reason": error.reason}
    )
    print(f"{COMMAND}: refused {error}", file=sys.stderr, flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Load landed transactions into PostgreSQL, day by day.")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="the landing folder")
    parser.add_argument(
        "--date",
        type=iso_date,
        action="append",
        metavar="D",
        help="only this day, even if unchanged; repeatable",
    )
    parser.add_argument(
        "--replace-dataset", action="store_true", help="empty the tables if they hold another data set"
    )
    arguments = parser.parse_args(argv)
    if not arguments.source.is_dir():
        parser.error(f"{arguments.source} is not a folder")
    return arguments


def run(arguments: argparse.Namespace, settings: LoadSettings, report: dict[str, Any]) -> int:
    """Load and fill in the report; return the exit code. Raises what `main` turns into a line."""
    with locked(arguments.source, exclusive=False):
        manifest = read_manifest(arguments.source)
        if manifest is None:
            raise LandingError(
                f"{arguments.source} has no dataset.json: simulate into it, or wait until it is complete"
            )
        summary = Summary(manifest.dataset_id)
        try:
            with open_raw_tables(settings.database, settings.raw, application_name=COMMAND) as connection:
                settle_dataset(connection, manifest, replace=arguments.replace_dataset)
                load(
                    connection, Source(arguments.source, manifest, settings.maturity), arguments.date, summary
                )
        finally:
            report.update(vars(summary))
    return 1 if summary.refused else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    try:
        settings = LoadSettings.read("fraud")
    except (SettingsError, LabelMaturityError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    started = time.monotonic()
    report: dict[str, Any] = {
        "command": COMMAND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": str(arguments.source.resolve()),
        "label_delay_days": settings.maturity.delay_days,
        "label_policy_version": settings.maturity.policy_version,
        "error": None,
    }
    try:
        code = run(arguments, settings, report)
    except (OtherDatasetError, LandingError) as error:
        code, report["error"] = BAD_USAGE, str(error)
    except (DatabaseUnavailableError, LoadRunningError, psycopg.Error, OSError) as error:
        code, report["error"] = 1, " ".join(str(error).split())
    report["seconds"] = round(time.monotonic() - started, 3)
    path = write_report(settings.reports_dir, f"{COMMAND}.json", report)
    if report["error"]:
        print(f"{COMMAND}: {report['error']}", file=sys.stderr)
    else:
        print(
            f"loaded {len(report['days_loaded'])} days: {report['transactions']:,} transactions,"
            f" {report['frauds']:,} frauds; {report['days_unchanged']} days unchanged;"
            f" {len(report['refused'])} files refused;"
            f" {report['seconds']:.1f} s; report {path}"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
