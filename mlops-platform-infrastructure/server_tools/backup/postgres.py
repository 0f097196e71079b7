"""PostgreSQL: what was committed is in the WAL archive before the client is told; base backups begin it.

The receiver is a synchronous standby: a commit returns once its WAL is on the receiver's disk too. Each
incarnation of the database (system identifier and timeline) has a folder of its own, so that neither an empty
database that took the place of a lost one nor a restored one can write over what an earlier one left.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server_tools.backup import targets, wal
from server_tools.backup.errors import AmbiguousError, BackupError, DamagedError
from server_tools.backup.processes import run
from server_tools.backup.restic import Repository, Snapshot
from server_tools.backup.settings import Settings

ROLE = "backup"
WAIT_SECONDS = 60.0
RECOVERY_SECONDS = 1800.0
_NOTES = "base.json"


def _conninfo(settings: Settings, user: str, **more: str) -> str:
    words = {
        "host": settings.postgres_host, "port": str(settings.postgres_port), "user": user,
        "connect_timeout": "5", "dbname": "postgres", **more,
    }  # fmt: skip
    return " ".join(f"{name}='{value}'" for name, value in words.items())


def _backup_env(settings: Settings) -> dict[str, str]:
    return {"PGPASSWORD": settings.postgres_password}


def _ask(settings: Settings, statement: str) -> str:
    """Return what the superuser's statement gives, rows as lines, columns divided by bars."""
    command = [
        "psql",
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        _conninfo(settings, "postgres"),
        "-c",
        statement,
    ]
    return run(command, env={"PGPASSWORD": settings.superuser_password}).stdout.strip()


def prepare(settings: Settings) -> None:
    """Make commits wait for the receiver; safe to repeat.

    Commits wait only from when the receiver is connected: a first start can't be blocked by its absence.
    """
    _wait(lambda: _ask(settings, "select 1") == "1", "PostgreSQL does not answer")
    _wait(lambda: _receiver_connected(settings), "the WAL receiver does not connect")
    names = settings.synchronous_names.replace("'", "''")
    _ask(settings, f"alter system set synchronous_standby_names = '{names}'")
    _ask(settings, "select pg_reload_conf()")
    print(f"commits wait for: {names}", flush=True)


def _receiver_connected(settings: Settings) -> bool:
    names = _ask(settings, "select application_name from pg_stat_replication").splitlines()
    return settings.replication_slot in names


def _wait(ready: Any, otherwise: str, seconds: float = WAIT_SECONDS) -> None:
    end = time.monotonic() + seconds
    last = ""
    while time.monotonic() < end:
        try:
            if ready():
                return
        except BackupError as error:
            last = f": {error}"
        time.sleep(0.5)
    raise BackupError(otherwise + last)


def incarnation(settings: Settings) -> str:
    """Return the name of the database that answers: its system identifier and timeline."""
    command = ["psql", "-XAtq", "-d", _conninfo(settings, ROLE, replication="true"), "-c", "IDENTIFY_SYSTEM"]
    identifier, timeline = run(command, env=_backup_env(settings)).stdout.strip().split("|")[:2]
    return f"{identifier}-{int(timeline):08X}"


def receive(settings: Settings, heartbeat: Path) -> None:
    """Receive WAL for ever: whichever database answers, into the folder of its incarnation."""
    stopping = False
    receiver: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if receiver:
            receiver.send_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    said = ""
    while not stopping:
        heartbeat.touch()
        try:
            name = incarnation(settings)
            folder = settings.wal / name
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = _conninfo(settings, ROLE, application_name=settings.replication_slot)
            base = ["pg_receivewal", "-d", connection, "-S", settings.replication_slot, "-w"]
            run([*base, "--create-slot", "--if-not-exists"], env=_backup_env(settings))
            print(f"receiving into {folder}", flush=True)
            receiver = subprocess.Popen(
                [*base, "-D", str(folder), "--synchronous", "--no-loop"],
                env={
                    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/18/bin",
                    **_backup_env(settings),
                },
            )
            while receiver.poll() is None:
                heartbeat.touch()
                time.sleep(1)
            said = ""
        except BackupError as error:
            if str(error) != said:
                print(f"waiting: {error}", flush=True)
            said = str(error)
        receiver = None
        if not stopping:
            time.sleep(0.5)


