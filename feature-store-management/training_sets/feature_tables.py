"""Where the rows of a feature view come from: the tables that dbt publishes, or a folder with Parquet copies.

The table of a view is `fct_<view>`, with `event_timestamp` and `created_timestamp`, as the Feast definitions
say (tests/test_training_sets.py holds the two together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from psycopg import sql
from psycopg.rows import dict_row

from data_source_connectors.database_connector import DatabaseSettings, connect, read_query_batches
from data_source_connectors.errors import SourceError, masked
from training_sets.errors import FeatureTableError

EVENT, CREATED = "event_timestamp", "created_timestamp"
TIMES = (EVENT, CREATED)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a time may be: PostgreSQL has times before the year 1, Python has not.
EARLIEST = -62_135_596_800_000_000
READ_ROWS = 1_000_000


@dataclass(frozen=True)
class Extract:
    """Which rows of a table are needed; times in microseconds since the epoch (UTC), both ends included.

    Every bound only spares reading: the join leaves out itself what must not be seen. There is none on
    created_timestamp, for it would spare next to nothing and be checked for every row.
    """

    key: str
    fields: Sequence[str]
    true_since: int | None
    true_until: int
    keys: tuple[int, int] | None = None
    few_keys: Sequence[int] = field(default=())

    @property
    def columns(self) -> list[str]:
        """The columns to read, in order."""
        return [self.key, *TIMES, *self.fields]


class FeatureTables(Protocol):
    """A source of feature tables."""

    def name(self, view: str) -> str:
        """Return the name of a view's table, as shown to people."""

    def rows(self, view: str) -> int:
        """Return about how many rows a view's table has."""

    def read(self, view: str, extract: Extract) -> pa.Table:
        """Return the rows of an extract, and perhaps more; times as timestamp[us, UTC]."""


@dataclass(frozen=True)
class PostgresTables:
    """The feature tables of a PostgreSQL schema."""

    settings: DatabaseSettings
    schema: str

    def name(self, view: str) -> str:
        """Return `schema.fct_view`."""
        return f"{self.schema}.fct_{view}"

    def rows(self, view: str) -> int:
        """Return how many rows the table's statistics count, 0 where nothing was counted yet."""
        query = sql.SQL(
            "select greatest(reltuples, 0)::bigint as rows from pg_class where oid = {}::regclass"
        )
        table = sql.Literal(self._table(view).as_string())
        [found] = ask(self.settings, query.format(table))
        return int(found["rows"])

    def read(self, view: str, extract: Extract) -> pa.Table:
        """Read the rows by binary COPY; raises SourceError and FeatureTableError."""
        event, key = sql.Identifier(EVENT), sql.Identifier(extract.key)
        conditions = [sql.SQL("{} <= {}").format(event, _moment(extract.true_until))]
        if extract.true_since is not None:
            conditions.append(sql.SQL("{} >= {}").format(event, _moment(extract.true_since)))
        if extract.few_keys:
            few = sql.Literal(list(extract.few_keys))
            conditions.append(sql.SQL("{} = any ({}::bigint[])").format(key, few))
        elif extract.keys is not None:
            low, high = map(sql.Literal, extract.keys)
            conditions.append(sql.SQL("{} between {} and {}").format(key, low, high))
        query = sql.SQL("select {} from {} where {}").format(
            sql.SQL(", ").join(map(sql.Identifier, extract.columns)),
            self._table(view),
            sql.SQL(" and ").join(conditions),
        )
        return read_query(self.settings, query)

    def _table(self, view: str) -> sql.Identifier:
        return sql.Identifier(self.schema, f"fct_{view}")


@dataclass(frozen=True)
class ParquetTables:
    """Copies of feature tables in a folder: `fct_<view>.parquet`, a file or a folder of files."""

    folder: Path

    def name(self, view: str) -> str:
        """Return the file's name."""
        return f"fct_{view}.parquet"

    def rows(self, view: str) -> int:
        """Return the number of rows."""
        return self._dataset(view).count_rows()

    def read(self, view: str, extract: Extract) -> pa.Table:
        """Read the rows; raises FeatureTableError where the file is absent, or a column of it."""
        dataset = self._dataset(view)
        if absent := [name for name in extract.columns if name not in dataset.schema.names]:
            raise FeatureTableError(f"{self.folder / self.name(view)} has no column {', '.join(absent)}")
        for name in TIMES:
            kind = dataset.schema.field(name).type
            if not pa.types.is_timestamp(kind) or kind.tz is None:
                raise FeatureTableError(f"{self.name(view)}: {name} is {kind}, not a time with a zone")
        wanted = pc.field(EVENT) <= _arrow_moment(extract.true_until)
        if extract.true_since is not None:
            wanted &= pc.field(EVENT) >= _arrow_moment(extract.true_since)
        if extract.few_keys:
            wanted &= pc.field(extract.key).isin(extract.few_keys)
        elif extract.keys is not None:
            low, high = extract.keys
            wanted &= (pc.field(extract.key) >= low) & (pc.field(extract.key) <= high)
        return dataset.to_table(columns=extract.columns, filter=wanted)

    def _dataset(self, view: str) -> ds.Dataset:
        path = self.folder / self.name(view)
        if not path.exists():
            raise FeatureTableError(f"{path} is not there")
        return ds.dataset(path, format="parquet")


def read_query(settings: DatabaseSettings, query: sql.Composed) -> pa.Table:
    """Return the rows of a query as an Arrow table; raises SourceError."""
    return pa.Table.from_batches(read_query_batches(settings, query, batch_rows=READ_ROWS))


def ask(settings: DatabaseSettings, query: sql.Composed) -> list[dict[str, Any]]:
    """Return the few rows of a small query, without the start that a bulk read costs; raises SourceError."""
    try:
        with (
            connect(settings, application_name="training_sets") as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute(query).fetchall()
    except psycopg.Error as error:
        reason = masked(error, [settings.password.get_secret_value()])
        raise SourceError(f"PostgreSQL {settings.address}: {reason}") from error


def _moment(microseconds: int) -> sql.Composed:
    """Return a time as an SQL literal that means the same in every session."""
    moment = EPOCH + timedelta(microseconds=max(microseconds, EARLIEST))
    return sql.SQL("timestamptz {}").format(sql.Literal(moment.isoformat()))


def _arrow_moment(microseconds: int) -> pa.Scalar:
    return pa.scalar(microseconds, pa.timestamp("us", "UTC"))
