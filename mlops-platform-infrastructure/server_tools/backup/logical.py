"""`python -m server_tools.backup.logical`: a logical backup of MLflow's database.

The registry can be read, and restored alone, without the cluster. `pg_dump` and a count of every table see
the same snapshot of the database; the archive is then read back and its rows are counted. It is kept
encrypted: as a version in a restic repository where restic is installed (the servers' image), as a file
encrypted with age where it is not (the embedded stack).
"""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from server_tools.backup.errors import BackupError, DamagedError
from server_tools.backup.processes import run

KEEP = 14
# psql runs what this returns (gexec): one count a table.
_COUNTS = """
select format('select %L || ''|'' || count(*) from %1$s', format('%I.%I', schemaname, tablename))
from pg_tables where schemaname not in ('pg_catalog', 'information_schema')
"""


def back_up_mlflow(environ: Mapping[str, str]) -> int:
    """Dump, verify and keep; print what was kept. Raises BackupError where the dump is not whole."""
    began = time.monotonic()
    connection = _connection(environ)
    folder = _folder(environ)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = f"mlflow-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.dump"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".dumping-") as scratch:
        dump = Path(scratch, name)
        expected = _dump(connection, dump)
        found = rows_of(_restored_text(connection, dump))
        if found != expected:
            wrong = sorted(table for table in expected if found.get(table) != expected[table])
            raise DamagedError(f"the dump does not hold what the database held: {', '.join(wrong)}")
        kept = _keep(environ, folder, dump)
    print(
        f"mlflow-db {len(expected)} tables, {sum(expected.values())} rows verified, {kept}, "
        f"{time.monotonic() - began:.1f} s"
    )
    return 0


def _connection(environ: Mapping[str, str]) -> dict[str, str]:
    names = {
        "HOST": "PGHOST",
        "PORT": "PGPORT",
        "NAME": "PGDATABASE",
        "USER": "PGUSER",
        "PASSWORD": "PGPASSWORD",
    }
    missing = [f"MLFLOW_DB_{name}" for name in names if not environ.get(f"MLFLOW_DB_{name}")]
    if missing:
        raise BackupError(f"not set: {', '.join(missing)}")
    return {theirs: environ[f"MLFLOW_DB_{ours}"] for ours, theirs in names.items()}


def _folder(environ: Mapping[str, str]) -> Path:
    if named := environ.get("MLFLOW_BACKUP_DIR"):
        return Path(named)
    if not environ.get("DATA_DIR"):
        raise BackupError("neither MLFLOW_BACKUP_DIR nor DATA_DIR is set")
    return Path(environ["DATA_DIR"]) / "backup" / "mlflow-db"


def _program(name: str) -> str:
    """Return a program of PostgreSQL: the image's, else that of the embedded stack's package."""
    found = shutil.which(name)
    # A client must not be older than its server; a machine's own may be.
    if found and shutil.which("pg_receivewal"):
        version = run([found, "--version"]).stdout.split()[2]
        if int(version.split(".")[0]) >= 18:
            return found
    try:
        return str(importlib.import_module("local_stack.wheels").postgres(name))
    except ImportError:
        raise BackupError(f"{name} of PostgreSQL 18 or later is not here") from None


