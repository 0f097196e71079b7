"""The landing folder: one pair of Parquet files a day and the manifest that says which data set they are.

| file | grain |
|---|---|
| `transactions_YYYY-MM-DD.parquet` | transaction of that UTC day, in order of time |
| `labels_YYYY-MM-DD.parquet` | the same transactions: fraud or not, and the scenario |
| `dataset.json` | the data set: parameters, totals, every file with rows and SHA-256 |

The manifest is removed before the first file of a folder changes and written after the last: where it stands,
the folder is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from .handbook_simulator import SECONDS_A_DAY, SimulationParameters, Transactions

Kind = Literal["transactions", "labels"]

TRANSACTIONS_SCHEMA = pa.schema(
    [
        pa.field("transaction_id", pa.int64(), nullable=False),
        pa.field("tx_datetime", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("customer_id", pa.int64(), nullable=False),
        pa.field("terminal_id", pa.int64(), nullable=False),
        pa.field("tx_amount", pa.float64(), nullable=False),
    ]
)
LABELS_SCHEMA = pa.schema(
    [
        pa.field("transaction_id", pa.int64(), nullable=False),
        pa.field("is_fraud", pa.int16(), nullable=False),
        pa.field("fraud_scenario", pa.int16(), nullable=False),
    ]
)
SCHEMAS: dict[Kind, pa.Schema] = {"transactions": TRANSACTIONS_SCHEMA, "labels": LABELS_SCHEMA}

MANIFEST_NAME = "dataset.json"
INCOMING_NAME = ".incoming"
DAY_FILE = re.compile(r"(transactions|labels)_(\d{4}-\d{2}-\d{2})\.parquet")


class LandingError(Exception):
    """A landing folder can't be used as it is; the message says why and what to do."""


class LandedFile(BaseModel):
    """One file of a data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tx_date: date
    rows: int
    sha256: str


class Manifest(BaseModel):
    """What a landing folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    dataset_id: str
    parameters: dict[str, str | int]
    transactions: int
    frauds: int
    frauds_by_scenario: dict[int, int]
    files: list[LandedFile]


def dataset_id(parameters: SimulationParameters) -> str:
    """Return the SHA-256 (hex) of the parameters' canonical JSON.

    >>> dataset_id(SimulationParameters())[:8] == dataset_id(SimulationParameters(days=183))[:8]
    True
    """
    canonical = json.dumps(parameters.as_dict(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_name(kind: Kind, day: date) -> str:
    """Return the name of a day's file.

    >>> file_name("labels", date(2018, 4, 1))
    'labels_2018-04-01.parquet'
    """
    return f"{kind}_{day.isoformat()}.parquet"


def day_of(name: str) -> date | None:
    """Return the day that a file's name states, None where it is no day file's name.

    >>> day_of("transactions_2018-04-01.parquet")
    datetime.date(2018, 4, 1)
    >>> day_of("transactions_2018-02-30.parquet") is None
    True
    """
    match = DAY_FILE.fullmatch(name)
    if match is None:
        return None
    try:
        return date.fromisoformat(match[2])
    except ValueError:
        return None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the folder against other processes (shared: against writers only); LandingError if it is held."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LandingError(f"{folder} is in use by another process: try again when it is done") from None
        yield
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the folder's manifest, None where there is none; LandingError where it is not one."""
    try:
        text = (folder / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise LandingError(f"{folder / MANIFEST_NAME} is no manifest: {where}: {first['msg']}") from None


def first_difference(folder: Path, manifest: Manifest) -> str | None:
    """Return the name of the first file that is not as the manifest says, None where all are."""
    for landed in manifest.files:
        path = folder / landed.name
        if not path.is_file() or sha256_of(path) != landed.sha256:
            return landed.name
    return None


def write_dataset(folder: Path, transactions: Transactions, parameters: SimulationParameters) -> Manifest:
    """Replace the folder's data set: files beside the old ones first, then renamed, the manifest last.

    The caller holds the folder's exclusive lock. Other files in the folder stay.
    """
    incoming = folder / INCOMING_NAME
    if incoming.exists():
        shutil.rmtree(incoming)
    incoming.mkdir()
    files = [
        _write_table(incoming, kind, parameters.start_date + timedelta(days=day), table)
        for day, tables in enumerate(_daily_tables(transactions, parameters))
        for kind, table in tables.items()
    ]
    by_scenario = transactions.frauds_by_scenario()
    manifest = Manifest(
        dataset_id=dataset_id(parameters),
        parameters=parameters.as_dict(),
        transactions=len(transactions),
        frauds=sum(by_scenario.values()),
        frauds_by_scenario=by_scenario,
        files=files,
    )
    (incoming / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n")

    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    names = {landed.name for landed in files}
    for path in folder.iterdir():
        if day_of(path.name) and path.name not in names:
            path.unlink()
    for name in sorted(names):
        (incoming / name).replace(folder / name)
    (incoming / MANIFEST_NAME).replace(folder / MANIFEST_NAME)
    incoming.rmdir()
    return manifest


def _write_table(folder: Path, kind: Kind, day: date, table: pa.Table) -> LandedFile:
    path = folder / file_name(kind, day)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    return LandedFile(name=path.name, tx_date=day, rows=table.num_rows, sha256=sha256_of(path))


def _daily_tables(
    transactions: Transactions, parameters: SimulationParameters
) -> Iterator[dict[Kind, pa.Table]]:
    midnight = datetime.combine(parameters.start_date, datetime.min.time(), UTC)
    first_second = int(midnight.timestamp())
    times = ((transactions.seconds + first_second) * 1_000_000).view("datetime64[us]")
    ids = np.arange(len(transactions), dtype=np.int64)
    bounds = np.searchsorted(transactions.seconds, np.arange(parameters.days + 1) * SECONDS_A_DAY)
    for start, stop in pairwise(bounds):
        rows = slice(start, stop)
        scenario = transactions.scenario[rows]
        yield {
            "transactions": pa.table(
                [
                    ids[rows],
                    pa.array(times[rows], pa.timestamp("us", tz="UTC")),
                    transactions.customer_id[rows],
                    transactions.terminal_id[rows],
                    transactions.amount[rows],
                ],
                schema=TRANSACTIONS_SCHEMA,
            ),
            "labels": pa.table(
                [ids[rows], (scenario > 0).astype(np.int16), scenario],
                schema=LABELS_SCHEMA,
            ),
        }
