"""The types of expressions: what CEL would refuse at run time is refused when a policy is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal as OneOf

from common_service_libs.label_engine.syntax import (
    Binary,
    Field,
    Items,
    Literal,
    SyntaxProblem,
    Ternary,
    Tree,
    Unary,
)

Type = OneOf["double", "int", "string", "bool", "null", "list"]
FIELD_TYPES: frozenset[Type] = frozenset({"double", "int", "string", "bool"})
_NUMBERS = frozenset({"double", "int"})
_SAID = {"double": "a number", "int": "a whole number", "string": "a text", "bool": "true or false"}


def type_of(tree: Tree, fields: Mapping[str, Type]) -> Type:
    """Return the type of an expression over typed `fields`.

    Every field may also be null. Raises SyntaxProblem for an unknown field and for operands that do not go
    together. CEL compares numbers of either kind, and calculates only with two of the same.
    """
    match tree:
        case Literal(value=value):
            return _literal_type(value)
        case Field():
            if tree.path not in fields:
                raise SyntaxProblem(f"unknown field {tree.path}: not among the inputs of the policy", tree.at)
            return fields[tree.path]
        case Unary():
            return _unary(tree, type_of(tree.operand, fields))
        case Binary(operator="in"):
            return _membership(tree, fields)
        case Binary():
            return _binary(tree, type_of(tree.left, fields), type_of(tree.right, fields))
        case Ternary():
            return _ternary(tree, fields)
        case Items():
            raise SyntaxProblem("a list stands only on the right of `in`", tree.at)


def said(kind: Type) -> str:
    """Return a type as people say it."""
    return _SAID.get(kind, kind)


def _literal_type(value: float | int | str | bool | None) -> Type:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    return "int" if isinstance(value, int) else "double"


def _unary(tree: Unary, operand: Type) -> Type:
    if tree.operator == "!":
        if operand != "bool":
            raise SyntaxProblem(f"`!` before {said(operand)}", tree.at)
        return "bool"
    if operand not in _NUMBERS:
        raise SyntaxProblem(f"`-` before {said(operand)}", tree.at)
    return operand


def _binary(tree: Binary, left: Type, right: Type) -> Type:
    match tree.operator:
        case "&&" | "||":
            for side, kind in ((tree.left, left), (tree.right, right)):
                if kind != "bool":
                    raise SyntaxProblem(f"`{tree.operator}` beside {said(kind)}", side.at)
            return "bool"
        case "==" | "!=":
            if not (left == right or "null" in (left, right) or {left, right} == _NUMBERS):
                raise _mismatch(tree, left, right)
            return "bool"
        case "<" | "<=" | ">" | ">=":
            if not ({left, right} <= _NUMBERS or left == right == "string"):
                raise _mismatch(tree, left, right)
            return "bool"
    if tree.operator == "+" and left == right == "string":
        return "string"
    if {left, right} == _NUMBERS:
        raise SyntaxProblem(
            f"`{tree.operator}` between {said(left)} and {said(right)}: "
            "CEL does not convert; write 5.0 for 5 beside a number",
            tree.at,
        )
    if left not in _NUMBERS or left != right or (tree.operator == "%" and left == "double"):
        raise _mismatch(tree, left, right)
    return left


def _mismatch(tree: Binary, left: Type, right: Type) -> SyntaxProblem:
    verb = "compares" if tree.operator in {"==", "!=", "<", "<=", ">", ">="} else "joins"
    return SyntaxProblem(f"`{tree.operator}` {verb} {said(left)} with {said(right)}", tree.at)


def _membership(tree: Binary, fields: Mapping[str, Type]) -> Type:
    left = type_of(tree.left, fields)
    if not isinstance(tree.right, Items):
        raise SyntaxProblem("on the right of `in` stands a list, such as [1.0, 2.0]", tree.at)
    for item in tree.right.items:
        kind = type_of(item, fields)
        if not (kind == left or "null" in (kind, left) or {kind, left} == _NUMBERS):
            raise SyntaxProblem(f"`in` looks for {said(left)} among values that are {said(kind)}", item.at)
    return "bool"


def _ternary(tree: Ternary, fields: Mapping[str, Type]) -> Type:
    if (condition := type_of(tree.condition, fields)) != "bool":
        raise SyntaxProblem(f"`?` after {said(condition)}", tree.at)
    then, otherwise = type_of(tree.then, fields), type_of(tree.otherwise, fields)
    if then != otherwise:
        raise SyntaxProblem(f"`?:` gives {said(then)} or {said(otherwise)}", tree.at)
    return then
