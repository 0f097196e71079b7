"""Whether one JSON Schema can follow another: which documents of a writer a reader would refuse, and why.

A reader is compatible with a writer when every document valid for the writer is valid for the reader. The
rules are those of Confluent's registry: BACKWARD (the new schema reads documents of the old), FORWARD (the
old reads documents of the new), FULL (both), each against the newest version or, `_TRANSITIVE`, against all.

The comparison may refuse what it cannot prove, such as a changed `oneOf`; it never lets through what a
document could contradict. `format` counts as a promise, as validators may check it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Schema = Mapping[str, Any] | bool
Rule = Literal[
    "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
]
RULES: tuple[str, ...] = get_args(Rule)
TYPES = ("null", "boolean", "object", "array", "string", "integer", "number")

# Keywords that say nothing about which documents are valid.
ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default",
        "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
    }
)  # fmt: skip
COMPARED = frozenset(
    {
        "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength",
        "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "pattern", "format",
        "multipleOf", "uniqueItems", "required", "properties", "additionalProperties", "items",
    }
)  # fmt: skip
DEFINITIONS = ("#/$defs/", "#/definitions/")
SIZES = (("Length", "length"), ("Items", "number of items"), ("Properties", "number of fields"))


class UnsupportedSchemaError(ValueError):
    """The schema uses a reference that can't be followed; the message names it."""


@dataclass(frozen=True)
class Difference:
    """Why a reader may refuse a writer's document: where, and what of the two does not fit."""

    path: str
    kind: str
    writer: str
    reader: str

    def explain(self, *, reader_is_newer: bool) -> str:
        """Return the difference as the change that somebody made.

        >>> Difference("tx_amount", "maximum", "1000", "100").explain(reader_is_newer=True)
        'tx_amount: maximum narrowed from 1000 to 100'
        """
        old, new = (self.writer, self.reader) if reader_is_newer else (self.reader, self.writer)
        kind = self.kind
        if kind == "required":
            change = "added as a required field" if self.writer == "absent" else "became required"
            if not reader_is_newer:
                change = "removed, and was required" if self.writer == "absent" else "is no longer required"
        elif kind == "unknown field":
            change = "removed from" if reader_is_newer else "added to"
            change += " a closed object"
        elif kind == "open object":
            change = (
                "was open to further fields and is closed now" if reader_is_newer else "was closed, is open"
            )
        elif kind in ("unproven", "open field"):
            change = f"{old} changed to {new}, which can't be shown to be compatible"
        else:
            change = f"{kind} {'narrowed' if reader_is_newer else 'widened'} from {old} to {new}"
        return f"{self.path or 'the document'}: {change}"


def incompatibilities(rule: Rule, new: Schema, published: Sequence[Schema]) -> list[str]:
    """Return why `new` may not follow the published versions (oldest first), empty where it may."""
    if rule == "NONE" or not published:
        return []
    transitive = rule.endswith("_TRANSITIVE")
    first = 1 if transitive else len(published)
    found: list[str] = []
    for version, old in enumerate(published[first - 1 :], start=first):
        reasons: list[str] = []
        if rule.startswith(("BACKWARD", "FULL")):
            reasons += [d.explain(reader_is_newer=True) for d in differences(old, new)]
        if rule.startswith(("FORWARD", "FULL")):
            reasons += [d.explain(reader_is_newer=False) for d in differences(new, old)]
        found += [f"{reason} (since version {version})" for reason in reasons]
    return list(dict.fromkeys(found))


def differences(writer: Schema, reader: Schema) -> list[Difference]:
    """Return every way in which a document valid for `writer` may be invalid for `reader`."""
    return list(_Comparison(writer, reader).schemas(writer, reader, ""))


