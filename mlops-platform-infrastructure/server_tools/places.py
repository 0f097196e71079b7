"""Where the servers' files stand: Compose files in the repository, state below `.local/servers`."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT.parent
SETUPS = ROOT / "docker_compose_setups"
VERSIONS = SETUPS / "versions.env"
SETTINGS_TEMPLATE = SETUPS / "servers.env.template"


def servers_dir() -> Path:
    """Return the folder of this set of servers: secrets and settings (`MLOPS_SERVERS_DIR` names another)."""
    named = os.environ.get("MLOPS_SERVERS_DIR")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local").resolve() / "servers"


def secrets_dir() -> Path:
    """Return the folder of the secret files, mode 0700."""
    return servers_dir() / "secrets"


def settings_file() -> Path:
    """Return the file with this set's addresses, user ids and versions."""
    return servers_dir() / "servers.env"
