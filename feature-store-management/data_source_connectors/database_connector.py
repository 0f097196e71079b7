"""Connections to the feature store's PostgreSQL, and bulk reads and writes on them.

DatabaseUnavailableError is the one error of connecting; once a connection stands, errors are `psycopg.Error`.
Arrow batches (`PostgresSource`, `read_query_batches`) are read with ADBC on a connection of their own, and
their errors are SourceError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, LiteralString

import adbc_driver_manager
import psycopg
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from adbc_driver_postgresql import dbapi as adbc
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from .batch_source import DEFAULT_BATCH_ROWS, sliced
from .binary_copy import Column, encode
from .errors import SourceDataError, SourceError, SourceRefusedError, SourceUnavailableError, masked
from .retry_policy import RetryPolicy

Connection = psycopg.Connection[tuple[Any, ...]]

UNANSWERED_BYTES_TIMEOUT_MS = 30_000
# Of what PostgreSQL has sent, as much is held at once.
BATCH_BYTES = 4 * 2**20
# Connecting changes nothing, so it may be tried again.
CONNECT_RETRIES = RetryPolicy(attempts=3, first_wait_seconds=0.2, longest_wait_seconds=5.0)


class DatabaseUnavailableError(SourceUnavailableError):
    """PostgreSQL can't be reached or refuses the login; the message names the address, never the password."""


class DatabaseSettings(BaseSettings):
    """Where the feature store's database is, from the environment variables `FEATURE_STORE_DB_*`."""

    model_config = SettingsConfigDict(env_prefix="FEATURE_STORE_DB_", frozen=True, hide_input_in_errors=True)

    host: str = Field(min_length=1)
    port: int = Field(default=5432, ge=1, le=65535)
    name: str = Field(min_length=1)
    user: str = Field(min_length=1)
    password: SecretStr
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    sslrootcert: Path | None = None
    connect_timeout_seconds: int = Field(default=10, ge=2)
    statement_timeout_seconds: int = Field(default=300, ge=1)

    @property
    def address(self) -> str:
        """The address as shown to people: user, host, port and database."""
        return f"{self.user}@{self.host}:{self.port}/{self.name}"


@contextmanager
def connect(
    settings: DatabaseSettings, *, application_name: str, retries: RetryPolicy = CONNECT_RETRIES
) -> Iterator[Connection]:
    """Yield a connection in autocommit mode (group statements with `connection.transaction()`), in UTC.

    A server that can't be reached is asked again, one that refuses the login is not. Raises
    DatabaseUnavailableError where no connection can be made.
    """
    connection = retries.call(
        lambda: _connect_once(settings, application_name), what=f"PostgreSQL {settings.address}"
    )
    with connection:
        yield connection


def _connect_once(settings: DatabaseSettings, application_name: str) -> Connection:
    try:
        return psycopg.connect(_conninfo(settings, application_name), autocommit=True)
    except psycopg.Error as error:
        # Without the cause: its frames and its connection hold the password.
        raise DatabaseUnavailableError(
            _no_connection(settings, error), retryable=not _asked_for_the_password(error)
        ) from None


def _asked_for_the_password(error: psycopg.Error) -> bool:
    """Return whether the server answered and got as far as the login; its refusal has no code of its own."""
    return error.pgconn is not None and (error.pgconn.used_password or error.pgconn.needs_password)


def _conninfo(settings: DatabaseSettings, application_name: str) -> str:
    return make_conninfo(
        host=settings.host,
        port=settings.port,
        dbname=settings.name,
        user=settings.user,
        password=settings.password.get_secret_value(),
        sslmode=settings.sslmode,
        sslrootcert=str(settings.sslrootcert) if settings.sslrootcert else None,
        connect_timeout=settings.connect_timeout_seconds,
        tcp_user_timeout=UNANSWERED_BYTES_TIMEOUT_MS,
        application_name=application_name,
        options=f"-c statement_timeout={settings.statement_timeout_seconds}s -c timezone=UTC",
    )


def _no_connection(settings: DatabaseSettings, error: Exception) -> str:
    reason = masked(error, [settings.password.get_secret_value()])
    return f"no connection to PostgreSQL {settings.address}: {reason}"


def copy_columns(connection: Connection, table: str, columns: Sequence[Column]) -> None:
    """Append the columns' rows to a table of the search path by binary COPY."""
    statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(
        sql.Identifier(table), sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(encode(columns))


def copy_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Append rows of Python values (None is null) to a table of the search path by text COPY."""
    statement = sql.SQL("copy {} ({}) from stdin").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def read_chunks(
    connection: Connection,
    query: LiteralString | sql.Composed,
    parameters: Sequence[object] = (),
    *,
    chunk_rows: int = 50_000,
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the query's rows, all of one snapshot, in lists of at most `chunk_rows` rows."""
    with connection.transaction(), connection.cursor(name="read_chunks") as cursor:
        cursor.execute(query, parameters)
        while chunk := cursor.fetchmany(chunk_rows):
            yield chunk


@dataclass(frozen=True)
class PostgresSource:
    """A PostgreSQL database whose tables are read as record batches."""

    settings: DatabaseSettings
    retries: RetryPolicy = CONNECT_RETRIES

    def read_batches(
        self, item: str, *, columns: Sequence[str] | None = None, batch_rows: int = DEFAULT_BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of `table` or `schema.table`, all of one snapshot (see BatchSource)."""
        parts = item.split(".")
        if not all(parts) or len(parts) > 2:
            raise SourceRefusedError(f"{item!r} is no name of a table: write table or schema.table")
        wanted = sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("*")
        query = sql.SQL("select {} from {}").format(wanted, sql.Identifier(*parts))
        return read_query_batches(self.settings, query, batch_rows=batch_rows, retries=self.retries)


def read_query_batches(
    settings: DatabaseSettings,
    query: LiteralString | sql.Composed,
    *,
    batch_rows: int = DEFAULT_BATCH_ROWS,
    retries: RetryPolicy = CONNECT_RETRIES,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a query (values in it as `sql.Literal`), all of one snapshot, as record batches.

    The rows stream, so a batch may be smaller than `batch_rows`. `timestamptz` comes in UTC, `numeric` as
    exact text. Raises SourceError; what was yielded before a failure is to be thrown away.
    """
    application_name = "read_query_batches"
    # ADBC's driver tells a refused login and an unreachable server apart no better than by their text.
    with connect(settings, application_name=application_name, retries=retries):
        pass
    statement = query if isinstance(query, str) else query.as_string()
    try:
        with (
            adbc.connect(_conninfo(settings, application_name)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.adbc_statement.set_options(
                **{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)}
            )
            cursor.execute(statement)
            reader = cursor.fetch_record_batch()
            empty = True
            for batch in filter(len, reader):
                empty = False
                yield from sliced(_plain(batch), batch_rows)
            if empty:
                yield _plain(pa.RecordBatch.from_pylist([], schema=reader.schema))
    except (adbc_driver_manager.Error, OSError) as error:
        raise _read_error(settings, error) from None


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with plain text where the driver knows no type, and without the driver's notes."""
    arrays = [
        column.storage if isinstance(column.type, pa.OpaqueType) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _read_error(settings: DatabaseSettings, error: Exception) -> SourceError:
    message = f"PostgreSQL {settings.address}: {masked(error, [settings.password.get_secret_value()])}"
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("42"):  # syntax error or access rule violation: no such table, no right to read it
        return SourceRefusedError(message)
    if state.startswith("22"):  # data exception: a value that the query can't take
        return SourceDataError(message)
    return SourceUnavailableError(message, retryable=False)
