"""Rules as a Python function fire where CEL says they do, and leave to CEL what might differ."""

from __future__ import annotations

import math
import random
from typing import Any

import cel
import pytest
from hypothesis import given, settings
from test_label_engine import ENGINES
from test_policy_checks import FIELDS, INPUTS, expressions

from common_service_libs.label_engine.expressions import CEL_ERRORS, compile_expression, split, variable
from common_service_libs.label_engine.plain_rules import plain_rules

DOUBLES = [-1e308, -2.5, -1.0, -0.0, 0.0, 5e-324, 0.1, 0.5, 1.0, 2.0, 3.0, 1e16, 1.7e308]
INTS = [-(2**63), -1, 0, 1, 2, 3, 2**53 + 1, 2**63 - 1]
TEXTS = ["present", "stale", "", "é", "\U0001f642", "a'b"]
VALUES: dict[str, list[Any]] = {"double": DOUBLES, "int": INTS, "bool": [True, False], "string": TEXTS}
ODD: dict[str, list[Any]] = {
    "double": [None, math.nan, math.inf, -math.inf, 1, True, "1.0"],
    "int": [None, 2**63, -(2**63) - 1, 1.0, True, "1"],
    "bool": [None, 1, 0.0, "true"],
    "string": [None, 1, b"present"],
}


LITERALS = {
    "double": ["0.0", "-0.0", "1.0", "0.5", "1e308"],
    "int": ["0", "-1", "3", "9007199254740992"],
    "string": ["'present'", "'é'", '"a\'b"', "''"],
    "bool": ["true", "false"],
}
ROOTS = ("features", "request", "status", "lists", "velocity", "thresholds")


def asked_of_cel(text: str, row: dict[str, Any]) -> bool | str:
    values = {variable(*split(path)): value for path, value in row.items()}
    try:
        found = compile_expression(text, FIELDS).evaluate(cel.Context(values))
    except CEL_ERRORS:
        return "an error"
    assert isinstance(found, bool)
    return found


def asked_of_python(text: str, row: dict[str, Any]) -> bool | None:
    rules = plain_rules([compile_expression(text, FIELDS)], FIELDS, {"review": row["thresholds.review"]})
    if rules is None:
        return None
    by_root: dict[str, dict[str, Any]] = {root: {} for root in ROOTS}
    for path, value in row.items():
        root, name = split(path)
        if name:
            by_root[root][name] = value
    fires = rules(
        row["score"], row["degraded"], by_root["features"], by_root["request"], by_root["status"], by_root
    )
    return None if fires is None else fires[0]


