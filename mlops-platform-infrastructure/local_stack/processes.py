"""Processes that outlive the command that started them: who they are, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from local_stack.private_files import write_private

OWNER_VARIABLE = "LOCAL_STACK_SERVICE"


@dataclass(frozen=True)
class ProcessRecord:
    """A started process. The start mark tells it from a later process with the same id."""

    pid: int
    start_mark: str
    started_at: float
    settings_sha256: str


def start_mark(pid: int) -> str | None:
    """Return what, with the id, names a process for ever on this machine; None when there is none.

    On Linux the boot id and the start time in clock ticks since boot, which no clock adjustment moves.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        try:
            return f"created {psutil.Process(pid).create_time():.2f}"
        except psutil.Error:
            return None
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"


def find(record: ProcessRecord) -> psutil.Process | None:
    """Return the recorded process while it runs; None when it ended, even if its id was given away again."""
    if start_mark(record.pid) != record.start_mark:
        return None
    try:
        process = psutil.Process(record.pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def save(path: Path, record: ProcessRecord) -> None:
    """Write a process record."""
    write_private(path, json.dumps(asdict(record), indent=1) + "\n")


def load(path: Path) -> ProcessRecord | None:
    """Return the process record at `path`, or None when there is none."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ProcessRecord(
        known["pid"], known["start_mark"], known["started_at"], known.get("settings_sha256", "")
    )


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all its descendants; empty once it ended."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def owned_by(owner: str, program: str = "", cwd: Path | None = None) -> list[psutil.Process]:
    """Return every process that carries `owner` in OWNER_VARIABLE, also those that lost their parent.

    A program that writes over its own environment (PostgreSQL and Valkey do) is known by its name and folder.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            marked = process.environ().get(OWNER_VARIABLE) == owner
            if marked or (
                cwd and process.name() == program and process.cwd().removesuffix(" (deleted)") == str(cwd)
            ):
                found.append(process)
    return found


def listens(process: psutil.Process, port: int) -> bool:
    """Say whether a process or one of its descendants listens on a port."""
    for member in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in member.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return True
    return False


def wait_ended(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes ended and return those that did not within `seconds`."""
    deadline = time.monotonic() + seconds
    alive = list(processes)
    while alive:
        alive = [process for process in alive if not _ended(process)]
        if not alive or time.monotonic() >= deadline:
            break
        time.sleep(0.02)
    return alive


def _ended(process: psutil.Process) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)  # our own child stays a zombie until it is waited for
    try:
        return not process.is_running() or (
            process.status() == psutil.STATUS_ZOMBIE and _threads(process) < 2
        )
    except psutil.NoSuchProcess:
        return True


def _threads(process: psutil.Process) -> int:
    """Return how many threads a process has. While any but the first ends, files and ports stay open."""
    try:
        return len(os.listdir(f"/proc/{process.pid}/task"))
    except FileNotFoundError:
        return 0  # it ended, or this system has no /proc


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each process that still runs; psutil refuses ids that were given away again."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of processes: PSS, which counts shared pages once; RSS where PSS is not to be had."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
            except psutil.AccessDenied:
                total += process.memory_info().rss
    return total
