"""The newest row of every entity of a feature view, read from PostgreSQL as Arrow in batches of bounded
memory.

Rows come in the order of their key, so that a reader that stopped can go on after the last key it has dealt
with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi
from feast import FeatureView
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStoreConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.value_type import ValueType
from psycopg import sql
from psycopg.conninfo import make_conninfo

BATCH_BYTES = 8 * 2**20
UNANSWERED_BYTES_TIMEOUT_MS = 30_000
# The server sorts a view's rows by key: in memory, where they are not too many.
SESSION = "-c timezone=UTC -c work_mem=64MB -c application_name=materialize"
# Arrow has no type for some of PostgreSQL's, such as numeric; these are cast as Feast casts them.
CASTS = {ValueType.DOUBLE: "double precision", ValueType.FLOAT: "real", ValueType.STRING: "text"}


@dataclass(frozen=True)
class Resume:
    """Where to go on: entities up to the key `after` are written as of `until`, unless a row came since."""

    after: tuple[Any, ...]
    until: datetime


@dataclass(frozen=True)
class Interval:
    """Rows of [start, end], known at `end`."""

    start: datetime
    end: datetime


class FeatureDatabase:
    """Feast's offline store in PostgreSQL; one connection, made when it is first needed."""

    def __init__(self, settings: PostgreSQLOfflineStoreConfig) -> None:
        self._settings = settings
        self._connection: dbapi.Connection | None = None

    def __enter__(self) -> FeatureDatabase:
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cursor(self) -> dbapi.Cursor:
        """Return a new cursor; each statement is a transaction of its own."""
        if self._connection is None:
            self._connection = dbapi.connect(self._address(), autocommit=True)
        return self._connection.cursor()

    def _address(self) -> str:
        settings = self._settings
        return make_conninfo(
            host=settings.host,
            port=settings.port,
            dbname=settings.database,
            user=settings.user,
            password=settings.password,
            sslmode=settings.sslmode,
            sslkey=settings.sslkey_path,
            sslcert=settings.sslcert_path,
            sslrootcert=settings.sslrootcert_path,
            connect_timeout=10,
            tcp_user_timeout=UNANSWERED_BYTES_TIMEOUT_MS,
            options=SESSION,
        )


class FeatureRows:
    """The rows of one feature view in its PostgreSQL source; TypeError for a view of another source."""

    def __init__(self, database: FeatureDatabase, view: FeatureView) -> None:
        source = view.batch_source
        if not isinstance(source, PostgreSQLSource):
            raise TypeError(f"feature view {view.name} is not read from PostgreSQL")
        self._database = database
        self._source = source
        self.time, self.created = source.timestamp_field, source.created_timestamp_column or None
        self.keys = [field.name for field in view.entity_columns]
        self._types = {field.name: field.dtype.to_value_type() for field in view.features}

    def read(self, interval: Interval, resume: Resume | None = None) -> Iterator[pa.RecordBatch]:
        """Yield batches of keys, features, event and created time; one row an entity, ordered by key.

        Of an entity's rows of the interval the one with the greatest times is its newest. While a batch is
        dealt with, the next one is fetched.
        """
        with self._database.cursor() as cursor:
            cursor.adbc_statement.set_options(
                **{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)}
            )
            schema = cursor.adbc_execute_schema(self._query(interval, resume, {}))
            cursor.execute(self._query(interval, resume, self._casts(schema)))
            with cursor.fetch_record_batch() as reader, closing(read_ahead(reader)) as batches:
                yield from batches

    def version(self) -> str | None:
        """Return what changes when the source's table does; None for a source that is no table.

        PostgreSQL counts written rows with a delay of seconds.
        """
        query = sql.SQL(
            "with source as (select to_regclass({}) as root), "
            "parts as (select root as part from source "
            "union select relid from source, pg_partition_tree(root)) "
            "select string_agg(concat_ws(':', oid, relkind, pg_relation_filenode(oid), "
            "pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_updated(oid), "
            "pg_stat_get_tuples_deleted(oid)), ',' order by oid), bool_and(relkind in ('r', 'p', 'm')) "
            "from parts join pg_class on oid = part"
        ).format(sql.Literal(self._source.get_table_query_string()))
        with self._database.cursor() as cursor:
            cursor.execute(query.as_string(None))
            version, is_table = cursor.fetchone()
        return version if is_table else None

    def _casts(self, schema: pa.Schema) -> dict[str, str]:
        return {
            name: CASTS[kind]
            for name, kind in self._types.items()
            if isinstance(schema.field(name).type, pa.BaseExtensionType) and kind in CASTS
        }

    def _query(self, interval: Interval, resume: Resume | None, casts: dict[str, str]) -> str:
        time = sql.Identifier(self.time)
        times = [sql.Identifier(name) for name in (self.time, self.created) if name]
        keys = [self._column(name) for name in self.keys]
        known = [sql.SQL("{} >= {}").format(time, sql.Literal(interval.start))]
        known += [sql.SQL("{} <= {}").format(each, sql.Literal(interval.end)) for each in times]
        if resume is not None:
            later = [sql.SQL("{} > {}").format(each, sql.Literal(resume.until)) for each in times]
            after = sql.SQL("({}) > ({})").format(_listed(keys), _listed(map(sql.Literal, resume.after)))
            known.append(sql.SQL("({})").format(sql.SQL(" or ").join([after, *later])))
        selected = [
            *(self._selected(name, None) for name in self.keys),
            *(self._selected(name, casts.get(name)) for name in self._types),
            *times,
        ]
        order = [*keys, *(sql.SQL("{} desc").format(each) for each in times)]
        query = sql.SQL("select distinct on ({}) {} from {} as source where {} order by {}").format(
            _listed(keys),
            _listed(selected),
            sql.SQL(self._source.get_table_query_string()),
            sql.SQL(" and ").join(known),
            _listed(order),
        )
        return query.as_string(None)

    def _column(self, name: str) -> sql.Identifier:
        """Return the source's name of a key or feature."""
        renamed = {target: column for column, target in (self._source.field_mapping or {}).items()}
        return sql.Identifier(renamed.get(name, name))

    def _selected(self, name: str, cast: str | None) -> sql.Composable:
        column: sql.Composable = self._column(name)
        if cast is not None:
            column = sql.SQL("{}::{}").format(column, sql.SQL(cast))
        return sql.SQL("{} as {}").format(column, sql.Identifier(name))


def _listed(parts: Any) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def read_ahead(reader: pa.RecordBatchReader) -> Generator[pa.RecordBatch, None, None]:
    """Yield a reader's batches that are not empty, each fetched while the one before is dealt with."""

    def fetch() -> pa.RecordBatch | None:
        return next(reader, None)

    with ThreadPoolExecutor(max_workers=1) as executor:
        ahead = executor.submit(fetch)
        while (batch := ahead.result()) is not None:
            ahead = executor.submit(fetch)
            if len(batch):
                yield batch


def last_key(batch: pa.RecordBatch, keys: Sequence[str]) -> tuple[Any, ...]:
    """Return the key of the last row."""
    return tuple(batch[name][-1].as_py() for name in keys)
