"""Find a Docker Engine that answers, or run a private one beside everything else.

The private engine keeps images, containers, socket and log under one folder of its own, listens on a Unix
socket only, and needs root. It is never the machine's own engine that is started or stopped here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

SYSTEM_FOLDERS = "/usr/sbin:/sbin"
START_SECONDS = 60
STOP_SECONDS = 30
ANSWER_SECONDS = 15


class EngineError(Exception):
    """No Docker Engine can be had; the message says what is missing."""


class Engine:
    """The engine of a folder; `host` is what DOCKER_HOST must be to reach the one in use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid_file = folder / "dockerd.pid"
        self._private = f"unix://{folder / 'docker.sock'}"

    @property
    def host(self) -> str | None:
        """The address of an engine that answers: the environment's, the machine's own or the private one."""
        for host in (os.environ.get("DOCKER_HOST"), "unix:///var/run/docker.sock", self._private):
            if host and answers(host):
                return host
        return None

    def start(self) -> str:
        """Return the address of an engine that answers, starting a private one if need be.

        Raises EngineError where neither can be had.
        """
        if (host := self.host) is not None:
            return host
        daemon = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")
        if shutil.which("docker") is None or daemon is None:
            raise EngineError("Docker is not installed (Debian: apt-get install docker.io)")
        if os.geteuid() != 0:
            raise EngineError("no Docker Engine answers, and only root may start one")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "dockerd.log").open("ab") as log:
            subprocess.Popen(
                [
                    daemon,
                    f"--data-root={self._folder / 'data'}",
                    f"--exec-root={self._folder / 'run'}",
                    f"--pidfile={self._pid_file}",
                    f"--host={self._private}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        began = time.monotonic()
        while not answers(self._private):
            if time.monotonic() - began > START_SECONDS:
                raise EngineError(f"dockerd does not answer; its log: {self._folder / 'dockerd.log'}")
            time.sleep(0.2)
        return self._private

    def stop(self) -> bool:
        """End the private engine and its containers; return whether one ran."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            return False
        if str(self._pid_file) not in command:  # the number belongs to another process by now
            return False
        os.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        while Path(f"/proc/{pid}").exists() and not _ended(pid):
            if time.monotonic() - began > STOP_SECONDS:
                raise EngineError(f"dockerd (process {pid}) does not end")
            time.sleep(0.1)
        # What it leaves mounted would keep the folder from being deleted.
        namespace = self._folder / "run" / "netns" / "default"
        if namespace.exists():
            subprocess.run(["umount", str(namespace)], capture_output=True, check=False)
        return True


def answers(host: str) -> bool:
    """Return whether an engine answers at `host`."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        asked = subprocess.run(
            [docker, "--host", host, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
