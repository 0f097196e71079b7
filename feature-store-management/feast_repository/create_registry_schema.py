"""Create the PostgreSQL schema that holds Feast's registry; safe to rerun."""

import os

import psycopg
from psycopg import sql

SCHEMA = os.environ.get("FEATURE_STORE_SCHEMA_PREFIX", "") + "feast"


def main() -> None:
    """Create the schema in the database that the FEATURE_STORE_DB_* variables name."""
    connection = psycopg.connect(
        host=os.environ["FEATURE_STORE_DB_HOST"],
        port=os.environ["FEATURE_STORE_DB_PORT"],
        dbname=os.environ["FEATURE_STORE_DB_NAME"],
        user=os.environ["FEATURE_STORE_DB_USER"],
        password=os.environ["FEATURE_STORE_DB_PASSWORD"],
        connect_timeout=10,
        autocommit=True,
    )
    with connection:
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(SCHEMA)))


if __name__ == "__main__":
    main()
