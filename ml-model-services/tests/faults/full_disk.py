"""The disk under the spool is full, while the database and the broker are away and when they are back.

No decision is given that is not recorded: the service answers 503 and gives what it can again by itself. As
root, the spool lies on a small file system in memory, and another file takes what is left of it; otherwise
the kernel limits how long a file of the service may become (RLIMIT_FSIZE).
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.acknowledged import AcknowledgedLoad
from faults.recorded_service import RecordedService
from faults.served_app import command_line, result

DISK_BYTES = 3 << 20
FILE_BYTES = 256 << 10
ROUNDS = {"small": 1, "full": 10}


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system at `folder`; yields whether that was possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def limited_files(*, limited: bool) -> Iterator[None]:
    """Let no file of a process that is started here become longer than FILE_BYTES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _fill(path: Path) -> None:
    """Take all that is left of the disk, as any other program on it may."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 512):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def _wait_for(load: AcknowledgedLoad, status: int, seconds: float = 60) -> None:
    seen, deadline = load.statuses[status], time.monotonic() + seconds
    while load.statuses[status] < seen + 20:
        if time.monotonic() > deadline:
            raise AssertionError(f"no replies with {status}: {dict(load.statuses)}")
        time.sleep(0.02)


def run(scale: str) -> dict[str, Any]:
    """Fill the disk so many times and return what became of the decisions."""
    back = 0.0
    with (
        tempfile.TemporaryDirectory() as name,
        small_disk(Path(name) / "disk") as mounted,
    ):
        folder = Path(name)
        (folder / "work").mkdir()
        with limited_files(limited=not mounted):
            service = RecordedService(folder / "work", spool_dir=folder / "disk" / "spool")
        with service:
            service.process.wait()
            with service.load() as load:
                for _ in range(ROUNDS[scale]):
                    load.wait_for(50)
                    service.database.mode("refuse")
                    service.broker.mode("refuse")
                    if mounted:
                        load.wait_for(20)
                        _fill(folder / "disk" / "filler")
                    _wait_for(load, 503)
                    if mounted:
                        os.unlink(folder / "disk" / "filler")
                    service.database.mode("pass")
                    service.broker.mode("pass")
                    started = time.monotonic()
                    _wait_for(load, 200)
                    back = max(back, time.monotonic() - started)
            service.drained()
            unexpected = sum(load.statuses.values()) - load.statuses[200] - load.statuses[503]
            print("a file system of its own" if mounted else "limited files", dict(load.statuses))
            return {
                "results": [
                    result("times the disk was full", ROUNDS[scale], "times", None, met=True),
                    *service.verify(load),
                    result("refused with 503", load.statuses[503], "requests", None,
                           met=load.statuses[503] > 0),
                    result("other replies", unexpected, "replies", 0, met=unexpected == 0),
                    result("broken connections", load.broken, "connections", 0, met=load.broken == 0),
                    result("decisions again after", round(back, 2), "s", 10, met=back <= 10),
                ]
            }  # fmt: skip


if __name__ == "__main__":
    command_line(__doc__ or "", run)
