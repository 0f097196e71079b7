"""The raw tables: where they are, how they are defined, and the lock that lets one loader write at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import psycopg
from psycopg import sql
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from data_source_connectors.database_connector import Connection, DatabaseSettings, connect

LOCK_WAIT_SECONDS = 120


class LoadRunningError(Exception):
    """Another loader has held the raw tables for longer than a load takes."""


class RawSettings(BaseSettings):
    """The schema of the raw tables: `raw`, or what `FEATURE_STORE_RAW_SCHEMA` says for a rehearsal."""

    model_config = SettingsConfigDict(env_prefix="FEATURE_STORE_", frozen=True)

    raw_schema: str = Field(default="raw", pattern="^[a-z][a-z0-9_]{0,62}$")


@contextmanager
def open_raw_tables(
    database: DatabaseSettings,
    raw: RawSettings,
    *,
    application_name: str,
    wait_seconds: int = LOCK_WAIT_SECONDS,
) -> Iterator[Connection]:
    """Yield a connection that alone writes the raw tables, created if need be and first in its search path.

    Raises DatabaseUnavailableError, or LoadRunningError where another loader does not let go in time.
    """
    with connect(database, application_name=application_name) as connection:
        connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{wait_seconds}s")))
        try:
            # The lock ends with the session.
            connection.execute(
                "select pg_advisory_lock(hashtextextended(%s, 0))", (f"feature_store.{raw.raw_schema}",)
            )
        except psycopg.errors.LockNotAvailable:
            raise LoadRunningError(f"another load still runs after {wait_seconds} s: try again") from None
        schema = sql.Identifier(raw.raw_schema)
        with connection.transaction():
            connection.execute(sql.SQL("create schema if not exists {}").format(schema))
            connection.execute(sql.SQL("set search_path to {}").format(schema))
            connection.execute(resources.files(__package__).joinpath("raw_schema.sql").read_bytes())
        yield connection
