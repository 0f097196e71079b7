"""Which image each service of a server runs, which one before, and how to go back: one JSON file a server.

Beside it stands what Compose reads: `images.<server>.yml`, the services with the images that are pinned.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = 200


class NothingToRollBackError(Exception):
    """There is no deployment that could be undone; the message says which one was looked for."""


class Deployments:
    """The pins of one server and their history, newest last."""

    def __init__(self, folder: Path, server: str) -> None:
        self.path = folder / f"deployments.{server}.json"
        self.overrides = overrides(folder, server)
        self.pins: dict[str, str] = {}
        self.release: str | None = None
        self.history: list[dict[str, Any]] = []
        # Of images that only Airflow's tasks run in: what their names meant before the first deployment.
        self.originals: dict[str, str | None] = {}
        if self.path.exists():
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.pins, self.release, self.history = known["pins"], known["release"], known["history"]
            self.originals = known["originals"]

    def changes(self, wanted: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
        """Return what pinning these images would change: image -> from, to."""
        return {
            image: {"from": self.pins.get(image), "to": reference}
            for image, reference in wanted.items()
            if self.pins.get(image) != reference
        }

    def deploy(
        self, build: str, wanted: Mapping[str, str], release: str | None, approved_by: str = ""
    ) -> None:
        """Pin images, and the release of the Compose files, in the name of a build."""
        self.history.append(
            {
                "build": build,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "approved_by": approved_by,
                "images": self.changes(wanted),
                "release": {"from": self.release, "to": release},
                "state": "deployed",
            }
        )
        self.pins.update(wanted)
        self.release = release

    def roll_back(self, build: str | None) -> dict[str, Any]:
        """Go back to what ran before the newest deployment that stands; return that deployment.

        A build may only undo what it did itself, and only while nothing newer stands on it.
        """
        standing = [entry for entry in self.history if entry["state"] == "deployed"]
        if not standing or (build and standing[-1]["build"] != build):
            raise NothingToRollBackError(f"no deployment {f'of {build} ' if build else ''}to roll back")
        entry = standing[-1]
        for image, change in entry["images"].items():
            if change["from"] is None:
                self.pins.pop(image, None)
            else:
                self.pins[image] = change["from"]
        self.release = entry["release"]["from"]
        entry["state"] = "rolled back"
        return entry

    def save(self, services: Mapping[str, Any]) -> None:
        """Write state and overrides, each in one step; `services` are the server's, resolved by Compose."""
        document = {
            "pins": self.pins,
            "release": self.release,
            "originals": self.originals,
            "history": self.history[-KEPT:],
        }
        _write(self.path, json.dumps(document, indent=1) + "\n")
        _write(self.overrides, json.dumps({"services": pinned(services, self.pins)}, indent=1) + "\n")


def overrides(folder: Path, server: str) -> Path:
    """Return the Compose file with a server's pinned images."""
    return folder / f"images.{server}.yml"


def image_of(text: object) -> str | None:
    """Return which of our images a text names.

    >>> image_of("registry:5000/mlops/spark:abc"), image_of("postgres:18"), image_of("mlops/spark")
    ('spark', None, 'spark')
    """
    if not isinstance(text, str):
        return None
    _, found, rest = f"/{text}".rpartition("/mlops/")
    name = rest.partition(":")[0]
    return name if found and "/" not in name and " " not in rest and name else None


def uses(services: Mapping[str, Any], image: str) -> list[str]:
    """Return the services that run an image, or name it in a setting."""
    return [
        name
        for name, service in services.items()
        if image
        in {image_of(service.get("image")), *map(image_of, (service.get("environment") or {}).values())}
    ]


def pinned(services: Mapping[str, Any], pins: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of each service that its pinned images change."""
    found: dict[str, Any] = {}
    for name, service in services.items():
        change: dict[str, Any] = {}
        if (own := image_of(service.get("image"))) in pins:
            change["image"] = pins[str(own)]
        settings = {
            key: pins[str(image_of(value))]
            for key, value in (service.get("environment") or {}).items()
            if image_of(value) in pins
        }
        if settings:
            change["environment"] = settings
        if change:
            found[name] = change
    return found


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole; readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
