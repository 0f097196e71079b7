"""What the last backups were, as a textfile for Prometheus' node exporter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "mlops_backup.prom"
STATE = "state.json"
_HELP = {
    "success": ("mlops_backup_success", "1 when the newest backup of the part ended well"),
    "time": ("mlops_backup_last_success_timestamp_seconds", "when the part was last backed up well"),
    "bytes": ("mlops_backup_size_bytes", "bytes of the part in the newest good backup"),
    "added": ("mlops_backup_added_bytes", "bytes the newest good backup added to the repository"),
    "seconds": ("mlops_backup_duration_seconds", "how long the newest good backup of the part took"),
}


def render(state: Mapping[str, Mapping[str, float]]) -> str:
    """Return the metrics' text: for each part the values it has.

    >>> print(render({"redis": {"success": 1}}), end="")
    # HELP mlops_backup_success 1 when the newest backup of the part ended well
    # TYPE mlops_backup_success gauge
    mlops_backup_success{part="redis"} 1
    """
    lines = []
    for key, (name, text) in _HELP.items():
        values = [(part, numbers[key]) for part, numbers in sorted(state.items()) if key in numbers]
        if values:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f'{name}{{part="{part}"}} {value:.15g}' for part, value in values]
    return "".join(f"{line}\n" for line in lines)


def updated(
    state: Mapping[str, Mapping[str, float]], part: str, values: Mapping[str, float] | None
) -> dict[str, dict[str, float]]:
    """Return the state after a backup of `part`; a failed one (None) keeps the last good figures."""
    known = {name: dict(numbers) for name, numbers in state.items()}
    if values is None:
        known[part] = {**known.get(part, {}), "success": 0}
    else:
        known[part] = {**values, "success": 1}
    return known


def load(folder: Path) -> dict[str, dict[str, float]]:
    """Return the state that was last written; empty before the first."""
    path = folder / STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(folder: Path, state: Mapping[str, Mapping[str, float]]) -> None:
    """Write state and metrics, each in one step: the exporter never reads half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((STATE, json.dumps(state)), (FILE, render(state))):
        temporary = folder / f".{name}.new"
        temporary.write_text(text, encoding="utf-8")
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / name)
