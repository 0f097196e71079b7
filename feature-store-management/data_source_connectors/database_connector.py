"""Connections to the feature store's PostgreSQL, and bulk reads and writes on them.

DatabaseUnavailableError is the one error of its own; once a connection stands, errors are `psycopg.Error`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import sql
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from .binary_copy import Column, encode

Connection = psycopg.Connection[tuple[Any, ...]]

UNANSWERED_BYTES_TIMEOUT_MS = 30_000


class DatabaseUnavailableError(Exception):
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
    connect_timeout_seconds: int = Field(default=10, ge=2)
    statement_timeout_seconds: int = Field(default=300, ge=1)

    @property
    def address(self) -> str:
        """The address as shown to people: user, host, port and database."""
        return f"{self.user}@{self.host}:{self.port}/{self.name}"


@contextmanager
def connect(settings: DatabaseSettings, *, application_name: str) -> Iterator[Connection]:
    """Yield a connection in autocommit mode (group statements with `connection.transaction()`), in UTC.

    Raises DatabaseUnavailableError where none can be made.
    """
    password = settings.password.get_secret_value()
    try:
        connection = psycopg.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.name,
            user=settings.user,
            password=password,
            sslmode=settings.sslmode,
            connect_timeout=settings.connect_timeout_seconds,
            tcp_user_timeout=UNANSWERED_BYTES_TIMEOUT_MS,
            application_name=application_name,
            options=f"-c statement_timeout={settings.statement_timeout_seconds}s -c timezone=UTC",
            autocommit=True,
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        if password:
            reason = reason.replace(password, "***")
        # Without the cause: its frames and its connection hold the password.
        raise DatabaseUnavailableError(f"no connection to PostgreSQL {settings.address}: {reason}") from None
    with connection:
        yield connection


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