def back_up_base(settings: Settings, repository: Repository) -> dict[str, float]:
    """Take a base backup, verify it against its manifest, and store it."""
    name = incarnation(settings)
    folder = settings.staging / "postgres"
    shutil.rmtree(folder, ignore_errors=True)
    base = folder / "base"
    folder.mkdir(parents=True, mode=0o700)
    run(
        ["pg_basebackup", "-d", _conninfo(settings, ROLE), "-w", "-D", base, "-X", "stream", "-c", "fast",
         "--manifest-checksums=SHA256"],
        env=_backup_env(settings),
    )  # fmt: skip
    run(["pg_verifybackup", "--quiet", base])
    start = _start_segment((base / "backup_label").read_text(encoding="utf-8"))
    notes = {"incarnation": name, "wal": start, "finished": time.time()}
    (folder / _NOTES).write_text(json.dumps(notes), encoding="utf-8")
    stored = repository.store(folder, {"part": "postgres", "incarnation": name, "wal": start})
    shutil.rmtree(folder)
    return stored


def _start_segment(label: str) -> str:
    """Return the first WAL file a base backup needs.

    >>> _start_segment("START WAL LOCATION: 0/2000028 (file 000000010000000000000002)")
    '000000010000000000000002'
    """
    return label.split("(file ")[1].split(")", maxsplit=1)[0]


def back_up_wal(settings: Settings, repository: Repository) -> dict[str, float]:
    """Store what the receiver has, the newest unfinished segment included."""
    if not settings.wal.is_dir() or not any(settings.wal.iterdir()):
        raise BackupError("the WAL receiver has received nothing yet")
    return repository.store(settings.wal, {"part": "wal"})


def drop_old_wal(settings: Settings, repository: Repository) -> int:
    """Delete local WAL that no stored base backup needs; return how many files went."""
    first: dict[str, str] = {}
    for snapshot in repository.snapshots("postgres"):
        name, start = snapshot.tags["incarnation"], snapshot.tags["wal"]
        first[name] = min(first.get(name, start), start)
    dropped = 0
    if not settings.wal.is_dir():
        return 0
    newest = max((path.stat().st_mtime for path in settings.wal.iterdir()), default=0.0)
    for folder in settings.wal.iterdir():
        if folder.name not in first:
            # The newest has no base backup yet; an older one has none any more.
            if folder.stat().st_mtime < newest - settings.base_interval_seconds:
                shutil.rmtree(folder)
            continue
        for path in folder.iterdir():
            if wal.Segment.parse(path.name) and path.name < first[folder.name]:
                path.unlink()
                dropped += 1
    return dropped


def choose_base(bases: list[Snapshot], until: str | None, name: str | None) -> Snapshot:
    """Return the newest base backup before `until` (RFC 3339, UTC), of incarnation `name` where one is given.

    Raises AmbiguousError where there are some of more than one database: an empty one that was started where
    the lost one had stood would otherwise be restored in its place.
    """
    fitting = [each for each in bases if (until is None or each.time < until)]
    if name:
        fitting = [each for each in fitting if each.tags["incarnation"] == name]
    if not fitting:
        raise BackupError("there is no base backup" + (f" before {until}" if until else ""))
    identifiers = {each.tags["incarnation"].split("-")[0] for each in fitting}
    if len(identifiers) > 1 and not name:
        raise AmbiguousError(
            "there are base backups of more than one database, say which with --incarnation: "
            + ", ".join(sorted({f"{each.tags['incarnation']} ({each.time[:19]})" for each in fitting}))
        )
    return fitting[-1]


