"""Which text of the models the tables were built by: else rows of two definitions would stand in one table.

An incremental build only adds days, so after a change of a model or a macro the tables are rebuilt. A model
that is new changes nothing of the others; what a seed says is part of the fingerprints of days.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from psycopg import sql

from data_source_connectors.database_connector import Connection


def definitions(project: Path) -> dict[str, str]:
    """Return the SHA-256 of every model's text together with all macros, by name."""
    macros = hashlib.sha256()
    for path in sorted(project.glob("macros/**/*.sql")):
        macros.update(path.read_bytes())
    return {
        path.stem: hashlib.sha256(macros.digest() + path.read_bytes()).hexdigest()
        for path in sorted(project.glob("models/**/*.sql"))
    }


def changed(connection: Connection, prefix: str, now: dict[str, str]) -> list[str]:
    """Return the names whose definition is not the one that the tables were built by.

    All of them where tables stand and nothing is known of their definition.
    """
    schema = sql.Identifier(f"{prefix}intermediate")
    if not _stands(connection, f"{prefix}intermediate.built_days"):
        return []
    if not _stands(connection, f"{prefix}intermediate.built_definitions"):
        return sorted(now)
    rows = connection.execute(sql.SQL("select name, sha256 from {}.built_definitions").format(schema))
    return sorted(name for name, sha256 in rows.fetchall() if now.get(name, sha256) != sha256)


def remember(connection: Connection, prefix: str, now: dict[str, str]) -> None:
    """Note that the tables stand for these definitions."""
    schema = sql.Identifier(f"{prefix}intermediate")
    with connection.transaction(), connection.cursor() as cursor:
        columns = "(name text primary key, sha256 text not null)"
        cursor.execute(sql.SQL("create table if not exists {}.built_definitions " + columns).format(schema))
        cursor.execute(sql.SQL("delete from {}.built_definitions").format(schema))
        insert = sql.SQL("insert into {}.built_definitions values (%s, %s)").format(schema)
        cursor.executemany(insert, list(now.items()))


def _stands(connection: Connection, table: str) -> bool:
    row = connection.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    return bool(row and row[0])
