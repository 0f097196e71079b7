"""One builder at a time: an advisory lock in the database that a dbt build and a backfill both hold.

Two builds of the same tables would delete and insert each other's rows. The lock belongs to a session, so it
is free again the moment its holder ends, however it ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from data_source_connectors.database_connector import Connection, DatabaseSettings, connect

POLL_SECONDS = 0.5


class BuildRunningError(Exception):
    """Another build of the same tables holds the lock; the message says which, and since when."""


class BuildSettings(BaseSettings):
    """Which tables are built (`FEATURE_STORE_SCHEMA_PREFIX`) and how long to wait for another build of
    them."""

    model_config = SettingsConfigDict(env_prefix="FEATURE_STORE_", frozen=True)

    schema_prefix: str = Field(default="", pattern="^([a-z][a-z0-9_]*)?$")
    build_lock_wait_seconds: float = Field(default=600.0, ge=0)


@contextmanager
def build_lock(database: DatabaseSettings, build: BuildSettings, *, builder: str) -> Iterator[Connection]:
    """Hold the lock of the tables with that prefix; yields the connection that holds it.

    Raises BuildRunningError where another build does not end in time, DatabaseUnavailableError without a
    database.
    """
    key = f"feature_store.build.{build.schema_prefix}"
    with connect(database, application_name=builder) as connection:
        deadline = time.monotonic() + build.build_lock_wait_seconds
        said = False
        while not _try_lock(connection, key):
            if time.monotonic() >= deadline:
                raise BuildRunningError(
                    f"the feature tables are being built by {_holder(connection, key)}; waited"
                    f" {build.build_lock_wait_seconds:g} s (FEATURE_STORE_BUILD_LOCK_WAIT_SECONDS)"
                )
            if not said:
                print(
                    f"waiting: the tables are built by {_holder(connection, key)}",
                    file=sys.stderr,
                    flush=True,
                )
                said = True
            time.sleep(POLL_SECONDS)
        yield connection


def _try_lock(connection: Connection, key: str) -> bool:
    row = connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone()
    return bool(row and row[0])


def _holder(connection: Connection, key: str) -> str:
    """Return who holds the lock, for people; the holder may have let go by now."""
    row = connection.execute(
        "select a.application_name, a.pid, a.backend_start"
        " from pg_locks l join pg_stat_activity a using (pid) cross join hashtextextended(%s, 0) as key"
        " where l.locktype = 'advisory' and l.granted and l.objsubid = 1"
        " and l.classid::bigint = (key >> 32) & 4294967295 and l.objid::bigint = key & 4294967295",
        (key,),
    ).fetchone()
    if row is None:
        return "another build that has just ended"
    return f"{row[0]} (session {row[1]}, since {row[2]:%Y-%m-%d %H:%M:%S} UTC)"
