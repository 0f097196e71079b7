"""Where an instance of the stack keeps its state."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

REPO_DIR = Path(__file__).resolve().parents[2]
DEFAULT_INSTANCE = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class Instance:
    """One independent copy of the stack: its name and its folders."""

    name: str
    local_dir: Path

    @property
    def state_dir(self) -> Path:
        """Folder that holds everything of this instance, mode 0700."""
        return self.local_dir / ("stack" if self.name == DEFAULT_INSTANCE else f"stack-{self.name}")

    @property
    def reports_dir(self) -> Path:
        """Reports of the default instance stand where a person looks first; others keep their own."""
        return (self.local_dir if self.name == DEFAULT_INSTANCE else self.state_dir) / "reports"

    @property
    def env_file(self) -> Path:
        """The one settings file."""
        return self.state_dir / "stack.env"

    @property
    def logs_dir(self) -> Path:
        """One log file a service."""
        return self.state_dir / "logs"

    @property
    def run_dir(self) -> Path:
        """Process records, one JSON file a running service."""
        return self.state_dir / "run"

    @property
    def lock_file(self) -> Path:
        """Held by the command that changes this instance; beside the state, so that `reset` leaves it."""
        return self.local_dir / f".{self.state_dir.name}.lock"

    def service_dir(self, service: str) -> Path:
        """Folder with the data of one service; also its working folder."""
        return self.state_dir / "services" / service

    def log_file(self, service: str) -> Path:
        """Standard output and error of one service."""
        return self.logs_dir / f"{service}.log"

    def create_folders(self) -> None:
        """Create the instance's folders; those with secrets or data are closed to others."""
        for folder in (
            self.state_dir,
            self.logs_dir,
            self.run_dir,
            self.state_dir / "services",
            self.state_dir / "data",
            self.state_dir / "spool",
            self.state_dir / "airflow",
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reports_dir.mkdir(parents=True, exist_ok=True)


def local_dir_from_environment() -> Path:
    """`LOCAL_DIR`, or `.local` in the repository."""
    return Path(os.environ.get("LOCAL_DIR") or REPO_DIR / ".local").resolve()


def open_instance(name: str = DEFAULT_INSTANCE, local_dir: Path | None = None) -> Instance:
    """Return the instance of that name; raises ValueError for a name that is no plain word."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"instance name {name!r}: small letters, digits and '-' only, at most 31 characters")
    return Instance(name, (local_dir or local_dir_from_environment()).resolve())
