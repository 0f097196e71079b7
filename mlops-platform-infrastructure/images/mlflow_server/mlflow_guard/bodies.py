"""What a body may hold: JSON that can be read one way, and addresses of our own store alone."""

from __future__ import annotations

import json
from typing import Any

from mlflow_guard import paths
from mlflow_guard.errors import RefusedError


def read_json(body: bytes) -> dict[str, Any]:
    """Return the object of a JSON body; raises RefusedError where two readers could differ."""
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is no JSON object in UTF-8, or names a field twice") from None
    if not isinstance(document, dict):
        raise RefusedError(400, "the body is no JSON object")
    return document


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is named twice")
    return found


def field(document: dict[str, Any], name: str) -> str:
    """Return a text field by either of the names that protobuf's JSON knows; '' if not given."""
    plain = name.replace("_", "")
    found = [value for key, value in document.items() if key.replace("_", "").lower() == plain]
    if len(found) > 1:
        raise RefusedError(400, f"{name} is given twice")
    value = found[0] if found else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RefusedError(400, f"{name} is no text")
    return value


def check(path: str, document: dict[str, Any]) -> str | None:
    """Check the addresses of a request; returns the source of a model version that is to be registered."""
    if path.endswith("/experiments/create") and field(document, "artifact_location"):
        raise RefusedError(400, "the server chooses where the artifacts of an experiment are kept")
    if path.endswith("/model-versions/create"):
        return paths.model_source(field(document, "source"))
    return None
