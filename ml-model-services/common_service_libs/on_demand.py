"""The contract's expression language, compiled once to a function over Python floats, or over columns.

The language: names, numbers, `+ - * /`, a sign, one comparison (1.0 or 0.0) and six functions. All arithmetic
is IEEE double, null is NaN. `feature-store-management/contracts/expression_vectors.json` holds what every
interpreter of it must compute and refuse.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from common_service_libs.errors import ExpressionError
from common_service_libs.feature_contract import OnDemandFeature

SECONDS_A_DAY = 86400.0
MAX_EXPRESSION_CHARS = 4000

OnDemandFunction = Callable[[Mapping[str, float]], tuple[float, ...]]
ColumnsFunction = Callable[[Mapping[str, Any]], tuple[Any, ...]]


def divide(a: float, b: float) -> float:
    """Divide as IEEE 754 does.

    >>> divide(1.0, 0.0), divide(-1.0, 0.0), divide(0.0, 0.0)
    (inf, -inf, nan)
    """
    if b == 0.0:
        if a == 0.0 or a != a:
            return math.nan
        return math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def coalesce(a: float, b: float) -> float:
    """Return `b` where `a` is null."""
    return b if a != a else a


def where(c: float, a: float, b: float) -> float:
    """Return `a` where `c` is neither 0 nor null, else `b`."""
    return b if c == 0.0 or c != c else a


def _floor(value: float) -> float:
    return float(math.floor(value)) if math.isfinite(value) else value


def day(t: float) -> float:
    """Return the days since 1970-01-01 of `t` (seconds since the epoch, UTC)."""
    return _floor(t / SECONDS_A_DAY)


def hour(t: float) -> float:
    """Return the hour of the day of `t` (seconds since the epoch, UTC), 0 to 23."""
    return _floor((t - SECONDS_A_DAY * _floor(t / SECONDS_A_DAY)) / 3600.0)


def weekday(t: float) -> float:
    """Return the weekday of `t` (seconds since the epoch, UTC), 0 = Monday.

    >>> weekday(0.0)  # a Thursday
    3.0
    """
    days = day(t) + 3.0
    return days % 7.0 if math.isfinite(days) else math.nan


def if_same_day(v: float, d: float, t: float) -> float:
    """Return the running total `v` of day `d` if `t` falls on that day, else zero."""
    return coalesce(v, 0.0) if d == day(t) else 0.0


def _coalesce_columns(a: Any, b: Any) -> Any:
    return np.where(np.isnan(a), b, a)


def _where_columns(c: Any, a: Any, b: Any) -> Any:
    return np.where((c == 0.0) | np.isnan(c), b, a)


def _day_columns(t: Any) -> Any:
    return np.floor(np.divide(t, SECONDS_A_DAY))


def _hour_columns(t: Any) -> Any:
    return np.floor((t - SECONDS_A_DAY * _day_columns(t)) / 3600.0)


def _weekday_columns(t: Any) -> Any:
    return np.mod(_day_columns(t) + 3.0, 7.0)


def _if_same_day_columns(v: Any, d: Any, t: Any) -> Any:
    return np.where(d == _day_columns(t), _coalesce_columns(v, 0.0), 0.0)


def _flag_columns(test: Any) -> Any:
    return np.where(test, 1.0, 0.0)


FUNCTIONS: dict[str, tuple[Callable[..., float], int]] = {
    "coalesce": (coalesce, 2),
    "where": (where, 3),
    "day": (day, 1),
    "hour": (hour, 1),
    "weekday": (weekday, 1),
    "if_same_day": (if_same_day, 3),
}
_COLUMN_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "coalesce": _coalesce_columns,
    "where": _where_columns,
    "day": _day_columns,
    "hour": _hour_columns,
    "weekday": _weekday_columns,
    "if_same_day": _if_same_day_columns,
}
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_DIVIDE, _FLAG = "__divide", "__flag"
_ARGUMENT = "__inputs"


def names_in(expression: str) -> frozenset[str]:
    """Return the names that `expression` reads; raises ExpressionError for text outside of the language."""
    seen: set[str] = set()
    _Translator(expression, seen=seen).translate()
    return frozenset(seen)


def compile_features(features: Sequence[OnDemandFeature], inputs: Collection[str]) -> OnDemandFunction:
    """Compile all `features` into one function from input values to the tuple of feature values, in order.

    Raises ExpressionError for an expression outside of the language or a name that is not among `inputs`.
    """
    scope = {_DIVIDE: divide} | {name: pair[0] for name, pair in FUNCTIONS.items()}
    return _compiled(features, inputs, scope, columns=False)


def compile_columns(features: Sequence[OnDemandFeature], inputs: Collection[str]) -> ColumnsFunction:
    """As `compile_features`, over columns: NumPy arrays of doubles (or one number for all rows), null is NaN.

    Every row is, bit for bit, what `compile_features` computes of it. Call it under
    `np.errstate(all="ignore")`: a division by zero is no error here.
    """
    scope = {_DIVIDE: np.divide, _FLAG: _flag_columns} | _COLUMN_FUNCTIONS
    return _compiled(features, inputs, scope, columns=True)


def _compiled(
    features: Sequence[OnDemandFeature], inputs: Collection[str], scope: dict[str, Any], *, columns: bool
) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    bodies = []
    for feature in features:
        seen: set[str] = set()
        bodies.append(_Translator(feature.expression, seen=seen, columns=columns).translate())
        if unknown := sorted(seen - set(inputs)):
            raise ExpressionError(f"{feature.name}: unknown name {unknown[0]} in {feature.expression!r}")
    bodies = _computed_once(bodies)
    arguments = ast.arguments(
        posonlyargs=[], args=[ast.arg(_ARGUMENT)], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    tree = ast.Expression(ast.Lambda(arguments, ast.Tuple(bodies, ast.Load())))
    code = compile(ast.fix_missing_locations(tree), "<on-demand features>", "eval")
    compiled: Callable[[Mapping[str, Any]], tuple[Any, ...]] = eval(  # noqa: S307 - built here, node by node
        code, {"__builtins__": {}} | scope
    )
    return compiled


def _computed_once(bodies: Sequence[ast.expr]) -> list[ast.expr]:
    """Return expressions in which each call that occurs again is computed at its first place and kept.

    Every part of an expression is always evaluated, from left to right, so the first place comes first.
    """
    counts = Counter(_key(node) for body in bodies for node in ast.walk(body) if isinstance(node, ast.Call))
    kept: dict[str, str] = {}
    return [_Keeper(counts, kept).visit(body) for body in bodies]


def _key(node: ast.AST) -> str:
    return ast.dump(node)


class _Keeper(ast.NodeTransformer):
    def __init__(self, counts: Mapping[str, int], kept: dict[str, str]) -> None:
        self._counts = counts
        self._kept = kept

    def visit_Call(self, node: ast.Call) -> ast.expr:
        key = _key(node)
        if self._counts[key] == 1:
            return ast.Call(node.func, [self.visit(arg) for arg in node.args], [])
        if key in self._kept:
            return ast.Name(self._kept[key], ast.Load())
        computed = ast.Call(node.func, [self.visit(arg) for arg in node.args], [])
        self._kept[key] = name = f"__kept_{len(self._kept)}"
        return ast.NamedExpr(ast.Name(name, ast.Store()), computed)


class _Translator:
    """Turns one expression into a Python syntax tree that holds white-listed nodes only."""

    def __init__(self, expression: str, seen: set[str], *, columns: bool = False) -> None:
        self._expression = expression
        self._seen = seen
        self._columns = columns

    def translate(self) -> ast.expr:
        if len(self._expression) > MAX_EXPRESSION_CHARS:
            raise ExpressionError(f"an expression is longer than {MAX_EXPRESSION_CHARS} characters")
        try:
            tree = ast.parse(self._expression.strip(), mode="eval")
            return self._node(tree.body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"not an expression: {self._expression!r}: {error}") from None

    def _node(self, node: ast.expr) -> ast.expr:  # noqa: PLR0911 - one return a kind of node
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return ast.Constant(self._number(value))
            case ast.Name(id=name) if name not in FUNCTIONS:
                self._seen.add(name)
                return ast.Subscript(ast.Name(_ARGUMENT, ast.Load()), ast.Constant(name), ast.Load())
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                return ast.UnaryOp(op, self._node(operand))
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return ast.Call(ast.Name(_DIVIDE, ast.Load()), [self._node(left), self._node(right)], [])
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
                return ast.BinOp(self._node(left), op, self._node(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _COMPARISONS):
                test = ast.Compare(self._node(left), [op], [self._node(right)])
                if self._columns:
                    return ast.Call(ast.Name(_FLAG, ast.Load()), [test], [])
                return ast.IfExp(test, ast.Constant(1.0), ast.Constant(0.0))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                arity = FUNCTIONS[name][1]
                if len(args) != arity:
                    raise ExpressionError(f"{name} takes {arity} arguments: {self._expression!r}")
                return ast.Call(ast.Name(name, ast.Load()), [self._node(arg) for arg in args], [])
        raise ExpressionError(
            f"not in the expression language: {ast.unparse(node)!r} in {self._expression!r}"
        )

    def _number(self, value: float) -> float:
        try:
            return float(value)
        except OverflowError:
            raise ExpressionError(f"a number beyond a double in {self._expression!r}") from None
