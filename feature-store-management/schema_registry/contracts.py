"""The schema contracts of this repository, and the history of those that were published.

`contracts/schemas/<name>.schema.json` is the present contract of a topic's value or a raw table. Beside what
JSON Schema knows it says `x-subjects` (its names in a registry), `x-compatibility` (the rule a change must
keep), `x-owner` and, of a table, `x-table`. `contracts/schemas/published/<name>/<version>.json` holds every
version that was ever published: readers and rows of each may still exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compatibility import RULES, Rule, UnsupportedSchemaError, incompatibilities

SCHEMAS_DIR = Path(__file__).resolve().parents[1] / "contracts" / "schemas"
SUFFIX = ".schema.json"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
NAME = re.compile(r"[a-z][a-z0-9_.-]*\.v[1-9][0-9]*")


class ContractError(Exception):
    """A contract can't be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Contract:
    """One contract: name with version (`transactions.v1`), rule, subjects, the schema as data and as text."""

    name: str
    rule: Rule
    subjects: tuple[str, ...]
    owner: str
    table: str | None
    schema: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Verdict:
    """What publishing a contract now would mean: `reasons` refuse it; without `is_new` nothing changed."""

    name: str
    is_new: bool
    next_version: int
    reasons: tuple[str, ...]


def read_contracts(folder: Path = SCHEMAS_DIR) -> list[Contract]:
    """Return the present contracts by name; ContractError names the first file that is wrong."""
    contracts = [_read_contract(path) for path in sorted(folder.glob("*.json"))]
    if not contracts:
        raise ContractError(f"{folder} holds no contract")
    return contracts


def _read_contract(path: Path) -> Contract:
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 (slow to import)

    def refuse(reason: str) -> ContractError:
        return ContractError(f"{path.name}: {reason}")

    name = path.name.removesuffix(SUFFIX)
    if not path.name.endswith(SUFFIX) or not NAME.fullmatch(name):
        raise refuse(f"a contract is named like transactions.v1{SUFFIX}")
    text = path.read_text(encoding="utf-8")
    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
    except (json.JSONDecodeError, SchemaError) as error:
        raise refuse(f"no JSON Schema: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(schema, dict) or schema.get("$schema") != DRAFT:
        raise refuse(f"$schema is not {DRAFT}")
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise refuse("a contract is a closed object: type object, additionalProperties false")
    rule, subjects, owner = (schema.get(f"x-{key}") for key in ("compatibility", "subjects", "owner"))
    if rule not in RULES:
        raise refuse(f"x-compatibility {rule!r} is none of {', '.join(RULES)}")
    if not isinstance(subjects, list) or not subjects or not all(isinstance(s, str) for s in subjects):
        raise refuse("x-subjects is no list of names")
    if not isinstance(owner, str) or not owner:
        raise refuse("x-owner names nobody")
    for field, part in schema.get("properties", {}).items():
        if not isinstance(part, dict) or not part.get("description"):
            raise refuse(f"{field} has no description")
    return Contract(name, rule, tuple(subjects), owner, schema.get("x-table"), schema, text)


def read_published(name: str, folder: Path = SCHEMAS_DIR) -> list[dict[str, Any]]:
    """Return the published versions of a contract, oldest first; ContractError where a version is missing."""
    paths = {path.stem: path for path in (folder / "published" / name).glob("*.json")}
    if set(paths) != {str(number) for number in range(1, len(paths) + 1)}:
        raise ContractError(f"published/{name} holds {sorted(paths)} instead of versions 1 to {len(paths)}")
    published = []
    for number in range(1, len(paths) + 1):
        try:
            published.append(json.loads(paths[str(number)].read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ContractError(f"published/{name}/{number}.json: no JSON: {error}") from None
    return published


def judge(contract: Contract, published: Sequence[dict[str, Any]]) -> Verdict:
    """Compare a contract with its published versions under the stricter of its present and its last rule."""
    is_new = not published or published[-1] != contract.schema
    reasons: list[str] = []
    if is_new and published:
        last_rule = published[-1].get("x-compatibility", contract.rule)
        if last_rule != contract.rule and not _keeps(contract.rule, last_rule):
            reasons.append(f"x-compatibility: weakened from {last_rule} to {contract.rule}")
        try:
            for rule in dict.fromkeys((contract.rule, last_rule)):
                reasons += incompatibilities(rule, contract.schema, published)
        except UnsupportedSchemaError as error:
            reasons.append(str(error))
    return Verdict(contract.name, is_new, len(published) + 1, tuple(dict.fromkeys(reasons)))


def _keeps(new: Rule, old: Rule) -> bool:
    """Say whether a rule promises all that another promised."""
    promises = {
        rule: {
            (direction, reach)
            for direction in ("BACKWARD", "FORWARD")
            if rule.startswith((direction, "FULL"))
            for reach in ("last", *(["all"] if rule.endswith("_TRANSITIVE") else []))
        }
        for rule in (new, old)
    }
    return promises[new] >= promises[old]


def check_all(folder: Path = SCHEMAS_DIR) -> list[Verdict]:
    """Judge every contract; ContractError where a file is wrong or a published contract is gone."""
    contracts = read_contracts(folder)
    names = {contract.name for contract in contracts}
    gone = sorted(path.name for path in (folder / "published").glob("*") if path.name not in names)
    if gone:
        raise ContractError(f"published, but without a contract: {', '.join(gone)}: readers may still exist")
    subjects = [subject for contract in contracts for subject in contract.subjects]
    if twice := sorted({subject for subject in subjects if subjects.count(subject) > 1}):
        raise ContractError(f"subjects of more than one contract: {', '.join(twice)}")
    return [judge(contract, read_published(contract.name, folder)) for contract in contracts]


def publish(verdict: Verdict, folder: Path = SCHEMAS_DIR) -> Path:
    """Write a new version of a contract into the history; ContractError where it is incompatible."""
    if verdict.reasons:
        raise ContractError(f"{verdict.name}: {verdict.reasons[0]}")
    path = folder / "published" / verdict.name / f"{verdict.next_version}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((folder / f"{verdict.name}{SUFFIX}").read_text(encoding="utf-8"), encoding="utf-8")
    return path
