"""What the containers of `mlops/backup` run: `python3 -m server_tools.backup.agent VERB`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from server_tools.backup import metrics, parts, postgres, redis_stream
from server_tools.backup.errors import BackupError
from server_tools.backup.restic import Repository
from server_tools.backup.settings import PARTS, Settings
from server_tools.backup.targets import Wanted

HEARTBEAT = Path("/tmp/heartbeat")  # noqa: S108 - the container's own, and read by its healthcheck
HEARTBEAT_SECONDS = 60.0
RETRY_SECONDS = 60.0
FIRST_SECONDS = 120.0
MB = 1e6
Job = Callable[[], dict[str, float]]


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Let one backup or restore run at a time: they share the staging folder and the repository."""
    settings.data.mkdir(parents=True, exist_ok=True)
    with (settings.data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _jobs(settings: Settings, repository: Repository, *, base: bool) -> Iterator[tuple[str, Job]]:
    for part in settings.parts:
        if part == "postgres":
            if base:
                yield "postgres", lambda: postgres.back_up_base(settings, repository)
            yield "wal", lambda: postgres.back_up_wal(settings, repository)
        elif part == "redis":
            yield "redis", lambda: parts.back_up_redis(settings, repository)
        elif part == "objects":
            yield "objects", lambda: parts.back_up_objects(settings, repository)
        else:
            yield part, lambda part=part: parts.back_up_folder(settings, repository, part)  # type: ignore[misc]


def back_up(settings: Settings, *, base: bool, check: bool = True) -> bool:
    """Back up every part of this server; say what, how much and how long. No failure stops the others."""
    if not settings.parts:
        raise BackupError("BACKUP_PARTS is not set: there is nothing to back up")
    good = True
    with _alone(settings):
        repository = Repository(settings)
        if repository.ensure():
            print("a new repository was created", flush=True)
        state = metrics.load(settings.metrics)
        for part, job in _jobs(settings, repository, base=base):
            began = time.monotonic()
            try:
                figures: dict[str, float] | None = job()
            except (BackupError, OSError) as error:
                print(f"{part:<9} FAILED: {error}", flush=True)
                figures, good = None, False
            if figures is not None:
                figures = {
                    **figures,
                    "seconds": round(time.monotonic() - began, 2),
                    "time": round(time.time(), 1),
                }
                print(
                    f"{part:<9} {figures['bytes'] / MB:9.1f} MB, {figures['added'] / MB:9.1f} MB added, "
                    f"{figures['seconds']:6.1f} s",
                    flush=True,
                )
            state = metrics.updated(state, part, figures)
            metrics.write(settings.metrics, state)
        return _keep_house(settings, repository, check=check) and good


def _keep_house(settings: Settings, repository: Repository, *, check: bool) -> bool:
    """Drop what is no longer kept and check the repository."""
    began = time.monotonic()
    state = metrics.load(settings.metrics)
    try:
        repository.forget()
        if "postgres" in settings.parts:
            postgres.drop_old_wal(settings, repository)
        if check:
            repository.check(settings.read_data)
    except (BackupError, OSError) as error:
        print(f"check     FAILED: {error}", flush=True)
        metrics.write(settings.metrics, metrics.updated(state, "check", None))
        return False
    seconds = round(time.monotonic() - began, 2)
    if check:
        size = sum(path.stat().st_size for path in Path(settings.repository).rglob("*") if path.is_file())
        figures = {"bytes": float(size), "seconds": seconds, "time": round(time.time(), 1)}
        metrics.write(settings.metrics, metrics.updated(state, "check", figures))
        print(
            f"check     {size / MB:9.1f} MB in the repository, {settings.read_data} read, {seconds:.1f} s",
            flush=True,
        )
    return True


def schedule(settings: Settings) -> None:
    """Back up at every interval, with a base backup when the last is old or of another database."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _wait_for_tails(settings)
    while True:
        began = time.time()
        good = False
        try:
            good = back_up(settings, base="postgres" in settings.parts and _base_is_due(settings))
        except (BackupError, OSError) as error:
            print(f"FAILED: {error}", flush=True)
        pause = settings.interval_seconds if good else min(RETRY_SECONDS, settings.interval_seconds)
        while time.time() - began < pause:
            HEARTBEAT.touch()
            time.sleep(min(5.0, pause))


def _wait_for_tails(settings: Settings) -> None:
    """Give the receiver and the follower time for their first bytes; the round says what failed without."""
    folders = {"postgres": settings.wal, "redis": settings.redis}
    end = time.monotonic() + FIRST_SECONDS
    while time.monotonic() < end:
        HEARTBEAT.touch()
        if all(any(folders[part].glob("*/*")) for part in settings.parts if part in folders):
            return
        time.sleep(1)


def _base_is_due(settings: Settings) -> bool:
    repository = Repository(settings)
    repository.ensure()
    bases = repository.snapshots("postgres")
    if not bases or bases[-1].tags["incarnation"] != postgres.incarnation(settings):
        return True
    last = metrics.load(settings.metrics).get("postgres", {}).get("time", 0.0)
    return time.time() - last >= settings.base_interval_seconds


def restore(settings: Settings, arguments: argparse.Namespace) -> None:
    """Restore a part and print what was restored, as JSON."""
    with _alone(settings):
        repository = Repository(settings)
        wanted = Wanted(
            target=Path(arguments.target),
            replace=arguments.replace,
            until=arguments.to_time,
            incarnation=arguments.incarnation,
            generation=arguments.generation,
            snapshot=arguments.snapshot,
        )
        if arguments.part == "postgres":
            done = postgres.restore(settings, repository, wanted)
        elif arguments.part == "redis":
            done = parts.restore_redis(settings, repository, wanted)
        elif arguments.part == "objects":
            done = parts.restore_objects(settings, repository, wanted)
        else:
            done = parts.restore_folder(settings, repository, arguments.part, wanted)
    print(json.dumps({"part": arguments.part, **done}), flush=True)


def show(settings: Settings) -> None:
    """List the versions of every part, and the live tails of PostgreSQL and Redis."""
    repository = Repository(settings)
    for part in (*PARTS, "wal", "mlflow-db"):
        for each in repository.snapshots(part):
            tags = " ".join(f"{name}={value}" for name, value in each.tags.items() if name != "part")
            print(f"{part:<9} {each.time[:19]}Z {each.id[:8]} {tags}")
    for folder in sorted(settings.wal.iterdir()) if settings.wal.is_dir() else ():
        print(f"live WAL  {folder.name}: {len(list(folder.iterdir()))} files")
    for folder in redis_stream.generations(settings.redis):
        notes = redis_stream.read_notes(folder)
        print(f"live Redis generation {folder.name}: {notes.keys} keys")


def healthy() -> bool:
    """Tell whether this container's process did something in the last minute."""
    return HEARTBEAT.exists() and time.time() - HEARTBEAT.stat().st_mtime < HEARTBEAT_SECONDS


def follow_redis(settings: Settings) -> None:
    """Follow Redis until the container is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    redis_stream.Follower(settings, HEARTBEAT).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="server_tools.backup.agent", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("prepare", "receive-wal", "follow-redis", "schedule", "list", "health", "check"):
        verbs.add_parser(name)
    verb = verbs.add_parser("backup")
    verb.add_argument("--no-base", action="store_true", help="no base backup of PostgreSQL, only WAL")
    verb.add_argument("--no-check", action="store_true", help="do not read the repository")
    verb = verbs.add_parser("restore")
    verb.add_argument("part", choices=PARTS)
    verb.add_argument("--target", default="/target", help="folder to restore to")
    verb.add_argument("--to-time", help="PostgreSQL: until this moment, e.g. 2026-11-22T03:00:00Z")
    verb.add_argument("--incarnation", help="PostgreSQL: of which database, see `list`")
    verb.add_argument("--generation", help="Redis: which generation, see `list`")
    verb.add_argument("--snapshot", help="objects, folders: which version, see `list`")
    verb.add_argument("--replace", action="store_true", help="put aside what is there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    asked = _parser().parse_args(arguments)
    if asked.verb == "health":
        return 0 if healthy() else 1
    HEARTBEAT.touch()
    try:
        settings = Settings.from_environment()
        if asked.verb == "prepare":
            postgres.prepare(settings)
        elif asked.verb == "receive-wal":
            postgres.receive(settings, HEARTBEAT)
        elif asked.verb == "follow-redis":
            follow_redis(settings)
        elif asked.verb == "schedule":
            schedule(settings)
        elif asked.verb == "list":
            show(settings)
        elif asked.verb == "check":
            Repository(settings).check()
            print("every byte of the repository is as it was written")
        elif asked.verb == "backup":
            return 0 if back_up(settings, base=not asked.no_base, check=not asked.no_check) else 1
        else:
            restore(settings, asked)
    except (BackupError, OSError, shutil.Error) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
