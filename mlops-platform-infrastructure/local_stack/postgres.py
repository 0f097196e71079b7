"""PostgreSQL from its wheel: data folder, settings for this machine, roles and databases."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from local_stack import wheels

SUPERUSER = "postgres"
DATABASES = ("feature_store", "decisions", "mlflow", "airflow")
MIB = 1024 * 1024
NOBODY = "65534"


class PostgresError(RuntimeError):
    """PostgreSQL can't be set up here."""


def unprivileged_prefix() -> list[str]:
    """Return what to put before a PostgreSQL command: it refuses to run as root.

    Root enters a user namespace in which it has an ordinary id (files stay root's outside); where that is
    forbidden the command runs as `nobody`, with the one capability to reach a folder below a closed home.
    """
    if os.geteuid() != 0:
        return []
    namespace = ["unshare", "-U", "--map-user=1000", "--map-group=1000"]
    if shutil.which("unshare") and _works(namespace):
        return namespace
    nobody = [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
        "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
    ]  # fmt: skip
    if shutil.which("setpriv") and _works(nobody):
        return nobody
    raise PostgresError(
        "PostgreSQL refuses to run as root, and neither `unshare -U` nor `setpriv` (util-linux) works here:"
        " run as an ordinary user"
    )


def _works(prefix: list[str]) -> bool:
    return subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0


def tuning(memory_bytes: int, cpus: int) -> dict[str, str]:
    """Return server settings for an analytic load, from the machine's memory and processors, with caps.

    Durability stays on (fsync, synchronous_commit, full_page_writes); what is given up is replication
    (wal_level minimal lets COPY into a table of the same transaction skip the log).
    """
    mib = memory_bytes // MIB
    return {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "max_connections": "100",
        "shared_buffers": f"{min(512, max(64, mib // 32))}MB",
        "effective_cache_size": f"{max(128, mib // 2)}MB",
        "work_mem": f"{min(64, max(8, mib // 256))}MB",
        "maintenance_work_mem": f"{min(256, max(32, mib // 64))}MB",
        "max_wal_size": "4GB",
        "min_wal_size": "256MB",
        "checkpoint_timeout": "15min",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "wal_compression": "on",
        "synchronous_commit": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "max_worker_processes": str(max(4, cpus + 2)),
        "max_parallel_workers": str(cpus),
        "max_parallel_workers_per_gather": str(max(1, cpus // 2)),
        "max_parallel_maintenance_workers": str(max(1, cpus // 2)),
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_min_duration_statement": "10s",
    }


def prepare(data_dir: Path, superuser_password: str) -> None:
    """Create the data folder once, and write this machine's settings into it every time."""
    prefix = unprivileged_prefix()
    if not (data_dir / "PG_VERSION").exists():
        _initdb(prefix, data_dir, superuser_password)
    settings = tuning(psutil.virtual_memory().total, psutil.cpu_count() or 1)
    text = "".join(f"{key} = '{value}'\n" for key, value in settings.items())
    (data_dir / "stack.conf").write_text(text, encoding="utf-8")
    _remove_stale_pid_file(data_dir)
    _own(prefix, data_dir)


def _initdb(prefix: list[str], data_dir: Path, superuser_password: str) -> None:
    """Make the data folder beside its place and move it there, so that a half-made one is never used."""
    fresh = data_dir.with_name(data_dir.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", suffix=".pw", dir=fresh.parent) as password_file:
        password_file.write(superuser_password + "\n")
        password_file.flush()
        if prefix and prefix[0] == "setpriv":
            os.chown(fresh, int(NOBODY), int(NOBODY))
        command = [
            *prefix, str(wheels.postgres("initdb")), "-D", str(fresh), "-U", SUPERUSER, "-E", "UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8", "-A", "scram-sha-256",
            f"--pwfile={password_file.name}", "--data-checksums",
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise PostgresError(f"initdb failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    with (fresh / "postgresql.conf").open("a", encoding="utf-8") as stream:
        stream.write("\ninclude 'stack.conf'\n")
    fresh.rename(data_dir)


def _own(prefix: list[str], data_dir: Path) -> None:
    """Give the data folder to the account the server runs as, when that is another than ours."""
    if os.geteuid() != 0:
        return
    owner = int(NOBODY) if prefix and prefix[0] == "setpriv" else 0
    if data_dir.stat().st_uid == owner and (data_dir / "stack.conf").stat().st_uid == owner:
        return
    for folder, _, files in os.walk(data_dir):
        for path in [Path(folder), *(Path(folder, name) for name in files)]:
            os.chown(path, owner, owner, follow_symlinks=False)


def _remove_stale_pid_file(data_dir: Path) -> None:
    """Remove a pid file left by a killed server whose process id belongs to another program or a zombie.

    PostgreSQL removes the file itself when no process has that id; it gives up when any has. The caller has
    ended every process of the old server, so nothing can still write to the data.
    """
    pid_file = data_dir / "postmaster.pid"
    try:
        pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    try:
        ours = psutil.Process(pid).cwd() == str(data_dir)
    except (psutil.ZombieProcess, psutil.AccessDenied):
        ours = False  # our own server would live, and let us look
    except psutil.NoSuchProcess:
        return
    if not ours:
        pid_file.unlink()


def command(data_dir: Path, port: int) -> list[str]:
    """Return the server's command line."""
    return [*unprivileged_prefix(), str(wheels.postgres("postgres")), "-D", str(data_dir), "-p", str(port)]


def create_databases(port: int, superuser_password: str, passwords: Mapping[str, str]) -> None:
    """Create one role and one database of the same name each, closed to the others; safe to repeat."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(
        host="127.0.0.1",
        port=port,
        user=SUPERUSER,
        password=superuser_password,
        dbname="postgres",
        autocommit=True,
    ) as connection:
        roles = {row[0] for row in connection.execute("select rolname from pg_roles")}
        databases = {row[0] for row in connection.execute("select datname from pg_database")}
        for name in DATABASES:
            identifier = sql.Identifier(name)
            if name not in roles:
                statement = sql.SQL("create role {} login password {}")
                connection.execute(statement.format(identifier, sql.Literal(passwords[name])))
            if name not in databases:
                connection.execute(sql.SQL("create database {} owner {}").format(identifier, identifier))
                connection.execute(sql.SQL("revoke all on database {} from public").format(identifier))
