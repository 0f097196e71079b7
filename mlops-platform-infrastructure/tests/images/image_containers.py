"""Containers of a test: as the stacks start them, with names of their own, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_engine.engine import Engine
from server_tools.places import REPOSITORY

# What every service of the stacks is given, and a user that no image knows.
LIMITS = [
    "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "512",
    "--tmpfs", "/tmp:mode=1777,size=256m", "--user", "4242:4242",
]  # fmt: skip


def host() -> str:
    """Return the address of the engine, starting a private one where none answers."""
    local = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local").resolve()
    return Engine(local / "engine").start()


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", "--host", host(), *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return done


def run(image: str, *command: str, options: tuple[str, ...] = (), check: bool = True) -> str:
    """Run a command in a new container of an image and return what it printed."""
    done = docker("run", "--rm", *LIMITS, *options, image, *command, check=check)
    return done.stdout + done.stderr


@contextmanager
def running(image: str, *command: str, options: tuple[str, ...] = (), limits: bool = True) -> Iterator[str]:
    """Start a container, yield its name, and remove it with its volumes."""
    name = f"images-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, *(LIMITS if limits else []), *options, image, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def volume() -> Iterator[str]:
    """Make a volume that any user may write, yield its name, and remove it."""
    name = f"images-{uuid.uuid4().hex[:8]}"
    docker("volume", "create", name)
    try:
        docker(
            "run", "--rm", "--volume", f"{name}:/v", "python:3.11-slim-bookworm", "chown", "4242:4242", "/v"
        )
        yield name
    finally:
        docker("volume", "rm", "--force", name)


def wait_for(container: str, answers: Callable[[], bool], seconds: float = 60) -> float:
    """Wait until `answers()`; fail with the container's log where it does not. Return the seconds it took."""
    began = time.monotonic()
    while not answers():
        if time.monotonic() - began > seconds:
            log = docker("logs", container, check=False)
            pytest.fail(f"{container} does not answer:\n{(log.stdout + log.stderr)[-3000:]}")
        time.sleep(0.2)
    return time.monotonic() - began


def succeeds(container: str, *command: str) -> bool:
    """Say whether a command in a running container exits with 0."""
    return docker("exec", container, *command, check=False).returncode == 0
