"""Terraform files as plain Python: blocks by kind, strings without quotes, no marks of the parser."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import hcl2

TERRAFORM = Path(__file__).resolve().parents[2] / "terraform"
Resources = dict[str, dict[str, Any]]


def files() -> list[Path]:
    """Return every Terraform file, tests included, links once."""
    found = [*TERRAFORM.rglob("*.tf"), *TERRAFORM.rglob("*.hcl"), *TERRAFORM.rglob("*.tfvars")]
    return sorted(path for path in found if not path.is_symlink() and ".terraform" not in path.parts)


@functools.cache
def parse(path: Path) -> dict[str, Any]:
    """Return the file's content, not to be changed; raises what the parser raises."""
    cleaned: dict[str, Any] = clean(hcl2.loads(path.read_text(encoding="utf-8")))
    return cleaned


def clean(value: Any) -> Any:
    """Take away the parser's marks, and the quotes around strings and labels."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in {"__is_block__", "__comments__"}}
        return {clean(key): clean(each) for key, each in kept.items()}
    if isinstance(value, list):
        return [clean(each) for each in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def module(folder: Path) -> dict[str, Any]:
    """Return all files of a folder as one: lists of blocks by kind."""
    merged: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tf")):
        for kind, blocks in parse(path).items():
            merged.setdefault(kind, []).extend(blocks if isinstance(blocks, list) else [blocks])
    return merged


def resources(content: dict[str, Any], kind: str = "resource") -> Resources:
    """Return the resources of a module by `type.name`."""
    return {
        f"{name}.{label}": body
        for block in content.get(kind, [])
        for name, labelled in block.items()
        for label, body in labelled.items()
    }
