"""How Compose is called: which program, which files, which settings, which project."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_tools import places, server_settings
from server_tools.deployments import overrides

SERVERS = ("1", "2", "3")


class ComposeError(Exception):
    """Compose or the Docker Engine refused; the message holds what it said."""


@functools.cache
def program() -> tuple[str, ...]:
    """Return the command that is Compose: Docker's plugin, else the one of this environment."""
    docker = shutil.which("docker")
    if docker is not None:
        asked = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return (docker, "compose")
    # The program itself: the package's own wrapper forgets its exit code.
    package = importlib.util.find_spec("compose")
    if package is not None and package.origin is not None:
        own = Path(package.origin).with_name("docker-compose")
        if own.exists():
            return (str(own),)
    found = shutil.which("docker-compose")
    if found is None:
        raise ComposeError("Compose is not installed: run `make setup`")
    return (found,)


@dataclass(frozen=True)
class Project:
    """One server of a set, or one stack alone."""

    name: str
    file: Path
    profiles: tuple[str, ...] = ()
    # Which image each service was given by a deployment; not there before the first.
    images: Path | None = None

    @classmethod
    def of_server(cls, server: str, profiles: Sequence[str] = ()) -> Project:
        """Return the project of a server (`1`, `2` or `3`) of the set whose settings stand."""
        prefix = settings().get("COMPOSE_PROJECT", "mlops")
        pinned = overrides(places.servers_dir(), f"server{server}")
        return cls(f"{prefix}-server{server}", places.SETUPS / f"server{server}.yml", tuple(profiles), pinned)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a Compose verb for this project."""
        profiles = [part for profile in self.profiles for part in ("--profile", profile)]
        return [
            *program(),
            f"--project-name={self.name}",
            f"--env-file={places.VERSIONS}",
            f"--env-file={places.settings_file()}",
            f"--file={self.file}",
            *([f"--file={self.images}"] if self.images and self.images.exists() else []),
            *profiles,
            *arguments,
        ]

    def run(self, *arguments: str) -> str:
        """Run a Compose verb and return what it printed; raises ComposeError with what it said."""
        done = subprocess.run(
            self.command(*arguments), env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ComposeError(f"compose {arguments[0]} of {self.name}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def config(self) -> dict[str, Any]:
        """Return the resolved model: what Compose makes of the files and the settings."""
        resolved: dict[str, Any] = json.loads(self.run("config", "--format", "json"))
        return resolved


def settings() -> dict[str, str]:
    """Return the settings of this set; the environment wins over the file, as it does for Compose."""
    found = server_settings.read(places.settings_file())
    return found | {name: os.environ[name] for name in found if name in os.environ}


def environment() -> dict[str, str]:
    """Return the environment Compose runs in: ours, and where this set of servers stands."""
    return os.environ | {"MLOPS_SERVERS_DIR": str(places.servers_dir())}


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a docker command; the caller looks at its exit code."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
