"""Lists of entities (blocked, trusted, ...) with an expiry for each entry, from one file.

YAML and JSON: a list of maps. CSV: a header and a row for each entry. The fields are `list`, `entity`
(`customer_id:596`, the join key and the value), `expires_at` (RFC 3339 with a zone, or a date for its
midnight in UTC; empty = never), `reason` and `owner`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.documents import (
    Lined,
    Problem,
    Unreadable,
    WrongFile,
    line_of,
    read_yaml,
)

FIELDS = ("list", "entity", "expires_at", "reason", "owner")
_REQUIRED = ("list", "entity", "reason", "owner")
MOST_PROBLEMS = 20


class EntityLists:
    """The entries of one file; `sha256` is the hash of it. Never changed, replaced as a whole."""

    def __init__(self, until: Mapping[str, Mapping[str, float]], sha256: str = "") -> None:
        self._until = until
        self.sha256 = sha256

    def of(self, entity_ids: Mapping[str, int | str], names: Iterable[str], at: float) -> dict[str, bool]:
        """Return for each list whether any of the entities is on it at `at` (epoch seconds).

        An entry counts while `at` is before its expiry. A list without entries is empty.
        """
        keys = [f"{key}:{value}" for key, value in entity_ids.items()]
        return {
            name: (entries := self._until.get(name)) is not None
            and any(entries.get(key, -math.inf) > at for key in keys)
            for name in names
        }

    def sizes(self) -> dict[str, int]:
        """Return the number of entries by list, expired ones as well."""
        return {name: len(entries) for name, entries in self._until.items()}


NO_LISTS = EntityLists({})


def load_lists(path: Path) -> EntityLists:
    """Read the lists at `path`; raises PolicyError that says what is wrong on which line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read: {error.strerror}") from None
    return parse_lists(content, path.name)


def parse_lists(content: bytes, file: str, sha256: str = "") -> EntityLists:
    """Return the lists in a file; raises WrongFile, which names what is wrong."""
    problems: list[Problem] = []
    until: dict[str, dict[str, float]] = {}
    try:
        for line, raw in _entries(content, file):
            try:
                name, entity, expires = _entry(raw)
            except PolicyError as error:
                problems.append(Problem(line, "", str(error)))
                continue
            entries = until.setdefault(name, {})
            entries[entity] = max(expires, entries.get(entity, -math.inf))
    except Unreadable as error:
        problems = [error.problem]
    if problems:
        raise WrongFile(file, problems[:MOST_PROBLEMS])
    return EntityLists(until, sha256)


def _entries(content: bytes, file: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield line and raw entry."""
    kind = Path(file).suffix.lower()
    if kind == ".csv":
        yield from _csv_entries(content)
        return
    if kind == ".json":
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Unreadable(Problem(getattr(error, "lineno", 0), "", f"not JSON: {error}")) from None
    else:
        document = read_yaml(content)
    if not isinstance(document, list):
        raise Unreadable(Problem(0, "", "a list of entries is needed"))
    for number, raw in enumerate(document, start=1):
        if not isinstance(raw, dict):
            raise Unreadable(Problem(0, f"entry {number}", "a map is needed"))
        yield (line_of(raw) if isinstance(raw, Lined) else number), raw


def _csv_entries(content: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        if Counter(rows.fieldnames or ()) != Counter(FIELDS):
            raise Unreadable(Problem(1, "", f"the header must name {', '.join(FIELDS)}"))
        for row in rows:
            if None in row or None in row.values():
                raise Unreadable(Problem(rows.line_num, "", f"a row has {len(FIELDS)} fields"))
            yield rows.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(Problem(0, "", f"not CSV: {error}")) from None


def _entry(raw: Mapping[str, Any]) -> tuple[str, str, float]:
    if unknown := sorted(set(raw) - set(FIELDS)):
        raise PolicyError(f"unknown field {unknown[0]}")
    for name in _REQUIRED:
        if not isinstance(raw.get(name), str) or not raw[name].strip():
            raise PolicyError(f"{name} is missing or no text")
    name, entity = raw["list"].strip(), raw["entity"].strip()
    key, colon, value = entity.partition(":")
    if not name.isidentifier() or not (key.isidentifier() and colon and value):
        raise PolicyError(f"{name} / {entity}: a name of a list, and an entity such as customer_id:596")
    return name, entity, _expiry(raw.get("expires_at"))


def _expiry(given: Any) -> float:
    if given is None or given == "":
        return math.inf
    moment = given
    if isinstance(given, str):
        try:
            moment = date.fromisoformat(given) if len(given) == 10 else datetime.fromisoformat(given)
        except ValueError:
            raise PolicyError(f"expires_at {given!r} is no time, such as 2026-12-31T00:00:00Z") from None
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise PolicyError(f"expires_at {given} has no zone")
        return moment.timestamp()
    if isinstance(moment, date):
        return datetime(moment.year, moment.month, moment.day, tzinfo=UTC).timestamp()
    raise PolicyError(f"expires_at {given!r} is no time, such as 2026-12-31T00:00:00Z")
