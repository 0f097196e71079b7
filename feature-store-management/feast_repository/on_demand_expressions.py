"""The contract's expression language: a checked subset of Python's expressions over IEEE doubles, in NumPy.

The language is specified in docs/architecture.md, "Feature service contract". Every interpreter must give the
values of contracts/expression_vectors.json. Null is NaN.

Feast stores this file's text in its registry beside the expressions (see `registered_source`), so that any
environment with NumPy and pandas computes the same: import nothing else here.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

SECONDS_A_DAY = 86400.0
MAX_DEPTH = 100
EPOCH_WEEKDAY = 3.0  # 1970-01-01 was a Thursday; Monday is 0


class ExpressionError(ValueError):
    """An expression is not of the language; the message names the expression and the position."""


def coalesce(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `b` where `a` is NaN."""
    return np.where(np.isnan(a), b, a)


def where(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `a` where `c` is neither 0 nor NaN, else `b`."""
    return np.where((c != 0) & ~np.isnan(c), a, b)


def day(t: np.ndarray) -> np.ndarray:
    """Return the days since 1970-01-01 of `t`, in seconds since the epoch (UTC)."""
    return np.floor(t / SECONDS_A_DAY)


def hour(t: np.ndarray) -> np.ndarray:
    """Return the hour of the day (0 to 23, UTC) of `t`, in seconds since the epoch."""
    return np.floor((t - SECONDS_A_DAY * np.floor(t / SECONDS_A_DAY)) / 3600.0)


def weekday(t: np.ndarray) -> np.ndarray:
    """Return the weekday (0 = Monday to 6 = Sunday, UTC) of `t`, in seconds since the epoch."""
    return np.mod(day(t) + EPOCH_WEEKDAY, 7.0)


def if_same_day(v: np.ndarray, d: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return `v` (0 where NaN) where `d`, in days since the epoch, is the day of `t`, else 0."""
    return np.where(d == day(t), coalesce(v, np.zeros(())), 0.0)


FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "coalesce": (coalesce, 2),
    "where": (where, 3),
    "day": (day, 1),
    "hour": (hour, 1),
    "weekday": (weekday, 1),
    "if_same_day": (if_same_day, 3),
}
OPERATORS: dict[type[ast.AST], Callable[..., np.ndarray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.UAdd: np.positive,
    ast.USub: np.negative,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}


def parse(expression: str) -> ast.expr:
    """Return the checked syntax tree; raises ExpressionError where the text is not of the language.

    >>> parse("coalesce(x, 0) + y ** 2")
    Traceback (most recent call last):
    ...
    on_demand_expressions.ExpressionError: 'coalesce(x, 0) + y ** 2', line 1, column 18: Pow is not allowed
    """
    try:
        root = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, column = getattr(error, "lineno", 1) or 1, getattr(error, "offset", 1) or 1
        message = f"{expression!r}, line {line}, column {column}: not an expression"
        raise ExpressionError(message) from error
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        try:
            if depth > MAX_DEPTH:
                raise _RefusedError(f"nesting deeper than {MAX_DEPTH}")
            pending.extend((operand, depth + 1) for operand in _operands(node))
        except _RefusedError as refusal:
            position = f"line {node.lineno}, column {node.col_offset + 1}"
            raise ExpressionError(f"{expression!r}, {position}: {refusal} is not allowed") from None
    return root


class _RefusedError(Exception):
    """What a syntax node holds that is not on the white list."""


def _operands(node: ast.expr) -> list[ast.expr]:
    """Return the expressions a node is made of; raises _RefusedError for what is not on the white list."""
    if isinstance(node, ast.Constant):
        if type(node.value) not in (int, float) or not _is_double(node.value):
            raise _RefusedError(f"the constant {node.value!r}")
        return []
    if isinstance(node, ast.Name):
        if node.id in FUNCTIONS:
            raise _RefusedError(f"the function {node.id} without a call")
        return []
    if isinstance(node, ast.Call):
        return _arguments(node)
    if isinstance(node, ast.UnaryOp):
        operators: list[ast.AST] = [node.op]
        operands = [node.operand]
    elif isinstance(node, ast.BinOp):
        operators, operands = [node.op], [node.left, node.right]
    elif isinstance(node, ast.Compare):
        operators, operands = [*node.ops], [node.left, *node.comparators]
        if len(operators) > 1:
            raise _RefusedError("a chained comparison")
    else:
        raise _RefusedError(type(node).__name__)
    for operator in operators:
        if type(operator) not in OPERATORS:
            raise _RefusedError(type(operator).__name__)
    return operands


def _arguments(node: ast.Call) -> list[ast.expr]:
    """Return the arguments of a call; raises _RefusedError where it is none of the language's functions."""
    if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
        raise _RefusedError(f"calling anything but {', '.join(FUNCTIONS)}")
    if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise _RefusedError("an argument that is not positional")
    arity = FUNCTIONS[node.func.id][1]
    if len(node.args) != arity:
        raise _RefusedError(f"{node.func.id} with {len(node.args)} arguments (it takes {arity})")
    return node.args


def _is_double(number: Any) -> bool:
    """Tell whether a literal fits a finite double (`1e999` parses as infinity, `10**400` as an int)."""
    try:
        return bool(np.isfinite(float(number)))
    except OverflowError:
        return False


def names(expression: str) -> list[str]:
    """Return the names an expression reads, each once, in order of appearance.

    >>> names("if_same_day(total, day_of_total, t) + coalesce(total, 0)")
    ['total', 'day_of_total', 't']
    """

    def walk(node: ast.expr) -> list[str]:
        if isinstance(node, ast.Name):
            return [node.id]
        operands = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
        return [name for child in operands if isinstance(child, ast.expr) for name in walk(child)]

    return list(dict.fromkeys(walk(parse(expression))))


def evaluate(expression: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the value of an expression for arrays of doubles of one length; 0-d for one without names.

    Raises ExpressionError for an expression that is not of the language or reads a name not in `columns`.

    >>> evaluate("coalesce(total, 0) + 1", {"total": np.array([2.5, np.nan])}).tolist()
    [3.5, 1.0]
    """
    root = parse(expression)

    def value(node: ast.expr) -> np.ndarray:
        if isinstance(node, ast.Constant):
            return np.float64(node.value)  # type: ignore[arg-type, return-value]
        if isinstance(node, ast.Name):
            if node.id not in columns:
                where_at = f"line {node.lineno}, column {node.col_offset + 1}"
                raise ExpressionError(f"{expression!r}, {where_at}: no value for {node.id}")
            return columns[node.id]
        if isinstance(node, ast.UnaryOp):
            return OPERATORS[type(node.op)](value(node.operand))
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare):
            truth = OPERATORS[type(node.ops[0])](value(node.left), value(node.comparators[0]))
            return truth.astype(np.float64)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return FUNCTIONS[node.func.id][0](*(value(argument) for argument in node.args))

    with np.errstate(all="ignore"):
        return np.asarray(value(root), dtype=np.float64)


def evaluate_frame(expressions: Mapping[str, str], inputs: pd.DataFrame) -> pd.DataFrame:
    """Return one column of doubles for each named expression, over the rows of `inputs`; null is NaN."""
    needed = dict.fromkeys(name for expression in expressions.values() for name in names(expression))
    columns = {
        name: pd.to_numeric(inputs[name]).to_numpy(dtype=np.float64, na_value=np.nan)
        for name in needed
        if name in inputs
    }
    values = {name: evaluate(expression, columns) for name, expression in expressions.items()}
    rows = len(inputs)
    return pd.DataFrame({name: np.broadcast_to(value, rows) for name, value in values.items()})


def registered_source(function: str, expressions: Mapping[str, str], module_source: str) -> str:
    """Return the text of a self-contained module that defines `function`, a pandas transformation for Feast.

    `module_source` is the text of this file: the registry then holds the interpreter with the expressions.
    """
    for expression in expressions.values():
        parse(expression)
    table = "".join(f"    {name!r}: {expression!r},\n" for name, expression in expressions.items())
    return (
        f"{module_source}\n\n"
        f"EXPRESSIONS = {{\n{table}}}\n\n\n"
        f"def {function}(inputs: pd.DataFrame) -> pd.DataFrame:\n"
        f"    return evaluate_frame(EXPRESSIONS, inputs)\n"
    )
