"""A connection to PostgreSQL with nothing but psycopg.

`data_source_connectors` loads Arrow and pandas for its bulk reads; the registry has to stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Connection = psycopg.Connection[tuple[Any, ...]]


class DatabaseSettings(BaseSettings):
    """Where the feature store's database is, from the environment variables `FEATURE_STORE_DB_*`."""

    model_config = SettingsConfigDict(env_prefix="FEATURE_STORE_DB_", frozen=True, hide_input_in_errors=True)

    host: str = Field(min_length=1)
    port: int = Field(default=5432, ge=1, le=65535)
    name: str = Field(min_length=1)
    user: str = Field(min_length=1)
    password: SecretStr


@contextmanager
def connect(
    settings: DatabaseSettings, schema: str | None = None, application_name: str = "schema_registry"
) -> Iterator[Connection]:
    """Yield a connection in autocommit mode, `schema` alone in its search path; may raise psycopg.Error."""
    with psycopg.connect(
        host=settings.host,
        port=settings.port,
        dbname=settings.name,
        user=settings.user,
        password=settings.password.get_secret_value(),
        connect_timeout=5,
        application_name=application_name,
        options="-c statement_timeout=30s -c lock_timeout=20s",
        autocommit=True,
    ) as connection:
        if schema is not None:
            connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(schema)))
        yield connection