class _Comparison:
    """One comparison: the two roots, to follow `$ref`, and the pairs already under way."""

    def __init__(self, writer: Schema, reader: Schema) -> None:
        self.writer_root, self.reader_root = writer, reader
        self.under_way: set[tuple[str, str]] = set()

    def schemas(self, writer: Schema, reader: Schema, path: str) -> Iterator[Difference]:
        writer, reader = _resolved(writer, self.writer_root), _resolved(reader, self.reader_root)
        if reader is True or reader == {} or writer is False:
            return
        if reader is False:
            yield Difference(path, "unproven", _shown(writer), "no value")
            return
        writer = {} if writer is True else writer
        pair = (_shown(writer), _shown(reader))
        if pair in self.under_way:
            return
        self.under_way.add(pair)
        assert isinstance(reader, Mapping)
        assert isinstance(writer, Mapping)
        yield from self._keywords(writer, reader, path)
        self.under_way.discard(pair)

    def _keywords(
        self, writer: Mapping[str, Any], reader: Mapping[str, Any], path: str
    ) -> Iterator[Difference]:
        yield from _unknown_keywords(writer, reader, path)
        listed = _values(writer)
        if listed is not None:
            yield from self._listed_values(listed, writer, reader, path)
            return
        if _values(reader) is not None:
            yield Difference(path, "values", "any", _shown(_values(reader)))
            return
        writes, reads = _types(writer), _types(reader)
        if not writes <= reads:
            yield Difference(path, "type", _type_names(writes), _type_names(reads))
        types = writes & reads
        if types & {"integer", "number"}:
            yield from _ranges(writer, reader, path)
        yield from _texts_and_sizes(writer, reader, path, types)
        if "array" in types:
            yield from self.schemas(writer.get("items", True), reader.get("items", True), f"{path}[]")
        if "object" in types:
            yield from self._objects(writer, reader, path)

    def _listed_values(
        self, listed: Sequence[Any], writer: Mapping[str, Any], reader: Mapping[str, Any], path: str
    ) -> Iterator[Difference]:
        """Compare a writer that lists its values: each value that it can write is tried on the reader."""
        from jsonschema import Draft202012Validator  # noqa: PLC0415 (slow, and rarely needed)

        written = [v for v in listed if Draft202012Validator(_rooted(writer, self.writer_root)).is_valid(v)]
        judge = Draft202012Validator(_rooted(reader, self.reader_root))
        refused = [value for value in written if not judge.is_valid(value)]
        if refused:
            readable = _values(reader)
            reads = _shown(readable) if readable is not None else f"values without {_shown(refused)}"
            yield Difference(path, "values", _shown(written), reads)

    def _objects(
        self, writer: Mapping[str, Any], reader: Mapping[str, Any], path: str
    ) -> Iterator[Difference]:
        writes: Mapping[str, Schema] = writer.get("properties", {})
        reads: Mapping[str, Schema] = reader.get("properties", {})
        writes_more: Schema = writer.get("additionalProperties", True)
        reads_more: Schema = reader.get("additionalProperties", True)
        always = set(writer.get("required", ()))
        for name in reader.get("required", ()):
            if name not in always:
                has = "present" if name in writes else "absent"
                yield Difference(_join(path, name), "required", has, "required")
        for name, schema in writes.items():
            if schema is False:
                continue
            if name not in reads and reads_more is False:
                yield Difference(_join(path, name), "unknown field", "present", "refused")
            else:
                yield from self.schemas(schema, reads.get(name, reads_more), _join(path, name))
        if writes_more is False:
            return
        for name in reads.keys() - writes.keys():
            # An open writer may have written anything under this name.
            for found in self.schemas(writes_more, reads[name], _join(path, name)):
                yield Difference(found.path, "open field", "an undeclared field", _shown(reads[name]))
                break
        if reads_more is False:
            yield Difference(path, "open object", "open", "closed")
        else:
            yield from self.schemas(writes_more, reads_more, _join(path, "*"))


def _unknown_keywords(
    writer: Mapping[str, Any], reader: Mapping[str, Any], path: str
) -> Iterator[Difference]:
    """A keyword that isn't understood here is no hindrance only where all of both schemas is the same."""
    known = ANNOTATIONS | COMPARED
    names = {key for key in reader if key not in known and not key.startswith("x-")}
    # What these mean depends on the keywords beside them, so that a same text may mean another thing.
    names |= {key for key in writer if key in ("patternProperties", "prefixItems", "$dynamicRef")}
    if names and _meaning(writer) != _meaning(reader):
        for name in sorted(names):
            yield Difference(path, "unproven", _keyword(writer, name), _keyword(reader, name))