def _dump(connection: Mapping[str, str], dump: Path) -> dict[str, int]:
    """Write the dump and return the rows of every table in the very snapshot it was taken of."""
    session = subprocess.Popen(
        [_program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1"],
        env={**os.environ, **connection}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if session.stdin is None or session.stdout is None or session.stderr is None:
        raise BackupError("psql has no pipes")
    try:
        session.stdin.write(
            "begin isolation level repeatable read read only;\nselect pg_export_snapshot();\n"
        )
        session.stdin.flush()
        snapshot = session.stdout.readline().strip()
        if not snapshot:
            raise BackupError(f"MLflow's database can't be read: {session.stderr.read().strip()[-500:]}")
        command = [_program("pg_dump"), "--format=custom", "--no-owner", f"--snapshot={snapshot}"]
        run([*command, "--file", str(dump)], env=connection)
        os.chmod(dump, 0o600)
        counted, said = session.communicate(f"{_COUNTS} \\gexec\ncommit;\n")
    finally:
        session.kill()
        session.wait()
    if session.returncode not in (0, -9) or not counted.strip():
        raise BackupError(f"the rows could not be counted: {said.strip()[-500:]}")
    pairs = (line.rsplit("|", 1) for line in counted.splitlines() if "|" in line)
    return {table: int(rows) for table, rows in pairs}


def _restored_text(connection: Mapping[str, str], dump: Path) -> Iterable[str]:
    """Yield the lines that a restore of the dump would run; raises DamagedError where it can't be read."""
    reader = subprocess.Popen(
        [_program("pg_restore"), "--file=-", str(dump)],
        env={**os.environ, **connection}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if reader.stdout is None or reader.stderr is None:
        raise BackupError("pg_restore has no pipes")
    yield from reader.stdout
    said = reader.stderr.read()
    if reader.wait() != 0:
        raise DamagedError(f"{dump.name} can't be read back: {said.strip()[-500:]}")


def rows_of(lines: Iterable[str]) -> dict[str, int]:
    r"""Return how many rows each table gets from the text of a dump.

    >>> rows_of(["COPY public.runs (a) FROM stdin;\n", "1\n", "2\n", "\\.\n", "\n"])
    {'public.runs': 2}
    """
    found: dict[str, int] = {}
    table = ""
    for line in lines:
        if table:
            if line.rstrip("\n") == "\\.":
                table = ""
            else:
                found[table] += 1
        elif line.startswith("COPY ") and line.rstrip().endswith(" FROM stdin;"):
            table = line.split(" ", 2)[1]
            found[table] = 0
    return found


def _keep(environ: Mapping[str, str], folder: Path, dump: Path) -> str:
    """Keep the dump encrypted and drop versions beyond the last ones; return what was done."""
    size = dump.stat().st_size
    if shutil.which("restic"):
        password = environ.get("MLFLOW_BACKUP_PASSWORD") or _own(folder, "password", secrets.token_urlsafe)
        env = {
            "RESTIC_REPOSITORY": str(folder / "repository"), "RESTIC_PASSWORD": password,
            "RESTIC_CACHE_DIR": str(dump.parent / "cache"),
        }  # fmt: skip
        if not (folder / "repository" / "config").exists():
            run(["restic", "--quiet", "init"], env=env)
        # The same name every day: a version of one file.
        plain = dump.rename(dump.with_name("mlflow.dump"))
        command = ["restic", "--quiet", "backup", "--host", "mlops", "--tag", "part=mlflow-db", "--stdin"]
        with plain.open("rb") as stream:
            done = subprocess.run(
                [*command, "--stdin-filename", "mlflow.dump"], stdin=stream, env={**os.environ, **env},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            raise BackupError(f"restic could not store the dump: {done.stderr.strip()[-500:]}")
        run(["restic", "--quiet", "forget", "--keep-last", str(KEEP), "--prune"], env=env)
        run(["restic", "--quiet", "check", "--read-data"], env=env)
        return f"{size} bytes as a version in {folder / 'repository'}"
    sealed = folder / f"{dump.name}.age"
    seal(dump, sealed, _own(folder, "key", new_key))
    for old in sorted(folder.glob("mlflow-*.dump.age"))[:-KEEP]:
        old.unlink()
    return f"{size} bytes as {sealed}"


def _own(folder: Path, name: str, make: Callable[[], str]) -> str:
    """Return the secret beside the dumps, made once: the embedded stack's database lies there too."""
    path = folder / name
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(make())
    return path.read_text(encoding="utf-8").strip()


def new_key() -> str:
    """Return a new age identity."""
    return str(importlib.import_module("pyrage").x25519.Identity.generate())


def seal(dump: Path, sealed: Path, key: str) -> None:
    """Encrypt `dump` with age into `sealed`, which appears once it can be decrypted to the same bytes."""
    pyrage = importlib.import_module("pyrage")
    identity = pyrage.x25519.Identity.from_str(key)
    content = dump.read_bytes()
    encrypted = pyrage.encrypt(content, [identity.to_public()])
    if hashlib.sha256(pyrage.decrypt(encrypted, [identity])).digest() != hashlib.sha256(content).digest():
        raise DamagedError(f"{sealed} would not decrypt to the dump")
    new = sealed.with_name(f".{sealed.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(encrypted)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, sealed)


def unseal(sealed: Path, key: str) -> bytes:
    """Return the dump in a sealed file; raises DamagedError where it is not what was written."""
    pyrage = importlib.import_module("pyrage")
    try:
        content: bytes = pyrage.decrypt(sealed.read_bytes(), [pyrage.x25519.Identity.from_str(key)])
    except pyrage.DecryptError as error:
        raise DamagedError(f"{sealed} is damaged or the key is another: {error}") from None
    return content


def main() -> int:
    """Run the command line, which takes nothing but settings."""
    try:
        return back_up_mlflow(os.environ)
    except (BackupError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
