"""What a training set is asked for: entity rows of a Parquet file, or the labels that have matured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from psycopg import sql

from data_source_connectors.database_connector import DatabaseSettings
from feature_contract import FeatureContract
from training_sets.errors import EntityRowsError, NoRowsError
from training_sets.feature_tables import EVENT, ask, read_query
from training_sets.point_in_time import Integers

CHUNK_ROWS = 1_000_000
# The table of each label, and the column that orders its rows within a moment.
LABEL_TABLES = {
    "fraud": ("fct_fraud_labels", "transaction_id"),
    "churn": ("fct_churn_labels", "subscriber_id"),
}


@dataclass(frozen=True)
class EntityRows:
    """Checked entity rows: keys, moments (microseconds since the epoch, UTC), request values as doubles.

    `carried` holds every other column, unchanged.
    """

    keys: Mapping[str, Integers]
    moments: Integers
    request: Mapping[str, NDArray[np.float64]]
    carried: pa.Table

    def __len__(self) -> int:
        return len(self.moments)


class EntitySource(Protocol):
    """Where entity rows come from."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def chunks(self) -> Iterator[pa.Table]:
        """Yield them in their order, in tables of at most CHUNK_ROWS rows."""

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of them."""


class EntityFile:
    """Entity rows in a Parquet file."""

    def __init__(self, path: Path, chunk_rows: int = CHUNK_ROWS) -> None:
        self._path, self._chunk_rows = path, chunk_rows
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise EntityRowsError(f"{path} can't be read as Parquet: {error}") from error
        self.rows = int(self._file.metadata.num_rows)

    def chunks(self) -> Iterator[pa.Table]:
        """Yield the file's rows in its order."""
        for batch in self._file.iter_batches(batch_size=self._chunk_rows):
            yield pa.Table.from_batches([batch])

    def describe(self) -> dict[str, Any]:
        """Return the file's name."""
        return {"entities": {"file": self._path.name}}


@dataclass(frozen=True)
class MaturedLabels:
    """The labels of the days [first, last] (UTC) that were known and mature at `known_as_of`."""

    label: str
    first: date
    last: date
    known_as_of: datetime
    delay_days: int
    policy_version: int
    table: pa.Table

    @classmethod
    def read(  # noqa: PLR0913, PLR0917 (what the command line names)
        cls,
        settings: DatabaseSettings,
        schema: str,
        label: str,
        first: date,
        last: date,
        known_as_of: datetime,
    ) -> MaturedLabels:
        """Read the labels by time; raises NoRowsError, SourceError."""
        maturity = ask(
            settings,
            sql.SQL("select delay_days, policy_version from {} where label_name = {}").format(
                sql.Identifier(schema, "label_maturity"), sql.Literal(label)
            ),
        )
        if len(maturity) != 1:
            raise NoRowsError(f"{schema}.label_maturity has {len(maturity)} rows for {label}, not one")
        delay = int(maturity[0]["delay_days"])
        name, key = LABEL_TABLES[label]
        query = sql.SQL(
            "select * from {table} where event_timestamp >= {start} and event_timestamp < {end}"
            " and event_timestamp <= {matured} and label_known_at <= {known} order by event_timestamp, {key}"
        ).format(
            table=sql.Identifier(schema, name),
            start=_literal(_midnight(first)),
            end=_literal(_midnight(last + timedelta(days=1))),
            matured=_literal(known_as_of - timedelta(days=delay)),
            known=_literal(known_as_of),
            key=sql.Identifier(key),
        )
        table = read_query(settings, query)
        if not len(table):
            raise NoRowsError(
                f"{schema}.{name} has no label of {first} to {last} that was known and mature at "
                f"{known_as_of.isoformat()}; labels mature {delay} days after the event"
            )
        version = int(maturity[0]["policy_version"])
        return cls(label, first, last, known_as_of, delay, version, table)

    @property
    def rows(self) -> int:
        """How many labels there are."""
        return len(self.table)

    def chunks(self) -> Iterator[pa.Table]:
        """Yield the labels in order of time."""
        for start in range(0, len(self.table), CHUNK_ROWS):
            yield self.table.slice(start, CHUNK_ROWS)

    def describe(self) -> dict[str, Any]:
        """Return which labels these are."""
        return {
            "labels": {
                "name": self.label,
                "from": self.first.isoformat(),
                "to": self.last.isoformat(),
                "known_as_of": self.known_as_of.isoformat(),
                "delay_days": self.delay_days,
                "policy_version": self.policy_version,
            }
        }


def checked(table: pa.Table, contract: FeatureContract) -> EntityRows:
    """Return the rows as numbers; raises EntityRowsError, naming the column and the first bad row.

    A `unix_timestamp` that is not given is the row's own `event_timestamp`.
    """
    if len(set(table.column_names)) != table.num_columns:
        raise EntityRowsError("a column stands twice")
    keys = {entity.join_key: _keys(table, entity.join_key) for entity in contract.entities}
    moments = _moments(table)
    request = {}
    for field in contract.request:
        if field.type == "unix_timestamp" and field.name not in table.column_names:
            request[field.name] = moments / 1e6
        else:
            request[field.name] = _numbers(table, field.name)
    named = {feature.name for feature in contract.features}
    if clash := [name for name in table.column_names if name in named and name not in request]:
        raise EntityRowsError(f"{', '.join(clash)}: the entity rows have a column of a feature's name")
    carried = table.select([name for name in table.column_names if name not in request])
    return EntityRows(keys, moments, request, carried)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise EntityRowsError(
            f"the entity rows have no column {name}; they have {', '.join(table.column_names)}"
        )
    column = table[name]
    if column.null_count:
        first = pc.index(column.is_null(), True).as_py()
        raise EntityRowsError(f"{name} is null in {column.null_count} entity rows, first row {first}")
    return column


def _keys(table: pa.Table, name: str) -> Integers:
    column = _column(table, name)
    if not pa.types.is_integer(column.type):
        raise EntityRowsError(f"the key {name} is {column.type}, not an integer")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise EntityRowsError(f"the key {name}: {error}") from error


def _moments(table: pa.Table) -> Integers:
    """Return the times; finer ones are cut to the microsecond, as of which the same rows are known."""
    column = _column(table, EVENT)
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        raise EntityRowsError(f"{EVENT} is {column.type}, not a time with a zone")
    if column.type.unit == "ns":
        return np.floor_divide(column.cast(pa.int64()).to_numpy(), 1000)
    return column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    column = _column(table, name)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise EntityRowsError(f"the request value {name} is {kind}, not a number")
    try:
        values = column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise EntityRowsError(f"the request value {name}: {error}") from error
    if (absent := np.isnan(values)).any():
        count, first = int(absent.sum()), int(np.argmax(absent))
        raise EntityRowsError(f"{name} is not a number in {count} entity rows, first row {first}")
    return values


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _literal(moment: datetime) -> sql.Composed:
    return sql.SQL("timestamptz {}").format(sql.Literal(moment.isoformat()))