def _ranges(writer: Mapping[str, Any], reader: Mapping[str, Any], path: str) -> Iterator[Difference]:
    for kind, sign in (("minimum", 1), ("maximum", -1)):
        exclusive = f"exclusive{kind.capitalize()}"
        writes, reads = _bound(writer, kind, exclusive, sign), _bound(reader, kind, exclusive, sign)
        # A bound as a pair that grows with its strictness.
        if reads is not None and (writes is None or writes < reads):
            yield Difference(path, kind, _shown_bound(writes, sign), _shown_bound(reads, sign))
    step = reader.get("multipleOf")
    if step is not None and writer.get("multipleOf") != step:
        yield Difference(path, "multipleOf", _keyword(writer, "multipleOf"), str(step))


def _bound(
    schema: Mapping[str, Any], inclusive: str, exclusive: str, sign: int
) -> tuple[float | int, bool] | None:
    bounds = [(sign * schema[inclusive], False)] if inclusive in schema else []
    bounds += [(sign * schema[exclusive], True)] if exclusive in schema else []
    return max(bounds, default=None)


def _shown_bound(bound: tuple[float | int, bool] | None, sign: int) -> str:
    if bound is None:
        return "none"
    return f"{sign * bound[0]}{' (exclusive)' if bound[1] else ''}"


def _texts_and_sizes(
    writer: Mapping[str, Any], reader: Mapping[str, Any], path: str, types: frozenset[str]
) -> Iterator[Difference]:
    of_type = {"Length": "string", "Items": "array", "Properties": "object"}
    for word, name in SIZES:
        if of_type[word] not in types:
            continue
        if writer.get(f"min{word}", 0) < reader.get(f"min{word}", 0):
            yield Difference(
                path, f"least {name}", str(writer.get(f"min{word}", 0)), str(reader[f"min{word}"])
            )
        most = reader.get(f"max{word}")
        if most is not None and writer.get(f"max{word}", float("inf")) > most:
            yield Difference(path, f"greatest {name}", str(writer.get(f"max{word}", "none")), str(most))
    for key, type_ in (("pattern", "string"), ("format", "string"), ("uniqueItems", "array")):
        if type_ in types and reader.get(key) and writer.get(key) != reader[key]:
            yield Difference(path, key, _keyword(writer, key), _keyword(reader, key))


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the types of JSON values a schema allows; a number may be whole."""
    stated = schema.get("type", TYPES)
    types = {stated} if isinstance(stated, str) else set(stated)
    return frozenset(types | ({"integer"} if "number" in types else set()))


def _type_names(types: frozenset[str]) -> str:
    if types == frozenset(TYPES):
        return "any"
    shown = types - {"integer"} if "number" in types else types
    return " or ".join(name for name in TYPES if name in shown)


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Follow a `$ref` inside the document; UnsupportedSchemaError for any other."""
    for _ in range(100):
        if isinstance(schema, bool) or "$ref" not in schema:
            return schema
        reference = schema["$ref"]
        beside = {key for key in schema if key != "$ref" and key not in ANNOTATIONS}
        if not isinstance(reference, str) or not reference.startswith(DEFINITIONS) or beside:
            raise UnsupportedSchemaError(
                f"$ref {reference!r}: only one that stands alone and leads to $defs can be compared"
            )
        target: Any = root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901
            if not isinstance(target, Mapping) or part not in target:
                raise UnsupportedSchemaError(f"$ref {reference!r} leads nowhere")
            target = target[part]
        schema = target
    raise UnsupportedSchemaError("a $ref refers to itself")


def _rooted(schema: Mapping[str, Any], root: Schema) -> dict[str, Any]:
    """Return a part of a document with the document's definitions, where its references lead."""
    shared = {key: root[key] for key in ("$defs", "definitions") if isinstance(root, Mapping) and key in root}
    return {**shared, **schema}


def _meaning(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in schema.items() if k not in ANNOTATIONS and not k.startswith("x-")}


def _keyword(schema: Mapping[str, Any], name: str) -> str:
    return f"{name} {_shown(schema[name])}" if name in schema else f"no {name}"


def _shown(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
