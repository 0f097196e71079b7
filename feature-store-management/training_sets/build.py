"""Build the training set of a feature service: `python -m training_sets.build --help`.

The file holds the entity rows' own columns, the request values and the vector in the contract's order; beside
it a manifest says what it was made from. Both come from the data alone, so a rebuild gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql
from tqdm import tqdm

from data_source_connectors.database_connector import DatabaseSettings
from data_source_connectors.errors import SourceError
from data_source_connectors.settings import SettingsError, read_settings
from feature_contract import ContractError, FeatureContract, load_contract
from training_sets.entity_rows import LABEL_TABLES, EntityFile, EntitySource, MaturedLabels, checked
from training_sets.errors import NoRowsError, TrainingSetError
from training_sets.feature_tables import FeatureTables, ParquetTables, PostgresTables, ask
from training_sets.look_up import SLICE_ROWS, Reading, ViewReader
from training_sets.vectors import fields_read, keeps_stale, vectors

MANIFEST_VERSION = 1
PARALLEL_VIEWS = 2  # one is read while another is joined


@dataclass(frozen=True)
class Built:
    """One chunk of a training set, and the times (microseconds since the epoch) of its first and last row."""

    table: pa.Table
    first: int
    last: int


class TrainingSetBuilder:
    """Computes the training set of one contract, chunk by chunk."""

    def __init__(
        self, contract: FeatureContract, tables: FeatureTables, *, slice_rows: int = SLICE_ROWS
    ) -> None:
        self.contract = contract
        self._readers = {
            view.name: ViewReader(
                contract,
                view,
                tables,
                fields_read(contract, view.name),
                keeps_stale(contract, view.name),
                slice_rows,
            )
            for view in contract.views
        }

    @property
    def readings(self) -> Mapping[str, Reading]:
        """What was read of each view so far."""
        return {name: reader.reading for name, reader in self._readers.items()}

    def build(self, table: pa.Table) -> Built:
        """Return the entity rows with their vectors, in their order; raises TrainingSetError, SourceError."""
        rows = checked(table, self.contract)
        with ThreadPoolExecutor(PARALLEL_VIEWS) as pool:
            found = pool.map(
                lambda reader: reader.look_up(rows.keys[reader.key], rows.moments), self._readers.values()
            )
            looked = dict(zip(self._readers, found, strict=True))
        vector = vectors(self.contract, looked, rows.request, len(rows))
        columns: dict[str, Any] = {name: rows.carried[name] for name in rows.carried.column_names}
        columns |= {name: pa.array(values) for name, values in rows.request.items() if name not in vector}
        return Built(pa.table(columns | vector), int(rows.moments.min()), int(rows.moments.max()))


def write_training_set(
    builder: TrainingSetBuilder, entities: EntitySource, data_version: str | None, out: Path
) -> dict[str, Any]:
    """Write the training set and its manifest, each whole or not at all; return the manifest.

    Raises NoRowsError where there is nothing to ask for, TrainingSetError and SourceError.
    """
    if not entities.rows:
        raise NoRowsError("there are no entity rows")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    try:
        with _Writer(partial) as writer:
            for built in _with_progress(builder, entities):
                writer.write(built.table)
                first, last = min(first, built.first), max(last, built.last)
        manifest = {
            "format_version": MANIFEST_VERSION,
            "file": out.name,
            "sha256": _sha256(partial),
            "rows": entities.rows,
            "columns": {field.name: str(field.type) for field in writer.schema},
            "service": builder.contract.name,
            "contract_sha256": hashlib.sha256(builder.contract.canonical_json().encode()).hexdigest(),
            "interval": {"first": _iso(first), "last": _iso(last)},
            **entities.describe(),
            "data_version": data_version,
            "views": {name: _described(reading) for name, reading in builder.readings.items()},
        }
        # A run that breaks off here leaves a file without a manifest, never one with another's.
        manifest_path(out).unlink(missing_ok=True)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    manifest_path(out).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def manifest_path(out: Path) -> Path:
    """Return where the manifest of a training set lies.

    >>> manifest_path(Path("sets/fraud.parquet")).name
    'fraud.manifest.json'
    """
    return out.with_name(out.name.removesuffix(".parquet") + ".manifest.json")


class _Writer:
    """A Parquet file whose schema is that of the first table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append a table."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    @property
    def schema(self) -> pa.Schema:
        """The schema of what was written."""
        assert self._writer is not None
        return self._writer.schema