class Writer:
    """Writes expressions of the right types, most of them with one type on both sides."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def truth(self, depth: int = 3) -> str:
        pick = self._chance.random()
        if depth and pick < 0.35:
            joined = self._chance.choice(["&&", "||"])
            return f"({self.truth(depth - 1)} {joined} {self.truth(depth - 1)})"
        if depth and pick < 0.45:
            return f"!({self.truth(depth - 1)})"
        if depth and pick < 0.52:
            return f"({self.truth(depth - 1)} ? {self.truth(depth - 1)} : {self.truth(depth - 1)})"
        kind = self._chance.choice(["double", "double", "double", "int", "string", "bool"])
        relations = ["==", "!="] if kind in {"bool", "string"} else ["==", "!=", "<", "<=", ">", ">="]
        left = self.value(kind, 1)
        if self._chance.random() < 0.1:
            return f"{left} {self._chance.choice(['==', '!='])} null"
        if kind != "bool" and self._chance.random() < 0.2:
            items = [self.value(kind, 0) for _ in range(self._chance.randint(0, 3))]
            return f"{left} in [{', '.join(items)}]"
        return f"{left} {self._chance.choice(relations)} {self.value(kind, 1)}"

    def value(self, kind: str, depth: int) -> str:
        pick = self._chance.random()
        if kind == "double" and depth and pick < 0.25:
            return f"({self.value(kind, 0)} {self._chance.choice('+-*')} {self.value(kind, 0)})"
        if kind == "double" and depth and pick < 0.3:
            return f"(-{self._chance.choice(['score', 'features.a'])})"
        if depth and pick < 0.35:
            return f"({self.truth(0)} ? {self.value(kind, 0)} : {self.value(kind, 0)})"
        if pick < 0.7:
            return self._chance.choice([path for path, of in FIELDS.items() if of == kind])
        return self._chance.choice(LITERALS[kind])

    def row(self) -> dict[str, Any]:
        return {path: self._chance.choice(VALUES[kind]) for path, kind in FIELDS.items()}


def test_what_is_translated_fires_where_cel_says_so() -> None:
    writer, translated, fired = Writer(1), 0, 0
    for _ in range(1500):
        text = writer.truth()
        for row in (writer.row() for _ in range(4)):
            found = asked_of_python(text, row)
            if found is not None:
                assert found == asked_of_cel(text, row), (text, row)
                translated, fired = translated + 1, fired + found
    assert translated > 3500, "most of what is written this way is translated"
    assert translated * 0.2 < fired < translated * 0.8


@settings(max_examples=100, deadline=None)
@given(expressions, INPUTS)
def test_any_expression_gives_what_cel_gives_or_is_left_to_it(text: str, row: dict[str, Any]) -> None:
    found = asked_of_python(text, row)
    assert found is None or found == asked_of_cel(text, row)


@pytest.mark.parametrize("path", [path for path in FIELDS if not path.startswith("thresholds")])
def test_a_value_of_another_type_or_none_at_all_is_left_to_cel(path: str) -> None:
    kind = FIELDS[path]
    row: dict[str, Any] = {other: VALUES[of][0] for other, of in FIELDS.items()}
    text = path if kind == "bool" else f"{path} == {path}"
    assert asked_of_python(text, row) is True
    for value in ODD[kind]:
        assert asked_of_python(text, row | {path: value}) is None, value
    if path not in {"score", "degraded"}:
        assert asked_of_python(text, {other: value for other, value in row.items() if other != path}) is None


@pytest.mark.parametrize(
    "text",
    [
        "features.a / features.b > 1.0",
        "features.a + features.b + score > 1.0",
        "-(features.a + features.b) > 1.0",
        "request.id + 1 > 2",
        "request.id % 2 == 0",
        "-request.id < 0",
        "request.id > 1.5",
        "features.a in [1]",
        "features.kind < 'b'",
        "features.kind + 'x' == 'ax'",
        "features.a in [null, 1.0]",
        "null == null",
    ],
)
def test_what_python_might_see_otherwise_is_left_to_cel(text: str) -> None:
    row = {path: VALUES[kind][0] for path, kind in FIELDS.items()}
    compile_expression(text, FIELDS)
    assert asked_of_python(text, row) is None


def test_the_rules_in_service_are_translated() -> None:
    assert all(engine._plain is not None for engine in ENGINES)


def test_the_engine_says_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, said = random.Random(2), set()
    for engine in ENGINES:
        inputs = engine.policy.inputs
        for _ in range(400):
            case: dict[str, Any] = {
                "score": chance.random(),
                "features": {name: chance.choice([0.0, 1.0, 0.5, 90.0]) for name in inputs.features},
                "request": {name: chance.choice([10.0, 200.0, 2000.0]) for name in inputs.request},
                "status": {name: chance.choice(["present", "stale"]) for name in inputs.status},
                "degraded": chance.random() < 0.2,
                "policy_inputs": {
                    "lists": {name: chance.random() < 0.2 for name in inputs.lists},
                    "velocity": {name: chance.choice([0.0, 50.0]) for name in inputs.velocity},
                },
            }
            plainly = engine.decide(**case)
            with monkeypatch.context() as patched:
                patched.setattr(engine, "_plain", None)
                assert engine.decide(**case) == plainly
            said.add(plainly.decision)
    assert {"approve", "review", "decline", "none", "contact", "offer"} <= said
