"""The encrypted repository: restic does versions, encryption, deduplication and retention."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server_tools.backup.errors import BackupError, DamagedError
from server_tools.backup.processes import run
from server_tools.backup.settings import Settings

HOST = "mlops"
_PACK = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{8}\b")


@dataclass(frozen=True)
class Snapshot:
    """One version of one part."""

    id: str
    time: str
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Snapshot:
        """Return a snapshot from restic's JSON; a tag `a=b` becomes the pair."""
        tags = dict(tag.partition("=")[::2] for tag in entry.get("tags") or [])
        return cls(entry["id"], entry["time"], tags)


def retention(settings: Settings) -> list[str]:
    """Return restic's words for what is kept of a part; its newest two versions are never forgotten."""
    return [
        "--keep-last", "2", "--keep-hourly", str(settings.keep_hourly),
        "--keep-daily", str(settings.keep_daily), "--keep-weekly", str(settings.keep_weekly),
    ]  # fmt: skip


def damage(text: str) -> str:
    """Return from restic's complaints the file of the repository that is damaged, or what it said.

    >>> damage("Load(<data/dbcd23c1f9>, 0, 0) returned error")
    'Load(<data/dbcd23c1f9>, 0, 0) returned error'
    """
    names = {name for name in _PACK.findall(text) if len(name) == 64}
    if names:
        return ", ".join(f"data/{name[:2]}/{name}" for name in sorted(names))
    return text.strip()[-500:]


class Repository:
    """A restic repository and its password."""

    def __init__(self, settings: Settings) -> None:
        if not settings.repository_password:
            raise BackupError("BACKUP_REPOSITORY_PASSWORD is not set: nothing is stored unencrypted")
        self._settings = settings
        self._env = {
            "RESTIC_REPOSITORY": settings.repository,
            "RESTIC_PASSWORD": settings.repository_password,
            "RESTIC_PROGRESS_FPS": "0.1",
        }

    def _restic(self, *words: str, check: bool = True) -> Any:
        return run(["restic", "--quiet", *words], env=self._env, check=check)

    def ensure(self) -> bool:
        """Create the repository where none is; return whether it was created.

        Raises BackupError where one is, but can't be opened: it is never written over.
        """
        opened = self._restic("cat", "config", check=False)
        if opened.returncode == 0:
            return False
        local = Path(self._settings.repository)
        if local.is_absolute() and local.exists() and any(local.iterdir()):
            raise BackupError(f"{local} can't be opened as repository: {opened.stderr.strip()[-500:]}")
        if "Is there a repository at the following location" not in opened.stderr:
            raise BackupError(f"the repository can't be opened: {opened.stderr.strip()[-500:]}")
        self._restic("init")
        return True

    def store(self, folder: Path, tags: dict[str, str], excludes: tuple[str, ...] = ()) -> dict[str, float]:
        """Store a version of `folder`; return its `bytes` and what was `added` to the repository."""
        words = ["backup", "--json", "--host", HOST, "--tag", _tag_words(tags)]
        words += [word for pattern in excludes for word in ("--exclude", pattern)]
        done = run(["restic", *words, str(folder)], env=self._env, check=False)
        if done.returncode:
            raise BackupError(f"restic could not store {folder} whole: {done.stderr.strip()[-800:]}")
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        return {"bytes": summary["total_bytes_processed"], "added": summary["data_added"]}

    def snapshots(self, part: str) -> list[Snapshot]:
        """Return the versions of a part, oldest first."""
        listed = json.loads(self._restic("snapshots", "--json", "--host", HOST).stdout or "null") or []
        found = [Snapshot.parse(entry) for entry in listed]
        return sorted((each for each in found if each.tags.get("part") == part), key=lambda each: each.time)

    def forget(self) -> None:
        """Drop the versions that the settings no longer keep; a part is what was stored from one folder."""
        self._restic("forget", "--group-by", "host,paths", *retention(self._settings), "--prune")

    def check(self, share: str = "100%") -> None:
        """Read `share` of the data and check every hash; raises DamagedError with the damaged file."""
        done = self._restic("check", f"--read-data-subset={share}", check=False)
        if done.returncode:
            raise DamagedError(f"the repository is damaged: {damage(done.stdout + done.stderr)}")

    def restore(self, snapshot: Snapshot, target: Path, folder: Path) -> Path:
        """Restore `folder` of a snapshot below `target` and return where it lies; every file is read again.

        Raises DamagedError with the name of the damaged file of the repository.
        """
        done = self._restic(
            "restore", snapshot.id, "--target", str(target), "--include", str(folder), "--verify", check=False
        )
        if done.returncode:
            first = done.stdout + done.stderr
            try:
                self.check()
            except DamagedError as error:
                raise DamagedError(f"{error} (needed by snapshot {snapshot.id[:8]})") from None
            raise DamagedError(f"snapshot {snapshot.id[:8]} can't be restored: {first.strip()[-800:]}")
        return target / folder.relative_to("/")


def _tag_words(tags: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in tags.items())
