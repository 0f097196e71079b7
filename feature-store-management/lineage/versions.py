"""A changed definition is a new feature version beside the old: the lock of definitions, and its keeper.

`python -m lineage.versions --check`: exit 1, naming what changed, where a service's definition is not the one
that `contracts/versions.lock.json` holds for its version.
`python -m lineage.versions --new-version SERVICE --views VIEW ...`: set up the next version beside it.
`python -m lineage.versions --accept REASON`: write the lock anew; for a new version, or for a change of text
that changes no value. The reason stays in the lock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineage.dbt_models import ModelError
from lineage.definitions import Definitions, Parts
from lineage.new_version import NewVersionError, new_version

LOCK = Path("contracts") / "versions.lock.json"
FORMAT_VERSION = 1


class LockError(Exception):
    """The lock can't be read; the message says why."""


@dataclass(frozen=True)
class Difference:
    """What is not as the lock says: a service as such (`part` empty) or one of its parts."""

    service: str
    part: str
    what: str

    def __str__(self) -> str:
        return f"{self.service}: {self.part or 'the service'} {self.what}"


def read_lock(root: Path) -> dict[str, dict[str, Any]]:
    """Return `parts` and `reasons` of each locked service; raises LockError."""
    try:
        content = json.loads((root / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LockError(f"{LOCK}: {error}") from error
    if content.get("format_version") != FORMAT_VERSION:
        raise LockError(f"{LOCK}: format version {content.get('format_version')}, {FORMAT_VERSION} is known")
    services: dict[str, dict[str, Any]] = content["services"]
    return services


def differences(locked: Mapping[str, Parts], present: Mapping[str, Parts]) -> list[Difference]:
    """Return how the present definitions differ from the locked ones, by service and part."""
    found = [
        Difference(name, "", "is gone, though its version is published")
        for name in sorted(locked.keys() - present)
    ]
    found += [Difference(name, "", "is not locked yet") for name in sorted(present.keys() - locked)]
    for name in sorted(locked.keys() & present):
        old, new = locked[name], present[name]
        for part in sorted(old.keys() | new):
            if part not in new:
                found.append(Difference(name, part, "does not belong to it any more"))
            elif part not in old:
                found.append(Difference(name, part, "belongs to it now"))
            elif old[part] != new[part]:
                found.append(Difference(name, part, "changed under the same version"))
    return found


def present_parts(definitions: Definitions) -> dict[str, Parts]:
    """Return the parts of every service."""
    return {service: definitions.parts(service) for service in definitions.contracts}


def check(definitions: Definitions) -> list[Difference]:
    """Return how the definitions differ from the lock; raises LockError."""
    locked = {name: entry["parts"] for name, entry in read_lock(definitions.root).items()}
    return differences(locked, present_parts(definitions))


def accept(definitions: Definitions, reason: str) -> list[Difference]:
    """Write the lock anew, with the reason at every service that differs; return the differences."""
    old = read_lock(definitions.root) if (definitions.root / LOCK).exists() else {}
    present = present_parts(definitions)
    found = differences({name: entry["parts"] for name, entry in old.items()}, present)
    changed = {difference.service for difference in found}
    services = {
        name: {
            "parts": dict(sorted(parts.items())),
            "reasons": old.get(name, {}).get("reasons", []) + ([reason] if name in changed else []),
        }
        for name, parts in sorted(present.items())
    }
    content = {"format_version": FORMAT_VERSION, "services": services}
    (definitions.root / LOCK).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Do what the options say; return the exit code."""
    definitions = Definitions()
    if arguments.new_version:
        files = new_version(definitions, arguments.new_version, arguments.views)
        print("written:", *(f"  {path.relative_to(definitions.root)}" for path in files), sep="\n")
        print("edit what changes in them, then:")
        print("  make format, python -m backfill, run_feast_apply.sh, lineage.versions --accept REASON")
        return 0
    if arguments.accept:
        found = accept(definitions, arguments.accept)
        print("\n".join(map(str, found)) or "nothing differs")
        return 0
    found = check(definitions)
    if not found:
        print("every definition is the one that is locked for its version")
        return 0
    print(*found, sep="\n", file=sys.stderr)
    print("a changed definition is a new version: --new-version sets it beside the old one;", file=sys.stderr)
    print("where no value can change, --accept says why", file=sys.stderr)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 as locked or done, 1 different, 2 bad options or files."""
    parser = argparse.ArgumentParser(
        prog="python -m lineage.versions", description="Versions of definitions."
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--check", action="store_true", help="refuse a changed definition of an unchanged version"
    )
    action.add_argument("--accept", metavar="REASON", help="lock the definitions as they are")
    action.add_argument("--new-version", metavar="SERVICE", help="set up the next version beside this one")
    parser.add_argument("--views", nargs="+", default=[], metavar="VIEW", help="the views that change in it")
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (LockError, NewVersionError, ModelError) as error:
        print(f"versions: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