def restore(settings: Settings, repository: Repository, wanted: targets.Wanted) -> dict[str, Any]:
    """Restore the newest base backup and all WAL into the target, recover it, and leave a database at rest.

    Nothing is handed over before every hash, every WAL record and the recovery itself were right.
    """
    began = time.monotonic()
    snapshot = choose_base(repository.snapshots("postgres"), wanted.until, wanted.incarnation)
    name = snapshot.tags["incarnation"]
    work = targets.work_folder(wanted)
    base = repository.restore(snapshot, work / "repository", settings.staging / "postgres") / "base"
    run(["pg_verifybackup", "--quiet", "--no-parse-wal", base])
    live = _live_or_stored(settings, repository, name, work)
    files, end = _gather(live, snapshot.tags["wal"], work / "archive")
    _copy_histories(settings.wal, work / "archive")
    recovered = _recover(base, work, wanted.until, int(name.split("-")[1], 16))
    aside = targets.hand_over(work, base, wanted.target)
    return {
        "base": snapshot.time, "incarnation": name, "wal_files": files,
        "wal_end": f"{end >> 32:X}/{end & 0xFFFFFFFF:X}", "last_commit_replayed": recovered,
        "put_aside": str(aside) if aside else None, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _live_or_stored(settings: Settings, repository: Repository, name: str, work: Path) -> Path:
    """Return a folder with the WAL of an incarnation: the receiver's own, else the newest stored one."""
    live = settings.wal / name
    if live.is_dir():
        return live
    for stored in reversed(repository.snapshots("wal")):
        folder = repository.restore(stored, work / "wal", live)
        if folder.is_dir():
            return folder
    raise DamagedError(f"neither the receiver nor the repository holds WAL of {name}")


def _gather(source: Path, start: str, archive: Path) -> tuple[int, int]:
    """Copy the WAL from the file `start` on into `archive`; return how many files, and where the log ends.

    Raises DamagedError for a file that is missing, cut or damaged, naming it.
    """
    beginning = wal.Segment.parse(start)
    if beginning is None:
        raise DamagedError(f"{start} is no WAL file")
    names = wal.needed([path.name for path in source.iterdir()], beginning)
    wal.check_sizes([(str(source / name), (source / name).stat().st_size) for name in names])
    archive.mkdir(mode=0o700)
    copies = [archive / name.removesuffix(".partial") for name in names]
    for name, copy in zip(names, copies, strict=True):
        shutil.copyfile(source / name, copy)
    words = ["--quiet", "--path", str(archive), copies[0].name, copies[-1].name]
    said = run(["pg_waldump", *words], check=False).stderr
    return len(copies), wal.check_end(copies, said)


def _copy_histories(archives: Path, archive: Path) -> None:
    """Let the recovery know every timeline that exists, so that it begins one of its own."""
    for folder in archives.iterdir() if archives.is_dir() else ():
        for history in folder.glob("*.history"):
            shutil.copyfile(history, archive / history.name)


def _recover(base: Path, work: Path, until: str | None, timeline: int) -> str:
    """Let PostgreSQL replay the archive and stop it again; return the time of the last commit replayed."""
    kept = (base / "postgresql.auto.conf").read_text(encoding="utf-8")
    options = {
        "restore_command": f'cp "{work}/archive/%f" "%p"',
        "recovery_target_timeline": str(timeline),
        "recovery_target_action": "promote",
        **({"recovery_target_time": until} if until else {}),
    }
    lines = "".join(f"{key} = '{value}'\n" for key, value in options.items())
    (base / "postgresql.auto.conf").write_text(kept + lines, encoding="utf-8")
    (base / "recovery.signal").touch()
    base.chmod(0o700)
    with _server(base, work):
        ended = "select pg_is_in_recovery()"
        log = work / "log"
        _wait(lambda: _local(work, ended) == "f", f"the recovery does not end, see {log}", RECOVERY_SECONDS)
        reached = _local(work, "select pg_last_xact_replay_timestamp()")
        _local(work, "checkpoint")
    (base / "postgresql.auto.conf").write_text(kept, encoding="utf-8")
    return reached


@contextlib.contextmanager
def _server(base: Path, work: Path) -> Iterator[None]:
    """Run PostgreSQL on a socket of its own, which nobody else reaches, without waiting for a receiver."""
    hba = work / "pg_hba.conf"
    hba.write_text("local all all trust\n", encoding="utf-8")
    log = work / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            ["postgres", "-D", str(base), "-c", "listen_addresses=", "-c", f"unix_socket_directories={work}",
             "-c", "synchronous_standby_names=", "-c", f"hba_file={hba}", "-c", "archive_mode=off",
             "-c", "hot_standby=off"],
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield
        if server.poll() is not None:
            raise BackupError(f"PostgreSQL ended: {log.read_text(errors='replace')[-1500:]}")
    except BackupError as error:
        raise BackupError(f"{error}\n{log.read_text(errors='replace')[-1500:]}") from None
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait(120)


def _local(sockets: Path, statement: str) -> str:
    command = ["psql", "-XAtq", "-h", str(sockets), "-U", "postgres", "-d", "postgres", "-c", statement]
    return run(command).stdout.strip()
