"""The parts beside PostgreSQL: Redis' generations, the object store's buckets, folders."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from server_tools.backup import redis_stream, targets
from server_tools.backup.errors import BackupError, DamagedError, NotEmptyError
from server_tools.backup.processes import run
from server_tools.backup.restic import Repository, Snapshot
from server_tools.backup.settings import Settings

# What a Jenkins home can make again, or must not keep (workspaces hold checkouts).
EXCLUDES = {"jenkins": ("workspace", "workspaces", "caches", "war", "*.tmp", "remoting")}


def back_up_redis(settings: Settings, repository: Repository) -> dict[str, float]:
    """Store the follower's generations; raises BackupError before the first is complete."""
    if not redis_stream.generations(settings.redis):
        raise BackupError("the follower of Redis has no complete generation yet")
    return repository.store(settings.redis, {"part": "redis"}, (str(settings.redis / ".new"),))


def restore_redis(settings: Settings, repository: Repository, wanted: targets.Wanted) -> dict[str, Any]:
    """Write a generation into the target (a Redis data folder); every hash is checked before."""
    began = time.monotonic()
    work = targets.work_folder(wanted)
    folders = redis_stream.generations(settings.redis)
    if wanted.generation not in (None, *(folder.name for folder in folders)) or not folders:
        stored = repository.snapshots("redis")
        if not stored:
            raise BackupError("neither the follower nor the repository holds a generation of Redis")
        folders = redis_stream.generations(
            repository.restore(stored[-1], work / "repository", settings.redis)
        )
    chosen = redis_stream.choose(folders, wanted.generation)
    usable = redis_stream.check(chosen)
    redis_stream.write_data_folder(chosen, work / "data", usable)
    aside = targets.hand_over(work, work / "data", wanted.target)
    notes = redis_stream.read_notes(chosen)
    return {
        "generation": chosen.name, "base_bytes": notes.base_bytes, "command_bytes": usable,
        "put_aside": str(aside) if aside else None, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def _rclone(settings: Settings, *words: str) -> str:
    env = {
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENDPOINT": settings.s3_endpoint,
        "RCLONE_CONFIG_STORE_REGION": settings.s3_region,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": settings.s3_access_key,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": settings.s3_secret_key,
        "RCLONE_CONFIG_STORE_FORCE_PATH_STYLE": "true",
    }
    # The store's own time of an object stands in its listing; rclone's would cost a request an object.
    return run(["rclone", "--use-server-modtime", "--retries", "2", *words], env=env).stdout


def back_up_objects(settings: Settings, repository: Repository) -> dict[str, float]:
    """Copy what changed in the object store since the last time, and store a version of all buckets."""
    mirror = settings.data / "objects"
    mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    listed = [entry["Path"] for entry in json.loads(_rclone(settings, "lsjson", "store:"))]
    buckets = [name for name in listed if name not in settings.skipped_buckets]
    for bucket in buckets:
        _rclone(settings, "sync", f"store:{bucket}", str(mirror / bucket))
        (mirror / bucket).mkdir(exist_ok=True)
    for gone in {path.name for path in mirror.iterdir()} - set(buckets):
        shutil.rmtree(mirror / gone)  # its versions stay in the repository
    return repository.store(mirror, {"part": "objects"})


def restore_objects(settings: Settings, repository: Repository, wanted: targets.Wanted) -> dict[str, Any]:
    """Copy a version of all buckets back and compare; `replace` writes over objects that are there.

    Nothing is deleted: an object that the version does not hold stays.
    """
    began = time.monotonic()
    chosen = _pick(repository.snapshots("objects"), wanted.snapshot)
    work = settings.staging / "objects"
    shutil.rmtree(work, ignore_errors=True)
    folder = repository.restore(chosen, work, settings.data / "objects")
    buckets = sorted(path.name for path in folder.iterdir())
    there = {entry["Path"] for entry in json.loads(_rclone(settings, "lsjson", "store:"))}
    if not wanted.replace:
        full = [name for name in buckets if name in there and _rclone(settings, "lsf", f"store:{name}")]
        if full:
            shutil.rmtree(work)
            raise NotEmptyError(f"bucket {', '.join(full)} is not empty: --replace writes over it")
    count = 0
    for bucket in buckets:
        _rclone(settings, "mkdir", f"store:{bucket}")
        _rclone(settings, "copy", "--ignore-times", str(folder / bucket), f"store:{bucket}")
        _rclone(settings, "check", "--one-way", "--download", str(folder / bucket), f"store:{bucket}")
        count += sum(1 for path in (folder / bucket).rglob("*") if path.is_file())
    shutil.rmtree(work)
    return {"version": chosen.time, "buckets": buckets, "objects": count,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def back_up_folder(settings: Settings, repository: Repository, part: str) -> dict[str, float]:
    """Store a version of a folder that is mounted below the sources."""
    folder = settings.sources / part
    if not folder.is_dir():
        raise BackupError(f"{folder} is not mounted")
    excludes = tuple(str(folder / "**" / pattern) for pattern in EXCLUDES.get(part, ()))
    return repository.store(folder, {"part": part}, excludes)


def restore_folder(
    settings: Settings, repository: Repository, part: str, wanted: targets.Wanted
) -> dict[str, Any]:
    """Restore a version of a folder into the target."""
    began = time.monotonic()
    chosen = _pick(repository.snapshots(part), wanted.snapshot)
    work = targets.work_folder(wanted)
    folder = repository.restore(chosen, work / "repository", settings.sources / part)
    if not folder.is_dir():
        raise DamagedError(f"snapshot {chosen.id[:8]} does not hold {settings.sources / part}")
    aside = targets.hand_over(work, folder, wanted.target)
    return {"version": chosen.time, "put_aside": str(aside) if aside else None,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def _pick(snapshots: list[Snapshot], wanted: str | None) -> Snapshot:
    fitting = [each for each in snapshots if wanted is None or each.id.startswith(wanted)]
    if not fitting:
        raise BackupError(f"there is no version {wanted}" if wanted else "there is no version yet")
    return fitting[-1]
