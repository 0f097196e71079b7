"""The schema `raw`: its definition, and the lock that lets one loader write at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import psycopg
from psycopg import sql

from data_source_connectors.database_connector import Connection

LOCK_NAME = "feature_store.raw"
LOCK_WAIT_SECONDS = 120


class LoadRunningError(Exception):
    """Another loader has held the raw tables for longer than a load takes."""


@contextmanager
def writing(connection: Connection, *, wait_seconds: int = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold the raw tables, created if need be, against other loaders; LoadRunningError if none lets go."""
    connection.execute(sql.SQL("set lock_timeout = {}").format(sql.Literal(f"{wait_seconds}s")))
    try:
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (LOCK_NAME,))
    except psycopg.errors.LockNotAvailable:
        raise LoadRunningError(f"another load is still running after {wait_seconds} s: try again") from None
    try:
        with connection.transaction():
            connection.execute(_definition())
        yield
    finally:
        if not connection.closed:
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (LOCK_NAME,))


def _definition() -> bytes:
    return resources.files(__package__).joinpath("raw_schema.sql").read_bytes()
