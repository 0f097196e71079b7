"""Schemas that stand within a route, put where OpenAPI looks for them."""

from __future__ import annotations

from typing import Any

_INLINE, _SHARED = "#/$defs/", "#/components/schemas/"


def hoist_definitions(document: dict[str, Any]) -> None:
    """Move every `$defs` of an inline schema into the document's components, references and all.

    >>> document = {"schema": {"$ref": "#/$defs/Movie", "$defs": {"Movie": {"type": "object"}}}}
    >>> hoist_definitions(document)
    >>> document["schema"], document["components"]
    ({'$ref': '#/components/schemas/Movie'}, {'schemas': {'Movie': {'type': 'object'}}})
    """
    found: dict[str, Any] = {}
    _collect(document, found)
    if found:
        document.setdefault("components", {}).setdefault("schemas", {}).update(found)


def _collect(part: Any, found: dict[str, Any]) -> None:
    if isinstance(part, list):
        for item in part:
            _collect(item, found)
        return
    if not isinstance(part, dict):
        return
    definitions = part.pop("$defs", {})
    for value in definitions.values():
        _collect(value, found)
    found.update(definitions)
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith(_INLINE):
        part["$ref"] = _SHARED + reference.removeprefix(_INLINE)
    for value in part.values():
        _collect(value, found)
