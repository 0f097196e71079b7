"""Places to restore to: empty ones, or with an explicit word full ones, whose content is put aside."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from server_tools.backup.errors import NotEmptyError

WORK = ".restoring"
ASIDE = "before-restore-"


@dataclass(frozen=True)
class Wanted:
    """What is to be restored, and whether it may take the place of what is there."""

    target: Path
    replace: bool = False
    until: str | None = None
    incarnation: str | None = None
    generation: str | None = None
    snapshot: str | None = None


def work_folder(wanted: Wanted) -> Path:
    """Return a fresh folder within the target, on the same disk; nothing there changes yet.

    Raises NotEmptyError when the target holds something and `replace` is off.
    """
    target = wanted.target
    target.mkdir(parents=True, exist_ok=True)
    left = sorted(path.name for path in _content(target))
    if left and not wanted.replace:
        raise NotEmptyError(f"{target} is not empty ({', '.join(left[:3])}): --replace puts it aside")
    work = target / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    return work


def hand_over(work: Path, content: Path, target: Path) -> Path | None:
    """Move what stands in `content` into `target`; what stood there goes to a folder, which is returned."""
    old = _content(target)
    aside = _aside(target) if old else None
    if aside:
        aside.mkdir(mode=0o700)
        for path in old:
            path.rename(aside / path.name)
    for path in content.iterdir():
        path.rename(target / path.name)
    shutil.rmtree(work)
    return aside


def _content(target: Path) -> list[Path]:
    """Return what stands in a target, without our own folders and what a new volume may hold."""
    ours = (WORK, "lost+found")
    return [path for path in target.iterdir() if path.name not in ours and not path.name.startswith(ASIDE)]


def _aside(target: Path) -> Path:
    """Return where to put what is there: beside the target, or within it where it is a volume's root."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    if target.parent.stat().st_dev == target.stat().st_dev:
        return target.parent / f"{ASIDE}{target.name}-{stamp}"
    return target / f"{ASIDE}{stamp}"