def _with_progress(builder: TrainingSetBuilder, entities: EntitySource) -> Iterator[Built]:
    with tqdm(
        total=entities.rows, desc=builder.contract.name, unit="row", unit_scale=True, disable=None
    ) as bar:
        for chunk in entities.chunks():
            yield builder.build(chunk)
            bar.update(len(chunk))


def _described(reading: Reading) -> dict[str, Any]:
    return {
        "table": reading.table,
        "rows_read": reading.rows_read,
        "newest_event_timestamp": _iso(reading.newest_event),
        "newest_created_timestamp": _iso(reading.newest_created),
        "entity_rows_without_value": reading.entity_rows_without_value,
    }


def _iso(microseconds: int | None) -> str | None:
    return None if microseconds is None else f"{np.datetime64(microseconds, 'us')}Z"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_id(settings: DatabaseSettings, schema: str) -> str | None:
    """Return the identity of the loaded transactions, None where none are."""
    name = sql.Literal(sql.Identifier(schema, "dataset").as_string())
    [found] = ask(settings, sql.SQL("select to_regclass({}) is not null as present").format(name))
    if not found["present"]:
        return None
    rows = ask(settings, sql.SQL("select dataset_id::text from {}").format(sql.Identifier(schema, "dataset")))
    return rows[0]["dataset_id"] if rows else None


def parse_day(text: str) -> date:
    """Return an ISO 8601 date."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-11-21") from None


def parse_moment(text: str) -> datetime:
    """Return an ISO 8601 date or time; without an offset it is UTC.

    >>> parse_moment("2026-11-21").isoformat()
    '2026-11-21T00:00:00+00:00'
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-11-21T06:00:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training_sets.build",
        description="Write the vectors of a feature service as of each entity row's time, from what "
        "was known strictly before it, as Parquet, with a manifest beside it. Safe to rerun.",
    )
    parser.add_argument(
        "--service", required=True, metavar="S", help="the feature service, e.g. fraud_detection_v1"
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="Parquet with join keys, event_timestamp and request values; other columns are carried through",
    )
    asked.add_argument(
        "--labels", choices=sorted(LABEL_TABLES), help="the labels of these days that have matured"
    )
    parser.add_argument(
        "--from", dest="first", type=parse_day, metavar="DAY", help="first day of labels, UTC"
    )
    parser.add_argument(
        "--to", dest="last", type=parse_day, metavar="DAY", help="last day of labels, included"
    )
    parser.add_argument("--known-as-of", type=parse_moment, metavar="T", help="labels known and mature at T")
    parser.add_argument(
        "--tables", type=Path, metavar="DIR", help="read fct_<view>.parquet from DIR instead of the database"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="what to write")
    return parser


def _entities(options: argparse.Namespace, parser: argparse.ArgumentParser, prefix: str) -> EntitySource:
    window = {"--from": options.first, "--to": options.last, "--known-as-of": options.known_as_of}
    if options.entities is not None:
        if given := [name for name, value in window.items() if value is not None]:
            parser.error(f"{', '.join(given)} belongs to --labels")
        return EntityFile(options.entities)
    if absent := [name for name, value in window.items() if value is None]:
        parser.error(f"--labels needs {', '.join(absent)}")
    if options.last < options.first:
        parser.error(f"--to {options.last} is before --from {options.first}")
    settings, schema = read_settings(DatabaseSettings), f"{prefix}labels"
    return MaturedLabels.read(
        settings, schema, options.labels, options.first, options.last, options.known_as_of
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return 1, with one line that says why, where no training set can be made."""
    parser = _parser()
    options = parser.parse_args(arguments)
    prefix = os.environ.get("FEATURE_STORE_SCHEMA_PREFIX", "")
    try:
        contract = load_contract(options.service)
        entities = _entities(options, parser, prefix)
        tables: FeatureTables
        if options.tables is not None:
            tables, data_version = ParquetTables(options.tables), None
        else:
            settings = read_settings(DatabaseSettings)
            tables = PostgresTables(settings, f"{prefix}features")
            data_version = dataset_id(settings, os.environ.get("FEATURE_STORE_RAW_SCHEMA", f"{prefix}raw"))
        builder = TrainingSetBuilder(contract, tables)
        manifest = write_training_set(builder, entities, data_version, options.out)
    except (ContractError, SettingsError, SourceError, TrainingSetError) as error:
        print(f"training_sets.build: {error}", file=sys.stderr)
        return 1
    views = "; ".join(
        f"{name} {view['entity_rows_without_value']}" for name, view in manifest["views"].items()
    )
    print(f"{manifest['rows']:,} rows in {options.out}; without a value of a view: {views}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
