"""What a client notices of a change between two OpenAPI documents: breaks, and additions. Pure.

What a request may hold may only grow, what a reply may hold may only shrink, but for new fields: so both
sides of an operation are compared in opposite directions. Where a schema's keyword is not understood, any
change of it counts as a break.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

JsonObject = Mapping[str, Any]
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
# Words for people, and what a client does not rely on.
SILENT = frozenset(
    {"description", "title", "summary", "example", "examples", "default", "deprecated", "$defs"}
)
# Keyword: +1 if a greater value allows more, -1 if less.
BOUNDS = {
    "minimum": -1, "exclusiveMinimum": -1, "minLength": -1, "minItems": -1, "minProperties": -1,
    "maximum": 1, "exclusiveMaximum": 1, "maxLength": 1, "maxItems": 1, "maxProperties": 1,
}  # fmt: skip
COMPARED = frozenset(
    {
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "oneOf",
        *BOUNDS,
    }
)
NONE: JsonObject = {}


class Change(NamedTuple):
    """One difference: where, what, and whether a client that was right before may now be wrong."""

    place: str
    what: str
    breaks: bool


class _Documents(NamedTuple):
    old: JsonObject
    new: JsonObject


def compare(old: JsonObject, new: JsonObject) -> list[Change]:
    """Return every difference that a client can notice."""
    return list(dict.fromkeys(_paths(_Documents(old, new))))


def _paths(documents: _Documents) -> Iterator[Change]:
    old, new = documents.old.get("paths", NONE), documents.new.get("paths", NONE)
    for path in sorted({*old, *new}):
        for method in METHODS:
            before, after = old.get(path, NONE).get(method), new.get(path, NONE).get(method)
            place = f"{method.upper()} {path}"
            if before is None and after is not None:
                yield Change(place, "is new", False)
            elif before is not None and after is None:
                yield Change(place, "is gone", True)
            elif before is not None and after is not None:
                yield from _operation(documents, place, before, after)


def _operation(documents: _Documents, place: str, old: JsonObject, new: JsonObject) -> Iterator[Change]:
    yield from _parameters(documents, place, old.get("parameters", []), new.get("parameters", []))
    yield from _body(documents, place, old.get("requestBody"), new.get("requestBody"))
    yield from _responses(documents, place, old.get("responses", NONE), new.get("responses", NONE))
    yield from _security(place, old.get("security", []), new.get("security", []))


def _parameters(documents: _Documents, place: str, old: list[Any], new: list[Any]) -> Iterator[Change]:
    before = {(p["in"], p["name"]): p for p in (_resolved(documents.old, p) for p in old)}
    after = {(p["in"], p["name"]): p for p in (_resolved(documents.new, p) for p in new)}
    for key in sorted({*before, *after}):
        where = f"{place} parameter {key[1]}"
        if key not in after:
            yield Change(where, "is gone", True)
        elif key not in before:
            required = bool(after[key].get("required"))
            yield Change(where, "is new and required" if required else "is new", required)
        else:
            if after[key].get("required") and not before[key].get("required"):
                yield Change(where, "is now required", True)
            schemas = before[key].get("schema", NONE), after[key].get("schema", NONE)
            yield from _schema(documents, where, *schemas, request=True)


def _body(
    documents: _Documents, place: str, old: JsonObject | None, new: JsonObject | None
) -> Iterator[Change]:
    where = f"{place} body"
    if old is None or new is None:
        if old is not new:
            gone = new is None
            required = gone or bool((new or NONE).get("required"))
            yield Change(where, "is gone" if gone else "is new", required)
        return
    if new.get("required") and not old.get("required"):
        yield Change(where, "is now required", True)
    yield from _contents(documents, where, old, new, request=True)


def _responses(documents: _Documents, place: str, old: JsonObject, new: JsonObject) -> Iterator[Change]:
    for status in sorted({*old, *new}):
        where = f"{place} {status}"
        if status not in new:
            yield Change(where, "is gone", True)
        elif status not in old:
            yield Change(where, "is new", False)
        else:
            before, after = _resolved(documents.old, old[status]), _resolved(documents.new, new[status])
            yield from _contents(documents, where, before, after, request=False)


def _contents(
    documents: _Documents, place: str, old: JsonObject, new: JsonObject, *, request: bool
) -> Iterator[Change]:
    before, after = old.get("content", NONE), new.get("content", NONE)
    for media in sorted({*before, *after}):
        where = f"{place} {media}"
        if media not in after:
            yield Change(where, "is gone", True)
        elif media not in before:
            yield Change(where, "is new", False)
        else:
            schemas = before[media].get("schema", NONE), after[media].get("schema", NONE)
            yield from _schema(documents, where, *schemas, request=request)


def _security(place: str, old: list[JsonObject], new: list[JsonObject]) -> Iterator[Change]:
    def ways(security: list[JsonObject]) -> set[tuple[tuple[str, tuple[str, ...]], ...]]:
        return {
            tuple(sorted((name, tuple(scopes)) for name, scopes in way.items())) for way in security or [{}]
        }

    before, after = ways(old), ways(new)
    if before - after and () not in after:
        yield Change(place, "asks for other credentials", True)
    elif before != after:
        yield Change(place, "takes other credentials too", False)


def _resolved(document: JsonObject, part: JsonObject) -> JsonObject:
    """Return what a `$ref` stands for."""
    seen = 0
    while isinstance(part.get("$ref"), str) and seen < 20:
        target: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            target = target[name.replace("~1", "/").replace("~0", "~")]
        part, seen = target, seen + 1
    return part


def _schema(
    documents: _Documents, place: str, old: JsonObject, new: JsonObject, *, request: bool, depth: int = 0
) -> Iterator[Change]:
    """Compare what a value may be; in a request less is a break, in a reply more is."""
    old, new = _resolved(documents.old, old), _resolved(documents.new, new)
    if old == new and depth > 0 and "$ref" not in str(old):
        return
    if depth > 30:
        return
    yield from _types(place, old, new, request=request)
    yield from _choices(place, old, new, request=request)
    yield from _bounds(place, old, new, request=request)
    yield from _fields(documents, place, old, new, request=request, depth=depth)
    yield from _branches(documents, place, old, new, request=request, depth=depth)
    if "items" in old or "items" in new:
        items = old.get("items", NONE), new.get("items", NONE)
        yield from _schema(documents, f"{place}/*", *items, request=request, depth=depth + 1)
    for keyword in sorted({*old, *new} - COMPARED - SILENT):
        if old.get(keyword) != new.get(keyword):
            relaxed = request and keyword in old and keyword not in new
            yield Change(place, f"`{keyword}` has changed", not relaxed)


def _kinds(schema: JsonObject) -> frozenset[str] | None:
    kind = schema.get("type")
    if kind is None:
        return None
    kinds = {kind} if isinstance(kind, str) else set(kind)
    return frozenset(kinds | ({"integer"} if "number" in kinds else set()))


def _types(place: str, old: JsonObject, new: JsonObject, *, request: bool) -> Iterator[Change]:
    before, after = _kinds(old), _kinds(new)
    if before != after:
        yield _set_change(place, "type", before, after, request=request)


def _choices(place: str, old: JsonObject, new: JsonObject, *, request: bool) -> Iterator[Change]:
    def allowed(schema: JsonObject) -> frozenset[str] | None:
        if "const" in schema:
            return frozenset({repr(schema["const"])})
        return frozenset(map(repr, schema["enum"])) if "enum" in schema else None

    before, after = allowed(old), allowed(new)
    if before != after:
        yield _set_change(place, "set of values", before, after, request=request)


def _set_change(
    place: str, what: str, before: frozenset[str] | None, after: frozenset[str] | None, *, request: bool
) -> Change:
    """Say how a set changed; None allows everything."""
    narrower = after is not None and (before is None or not before <= after)
    wider = before is not None and (after is None or not after <= before)
    said = f"the {what} is {'another' if narrower and wider else 'narrower' if narrower else 'wider'}"
    return Change(place, said, narrower if request else wider)


def _bounds(place: str, old: JsonObject, new: JsonObject, *, request: bool) -> Iterator[Change]:
    for keyword, direction in BOUNDS.items():
        before, after = old.get(keyword), new.get(keyword)
        if before == after:
            continue
        wider = after is None or (before is not None and (after - before) * direction > 0)
        yield Change(
            place, f"`{keyword}` is {'wider' if wider else 'narrower'}", not wider if request else wider
        )


def _fields(
    documents: _Documents, place: str, old: JsonObject, new: JsonObject, *, request: bool, depth: int
) -> Iterator[Change]:
    before, after = old.get("properties", NONE), new.get("properties", NONE)
    must_before, must_after = set(old.get("required", ())), set(new.get("required", ()))
    for name in sorted({*before, *after}):
        where = f"{place}/{name}"
        if name not in after:
            yield Change(where, "is gone", True)
        elif name not in before:
            breaks = request and name in must_after
            yield Change(where, "is new and required" if breaks else "is new", breaks)
        else:
            if name in must_after - must_before:
                yield Change(where, "is now required" if request else "is now always there", request)
            if name in must_before - must_after:
                said = "need not be sent any more" if request else "is no longer always there"
                yield Change(where, said, not request)
            fields = before[name], after[name]
            yield from _schema(documents, where, *fields, request=request, depth=depth + 1)
    open_before, open_after = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if open_before != open_after:
        if isinstance(open_before, Mapping) and isinstance(open_after, Mapping):
            extras = open_before, open_after
            yield from _schema(documents, f"{place}/*", *extras, request=request, depth=depth + 1)
        elif request and open_after is not True:
            yield Change(place, "takes fewer unknown fields", True)
        elif not request and isinstance(open_before, Mapping):
            yield Change(place, "says less of its unknown fields", True)


def _branches(
    documents: _Documents, place: str, old: JsonObject, new: JsonObject, *, request: bool, depth: int
) -> Iterator[Change]:
    """Compare alternatives: each is held against the one of the other side that fits it best."""
    for keyword in ("anyOf", "oneOf"):
        before, after = old.get(keyword), new.get(keyword)
        if before is None and after is None:
            continue
        # A schema without alternatives is the only one.
        olds, news = before or [_bare(old)], after or [_bare(new)]
        given, allowed = (olds, news) if request else (news, olds)
        for number, schema in enumerate(given):
            fits = [
                list(
                    _schema(
                        documents, f"{place}|{number}",
                        *((schema, other) if request else (other, schema)), request=request, depth=depth + 1,
                    )
                )
                for other in allowed
            ]  # fmt: skip
            if not any(all(not change.breaks for change in changes) for changes in fits):
                if len(given) == len(allowed) == 1:
                    yield from fits[0]
                else:
                    side = "is no longer taken" if request else "is new"
                    yield Change(place, f"alternative {number} {side}", True)
        if len(olds) != len(news) and (len(news) > len(olds)) == request:
            yield Change(place, "the alternatives are other ones", False)


def _bare(schema: JsonObject) -> JsonObject:
    return {key: value for key, value in schema.items() if key not in {"anyOf", "oneOf"}}
