"""The columns that a raw table must have by its contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def columns_of(schema: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return name, PostgreSQL type and whether it may be null, of every column in the contract's order.

    A whole number is `bigint`, unless `x-type` names another type. ValueError for what no column holds.

    >>> columns_of({"required": ["id"], "properties": {"id": {"type": "integer"}, "day": {"format": "date"}}})
    [('id', 'bigint', False), ('day', 'date', True)]
    """
    required = set(schema.get("required", ()))
    return [
        (name, _column_type(name, part), name not in required or "null" in _types(part))
        for name, part in schema["properties"].items()
    ]


def _types(part: Mapping[str, Any]) -> list[str]:
    stated = part.get("type", [])
    return [stated] if isinstance(stated, str) else list(stated)


def _column_type(name: str, part: Mapping[str, Any]) -> str:
    if "x-type" in part:
        return str(part["x-type"])
    by_format = {"date": "date", "date-time": "timestamptz"}
    if part.get("format") in by_format:
        return by_format[part["format"]]
    by_type = {"integer": "bigint", "number": "double precision", "string": "text", "boolean": "boolean"}
    found = [by_type[type_] for type_ in _types(part) if type_ in by_type]
    if len(found) != 1:
        raise ValueError(f"{name}: no column holds a value of type {part.get('type')!r}")
    return found[0]
