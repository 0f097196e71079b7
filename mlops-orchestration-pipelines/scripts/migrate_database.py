"""Brings Airflow's metadata database to the installed version: `python scripts/migrate_database.py`.

Idempotent. A database that is up to date is recognised without importing Airflow, in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import psycopg2

_DRIVER = "postgresql+psycopg2://"


def ensure_migrated() -> bool:
    """Migrate unless the database already is; return whether there was anything to do.

    Raises SystemExit when no database is configured or it does not answer.
    """
    installed, connection = version("apache-airflow-core"), _connection_url()
    stamp = Path(os.environ["AIRFLOW_HOME"]) / "migrated.json"
    if _read(stamp) == {"airflow": installed, "revision": _revision(connection)}:
        return False
    # Imported late: this alone costs three seconds.
    from airflow import settings  # noqa: PLC0415
    from airflow.utils.db import upgradedb  # noqa: PLC0415

    settings.initialize()
    upgradedb()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"airflow": installed, "revision": _revision(connection)}), encoding="utf-8")
    return True


def _connection_url() -> str:
    url = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")
    if "AIRFLOW_HOME" not in os.environ or not url.startswith(_DRIVER):
        raise SystemExit(
            "AIRFLOW_HOME and AIRFLOW__DATABASE__SQL_ALCHEMY_CONN (of a PostgreSQL) are missing: "
            "load the stack's settings"
        )
    return url.replace(_DRIVER, "postgresql://", 1)


def _revision(url: str) -> str | None:
    """Return the schema revision the database is at, None for an empty one."""
    try:
        connection = psycopg2.connect(url, connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise SystemExit(f"Airflow's database does not answer: {error}") from None
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("select to_regclass('alembic_version') is not null")
            if not (cursor.fetchone() or (False,))[0]:
                return None
            cursor.execute("select version_num from alembic_version")
            row = cursor.fetchone()
            return row[0] if row else None
    finally:
        connection.close()


def _read(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


if __name__ == "__main__":
    print("migrated" if ensure_migrated() else "up to date", file=sys.stderr)
