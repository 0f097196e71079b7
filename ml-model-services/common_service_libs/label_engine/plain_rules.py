"""The rules of a policy as one Python function, for a case in which every value is there.

A policy is CEL. Handing the values of a case over to CEL costs more than what most rules ask of them, and
most are comparisons. Those are translated from their tree where Python gives the same for sure: values of the
declared type, finite, nothing missing; comparisons of two values of one type; sums, differences and products
of two values at most, which cannot become NaN. A policy with a rule beyond that, and a case beyond that, is
CEL's. The tests compare both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common_service_libs.label_engine.expressions import BARE_FIELDS, Expression, split
from common_service_libs.label_engine.syntax import (
    Binary,
    Field,
    Items,
    Literal,
    Ternary,
    Tree,
    Unary,
)
from common_service_libs.label_engine.types import Type

PlainRules = Callable[..., tuple[bool, ...] | None]
"""(score, degraded, features, request, status, policy_inputs) -> which rules fire; None: ask CEL."""

_JOINED = {"&&": "and", "||": "or"}
_ORDER = frozenset({"<", "<=", ">", ">="})
_EQUAL = frozenset({"==", "!="})
_WHOLE = 2**63
_CHECKS: Mapping[Type, str] = {
    "double": "type({0}) is float and {0} - {0} == 0.0",
    "int": f"type({{0}}) is int and {-_WHOLE} <= {{0}} < {_WHOLE}",
    "bool": "({0} is True or {0} is False)",
    "string": "isinstance({0}, str)",
}
_ROOTS = {
    "features": "features[{0!r}]",
    "request": "request[{0!r}]",
    "status": "status[{0!r}]",
    "lists": "policy_inputs['lists'][{0!r}]",
    "velocity": "policy_inputs['velocity'][{0!r}]",
}


class _Beyond(Exception):
    """A rule of which Python might make something else than CEL does."""


def plain_rules(
    rules: Sequence[Expression], fields: Mapping[str, Type], thresholds: Mapping[str, float]
) -> PlainRules | None:
    """Return the function that says which rules fire, None of a case beyond it; None for a policy beyond it.

    `fields` are the types of the fields by path.
    """
    translator = _Translator(fields, thresholds)
    try:
        values = [translator.text(rule.tree) for rule in rules]
    except _Beyond:
        return None
    checks = [_CHECKS[fields[path]].format(name) for path, name in translator.names.items()]
    loads = [f"{name} = {_load(path)}" for path, name in translator.names.items() if name != path]
    lines = [
        "def rules(score, degraded, features, request, status, policy_inputs):",
        "    try:",
        *[f"        {load}" for load in [*loads, "pass"]],
        "    except KeyError:",
        "        return None",
        f"    if not ({' and '.join([*checks, 'True'])}):",
        "        return None",
        f"    return ({''.join(value + ', ' for value in values)})",
    ]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)  # noqa: S102 - out of a checked tree: names of our own and literals
    found: PlainRules = scope["rules"]
    return found


def _load(path: str) -> str:
    root, name = split(path)
    return _ROOTS[root].format(name)


class _Translator:
    """Writes trees as Python; `names` are the local names of the fields they read, by path."""

    def __init__(self, fields: Mapping[str, Type], thresholds: Mapping[str, float]) -> None:
        self._fields = fields
        self._thresholds = thresholds
        self.names: dict[str, str] = {}

    def text(self, tree: Tree) -> str:
        return self._typed(tree)[0]

    def _typed(self, tree: Tree) -> tuple[str, Type]:
        match tree:
            case Literal():
                return _literal(tree.value)
            case Field():
                return self._field(tree.path)
            case Unary(operator="!"):
                return f"(not {self._of(tree.operand, 'bool')})", "bool"
            case Unary():
                return f"(-{self._leaf(tree.operand)})", "double"
            case Ternary():
                then, kind = self._typed(tree.then)
                condition, otherwise = self._of(tree.condition, "bool"), self._of(tree.otherwise, kind)
                return f"({then} if {condition} else {otherwise})", kind
            case Binary():
                return self._binary(tree)
            case Items():
                raise _Beyond

    def _binary(self, tree: Binary) -> tuple[str, Type]:
        if tree.operator in _JOINED:
            left, right = self._of(tree.left, "bool"), self._of(tree.right, "bool")
            return f"({left} {_JOINED[tree.operator]} {right})", "bool"
        if tree.operator in {"+", "-", "*"}:
            return f"({self._leaf(tree.left)} {tree.operator} {self._leaf(tree.right)})", "double"
        if tree.operator == "in":
            left, kind = self._typed(tree.left)
            items = [self._of(item, kind) for item in tree.right.items]
            return f"({left} in ({''.join(item + ', ' for item in items)}))", "bool"
        left, kind = self._typed(tree.left)
        right, other = self._typed(tree.right)
        if "null" in (kind, other) and tree.operator in _EQUAL and kind != other:
            return repr(tree.operator == "!="), "bool"  # of what is there
        if kind != other or kind == "null":
            raise _Beyond
        if tree.operator in _EQUAL or (tree.operator in _ORDER and kind in {"double", "int"}):
            return f"({left} {tree.operator} {right})", "bool"
        raise _Beyond

    def _of(self, tree: Tree, wanted: Type) -> str:
        text, kind = self._typed(tree)
        if kind != wanted:
            raise _Beyond
        return text

    def _leaf(self, tree: Tree) -> str:
        """Return a number that is a field or literal: what is made of two of them is no NaN."""
        if not isinstance(tree, Literal | Field):
            raise _Beyond
        return self._of(tree, "double")

    def _field(self, path: str) -> tuple[str, Type]:
        root, name = split(path)
        if root == "thresholds":
            return _literal(self._thresholds[name])
        if root not in _ROOTS if name else path not in BARE_FIELDS:
            raise _Beyond
        kind = self._fields[path]
        if kind not in _CHECKS:
            raise _Beyond
        if path not in self.names:
            self.names[path] = f"v{len(self.names)}" if name else path
        return self.names[path], kind


def _literal(value: float | int | str | bool | None) -> tuple[str, Type]:
    match value:
        case None:
            return "None", "null"
        case bool():
            return repr(value), "bool"
        case int():
            return f"({value})", "int"
        case float() if math.isfinite(value):
            return f"({value!r})", "double"
        case str():
            return repr(value), "string"
    raise _Beyond
