"""Which change of a schema is let through, which is refused, and that the reason names the field."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schema_registry.compatibility import UnsupportedSchemaError, differences, incompatibilities

BASE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["id", "amount"],
    "properties": {
        "id": {"type": "integer", "minimum": 0},
        "amount": {"type": "number", "minimum": 0, "maximum": 1000},
        "channel": {"enum": ["card", "web"]},
        "note": {"type": "string", "maxLength": 20},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
}


def changed(**parts: Any) -> dict[str, Any]:
    """BASE with properties replaced (None: removed), or, with an underscore, top-level keywords."""
    schema = copy.deepcopy(BASE)
    for name, part in parts.items():
        if name.startswith("_"):
            schema[name[1:]] = part
        elif part is None:
            del schema["properties"][name]
        else:
            schema["properties"][name] = part
    return schema


BACKWARD_BREAKS = [
    (changed(channel=None), "channel: removed from a closed object"),
    (changed(_required=["id", "amount", "channel"]), "channel: became required"),
    (
        changed(country={"type": "string"}, _required=["id", "amount", "country"]),
        "country: added as a required field",
    ),
    (
        changed(amount={"type": "integer", "minimum": 0, "maximum": 1000}),
        "amount: type narrowed from number to integer",
    ),
    (changed(amount={"type": "string"}), "amount: type narrowed from number to string"),
    (
        changed(amount={"type": "number", "minimum": 0, "maximum": 100}),
        "amount: maximum narrowed from 1000 to 100",
    ),
    (
        changed(amount={"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
        "amount: minimum narrowed from 0 to 0 (exclusive)",
    ),
    (changed(channel={"enum": ["card"]}), 'channel: values narrowed from ["card", "web"] to ["card"]'),
    (changed(note={"type": "string", "maxLength": 5}), "note: greatest length narrowed from 20 to 5"),
    (
        changed(note={"type": "string", "maxLength": 20, "pattern": "^a"}),
        'note: pattern narrowed from no pattern to pattern "^a"',
    ),
    (changed(note={"enum": ["a"]}), 'note: values narrowed from any to ["a"]'),
    (
        changed(tags={"type": "array", "items": {"type": "integer"}, "maxItems": 5}),
        "tags[]: type narrowed from string to integer",
    ),
    (
        changed(amount={"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01}),
        "amount: multipleOf narrowed from no multipleOf to 0.01",
    ),
    (changed(note={"oneOf": [{"type": "string"}, {"type": "null"}]}), "can't be shown to be compatible"),
]

BACKWARD_KEEPS = [
    changed(),
    changed(country={"type": "string"}),
    changed(_required=["id"]),
    changed(amount={"type": ["number", "null"], "minimum": 0, "maximum": 1000}),
    changed(amount={"type": "number", "minimum": 0, "maximum": 10_000}),
    changed(id={"type": "number", "minimum": 0}),
    changed(channel={"enum": ["card", "web", "phone"]}),
    changed(channel={"type": "string"}),
    changed(id={"type": "integer", "minimum": 0, "description": "words", "x-unit": "none"}),
    changed(_additionalProperties=True),
]


@pytest.mark.parametrize(("new", "reason"), BACKWARD_BREAKS, ids=[reason for _, reason in BACKWARD_BREAKS])
def test_a_change_that_old_documents_contradict_is_refused_with_field_and_reason(new, reason):
    [found] = incompatibilities("BACKWARD", new, [BASE])
    assert reason in found
    assert found.endswith("(since version 1)")


@pytest.mark.parametrize("new", BACKWARD_KEEPS)
def test_a_change_that_every_old_document_survives_is_let_through(new):
    assert incompatibilities("BACKWARD", new, [BASE]) == []


def test_forward_asks_what_the_old_reader_makes_of_new_documents():
    added = changed(country={"type": "string"})
    assert incompatibilities("FORWARD", added, [BASE]) == [
        "country: added to a closed object (since version 1)"
    ]
    assert incompatibilities("FORWARD", changed(channel=None), [BASE]) == []
    wider = changed(amount={"type": "number", "minimum": 0, "maximum": 5000})
    assert incompatibilities("FORWARD", wider, [BASE]) == [
        "amount: maximum widened from 1000 to 5000 (since version 1)"
    ]
    assert incompatibilities("FORWARD", changed(_required=["id"]), [BASE]) == [
        "amount: is no longer required (since version 1)"
    ]
    gone = changed(amount=None, _required=["id"])
    assert incompatibilities("FORWARD", gone, [BASE]) == [
        "amount: removed, and was required (since version 1)"
    ]


def test_full_is_both_and_none_is_neither():
    added, removed = changed(country={"type": "string"}), changed(channel=None)
    assert incompatibilities("FULL", added, [BASE])
    assert incompatibilities("FULL", removed, [BASE])
    assert incompatibilities("FULL", changed(), [BASE]) == []
    assert incompatibilities("NONE", changed(amount={"type": "string"}), [BASE]) == []


def test_transitive_rules_ask_every_version_and_the_others_the_last():
    """A field that comes back with another type: the last version never heard of it."""
    first = changed()
    second = changed(note=None, _additionalProperties=False)
    third = changed(note={"type": "integer"})
    assert incompatibilities("BACKWARD", third, [first, second]) == []
    assert incompatibilities("BACKWARD_TRANSITIVE", third, [first, second]) == [
        "note: type narrowed from string to integer (since version 1)"
    ]


def test_an_open_writer_may_have_written_anything_under_a_new_name():
    open_object = {"type": "object", "properties": {"id": {"type": "integer"}}}
    named = {"type": "object", "properties": {"id": {"type": "integer"}, "name": {"type": "string"}}}
    [reason] = incompatibilities("BACKWARD", named, [open_object])
    assert reason.startswith("name: an undeclared field changed to")
    [reason] = incompatibilities("BACKWARD", {**open_object, "additionalProperties": False}, [open_object])
    assert reason == "the document: was open to further fields and is closed now (since version 1)"


def test_references_to_definitions_are_followed_also_where_they_are_recursive():
    def tree(leaf: str) -> dict[str, Any]:
        return {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "value": {"type": leaf},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                }
            },
        }

    assert differences(tree("integer"), tree("number")) == []
    [reason] = incompatibilities("BACKWARD", tree("integer"), [tree("number")])
    assert reason.startswith("value: type narrowed from number to integer")


@pytest.mark.parametrize("reference", ["other.json", "#", "#/properties/id", "#/$defs/nowhere"])
def test_a_reference_that_cannot_be_followed_is_an_error(reference):
    schema = {"type": "object", "properties": {"id": {"type": "integer"}, "next": {"$ref": reference}}}
    with pytest.raises(UnsupportedSchemaError, match=r"\$ref"):
        differences(BASE, {**schema, "additionalProperties": {"$ref": reference}})


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "ab"]), st.just(0.5)
)
SCALAR_SCHEMAS = st.one_of(
    st.just({}),
    st.builds(lambda t: {"type": t}, st.sampled_from(["integer", "number", "string", "null", "boolean"])),
    st.builds(
        lambda t: {"type": t},
        st.lists(st.sampled_from(["integer", "string", "null"]), min_size=1, unique=True),
    ),
    st.builds(
        lambda low, size, strict: {
            "type": "number",
            "exclusiveMinimum" if strict else "minimum": low,
            "maximum": low + size,
        },
        st.integers(-3, 3),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(SCALARS, min_size=1, max_size=3)),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    st.builds(lambda value: {"const": value}, SCALARS),
)
NAMES = st.sampled_from(["a", "b"])
OBJECT_SCHEMAS = st.builds(
    lambda properties, required, more: {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": more,
    },
    st.dictionaries(NAMES, SCALAR_SCHEMAS, max_size=2),
    st.lists(NAMES, unique=True, max_size=2),
    st.one_of(st.booleans(), SCALAR_SCHEMAS),
)
SCHEMAS = st.one_of(
    SCALAR_SCHEMAS, OBJECT_SCHEMAS, st.builds(lambda items: {"type": "array", "items": items}, SCALAR_SCHEMAS)
)
ABSENT = object()
VALUES = [None, True, 0, 2, -3, 0.5, "", "ab"]
# Every object of two fields over these values, each field also absent: what a checker forgets shows up here.
DOCUMENTS = [
    *VALUES,
    *([value] for value in VALUES),
    *(
        {name: value for name, value in (("a", first), ("b", second)) if value is not ABSENT}
        for first in [ABSENT, *VALUES]
        for second in [ABSENT, *VALUES]
    ),
]


@settings(max_examples=300, deadline=None)
@given(pair=st.one_of(st.tuples(OBJECT_SCHEMAS, OBJECT_SCHEMAS), st.tuples(SCHEMAS, SCHEMAS)))
def test_what_is_let_through_is_never_contradicted_by_a_document(pair):
    writer, reader = pair
    if differences(writer, reader):
        return
    writes, reads = Draft202012Validator(writer), Draft202012Validator(reader)
    for document in DOCUMENTS:
        assert not writes.is_valid(document) or reads.is_valid(document), (writer, reader, document)


@settings(max_examples=100, deadline=None)
@given(schema=SCHEMAS)
def test_every_schema_can_follow_itself(schema):
    assert differences(schema, schema) == []
    assert incompatibilities("FULL_TRANSITIVE", schema, [schema, schema]) == []
