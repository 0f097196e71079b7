"""The expression language: the published vectors, a scalar oracle, and what is refused."""

import doctest
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from common_test_utils import CONTRACTS_DIR
from hypothesis import given, settings
from hypothesis import strategies as st

import on_demand_expressions
from feature_contract import load_contract
from on_demand_expressions import ExpressionError, evaluate, evaluate_frame, names, parse, registered_source

VECTORS = json.loads((CONTRACTS_DIR / "expression_vectors.json").read_text())
NAN = float("nan")

Environment = dict[str, float]
Formula = tuple[str, Callable[[Environment], float]]


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def number(value: float | str | None) -> float:
    return NAN if value is None else float(value)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector_is_reproduced_bit_for_bit(case):
    columns = {name: np.array([number(value)] * 2) for name, value in case["inputs"].items()}
    result = np.broadcast_to(evaluate(case["expression"], columns), 2)
    assert all(same(value, number(case["expected"])) for value in result.tolist())


@pytest.mark.parametrize("case", VECTORS["rejected"], ids=lambda case: case["name"])
def test_what_is_not_of_the_language_is_refused_with_text_and_position(case):
    with pytest.raises(ExpressionError) as refusal:
        parse(case["expression"])
    assert repr(case["expression"]) in str(refusal.value)
    assert "line 1, column" in str(refusal.value)


def test_every_function_and_every_real_expression_has_a_vector():
    texts = {case["expression"] for case in VECTORS["cases"]}
    for function in on_demand_expressions.FUNCTIONS:
        assert any(text.startswith(f"{function}(") for text in texts), function
    on_demand = load_contract("fraud_detection_v1").on_demand
    assert on_demand is not None
    assert {feature.expression for feature in on_demand.features} <= texts


def test_position_points_at_the_offending_part():
    with pytest.raises(ExpressionError, match=r"'x \+ sqrt\(y\)', line 1, column 5: calling anything but"):
        parse("x + sqrt(y)")


TOO_MUCH = ["1e999", "9" * 400, "-" * 150 + "x", "-" * 100_000 + "x", "+".join("x" * 200)]


@pytest.mark.parametrize("text", TOO_MUCH, ids=lambda text: text[:10])
def test_numbers_and_nesting_beyond_what_is_exact_or_safe_are_refused(text):
    with pytest.raises(ExpressionError):
        parse(text)


def test_a_name_without_a_value_is_an_error_that_names_it():
    with pytest.raises(ExpressionError, match="column 5: no value for y"):
        evaluate("x + y", {"x": np.array([1.0])})


def test_doctests():
    result = doctest.testmod(on_demand_expressions)
    assert result.attempted > 0
    assert result.failed == 0


# A scalar oracle: every formula is drawn as text together with a function over plain floats.


def floor(x: float) -> float:
    return float(math.floor(x)) if math.isfinite(x) else x


def quotient(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return NAN
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def day(t: float) -> float:
    return floor(t / 86400.0)


SCALARS: dict[str, tuple[int, Callable[..., float]]] = {
    "coalesce": (2, lambda a, b: b if math.isnan(a) else a),
    "where": (3, lambda c, a, b: a if c != 0 and not math.isnan(c) else b),
    "day": (1, day),
    "hour": (1, lambda t: floor((t - 86400.0 * floor(t / 86400.0)) / 3600.0)),
    "weekday": (1, lambda t: (day(t) + 3.0) % 7.0 if math.isfinite(day(t)) else NAN),
    "if_same_day": (3, lambda v, d, t: (0.0 if math.isnan(v) else v) if d == day(t) else 0.0),
}
OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": quotient,
    "<": lambda a, b: float(a < b),
    "<=": lambda a, b: float(a <= b),
    ">": lambda a, b: float(a > b),
    ">=": lambda a, b: float(a >= b),
    "==": lambda a, b: float(a == b),
    "!=": lambda a, b: float(a != b),
}
NAMES = ["v", "d", "t"]
LEAVES: st.SearchStrategy[Formula] = st.one_of(
    st.sampled_from(NAMES).map(lambda name: (name, lambda environment: environment[name])),
    st.integers(0, 10**6).map(lambda n: (str(n), lambda _: float(n))),
    st.floats(0, 1e12, allow_subnormal=False).map(lambda x: (repr(x), lambda _: x)),
)


def grown(inner: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    def binary(parts: tuple[str, Formula, Formula]) -> Formula:
        symbol, (left, f), (right, g) = parts
        function = OPERATORS[symbol]
        return f"({left} {symbol} {right})", lambda environment: function(f(environment), g(environment))

    def negative(part: Formula) -> Formula:
        text, f = part
        return f"(-{text})", lambda environment: -f(environment)

    def call(name: str) -> st.SearchStrategy[Formula]:
        arity, function = SCALARS[name]
        return st.tuples(*[inner] * arity).map(
            lambda parts: (
                f"{name}({', '.join(text for text, _ in parts)})",
                lambda environment: function(*(f(environment) for _, f in parts)),
            )
        )

    return st.one_of(
        st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner).map(binary),
        inner.map(negative),
        *(call(name) for name in SCALARS),
    )


FORMULAS = st.recursive(LEAVES, grown, max_leaves=8)
VALUES = st.one_of(
    st.just(NAN),
    st.sampled_from([0.0, 20000.0, 20001.0, 1728000000.0, 1728086399.0, 1728086399.999999, 1728086400.0]),
    st.floats(-1e12, 1e12, allow_subnormal=False),
)
ROWS = st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES))


@settings(max_examples=60)
@given(formula=FORMULAS, rows=st.lists(ROWS, min_size=1, max_size=4))
def test_arrays_agree_with_a_scalar_oracle(formula: Formula, rows: list[Environment]):
    text, scalar = formula
    columns = {name: np.array([row[name] for row in rows]) for name in NAMES}
    result = np.broadcast_to(evaluate(text, columns), len(rows)).tolist()
    expected = [scalar(row) for row in rows]
    pairs = zip(result, expected, strict=True)
    assert all(same(left, right) for left, right in pairs), (text, result, expected)


@settings(max_examples=30)
@given(formula=FORMULAS)
def test_names_are_those_an_expression_cannot_do_without(formula: Formula):
    text, _ = formula
    everything = {name: np.array([1.0]) for name in NAMES}
    needed = names(text)
    assert len(set(needed)) == len(needed)
    evaluate(text, {name: everything[name] for name in needed})
    for name in needed:
        with pytest.raises(ExpressionError, match=f"no value for {name}"):
            evaluate(text, {other: value for other, value in everything.items() if other != name})


# What Feast stores and runs.


def test_columns_of_any_number_type_and_null_are_read_as_doubles():
    inputs = pd.DataFrame(
        {
            "whole": pd.array([1, None], dtype="Int64"),
            "nothing": [None, None],
            "float": [0.5, NAN],
        }
    )
    expressions = {"a": "whole + 1", "b": "coalesce(nothing, 7)", "c": "coalesce(float, 2)", "d": "3"}
    result = evaluate_frame(expressions, inputs)
    assert result.columns.tolist() == ["a", "b", "c", "d"]
    assert set(result.dtypes) == {np.dtype(np.float64)}
    assert result["a"].tolist()[0] == 2.0
    assert math.isnan(result["a"].tolist()[1])
    assert result["b"].tolist() == [7.0, 7.0]
    assert result["c"].tolist() == [0.5, 2.0]
    assert result["d"].tolist() == [3.0, 3.0]


def test_no_rows_give_no_rows():
    result = evaluate_frame({"a": "x + 1"}, pd.DataFrame({"x": pd.Series([], dtype=float)}))
    assert result.shape == (0, 1)


def test_registered_source_refuses_a_bad_expression():
    with pytest.raises(ExpressionError):
        registered_source("f", {"a": "x ** 2"}, "")


def test_registered_source_runs_where_this_project_is_not(tmp_path: Path):
    """In an isolated interpreter, executed without a file or module behind it, as Feast does."""
    cases = [case for case in VECTORS["cases"] if case["inputs"]]
    module_source = Path(on_demand_expressions.__file__).read_text()
    programs = [
        {
            "source": registered_source("computed", {"value": case["expression"]}, module_source),
            "inputs": {name: [value] for name, value in case["inputs"].items()},
            "expected": case["expected"],
        }
        for case in cases[:3] + cases[-12:]
    ]
    (tmp_path / "programs.json").write_text(json.dumps(programs))
    check = """
import json, math, sys
import pandas as pd
assert not any("feature-store" in path for path in sys.path if "venvs" not in path), sys.path
for program in json.load(open("programs.json")):
    namespace = {"__name__": "registry"}
    exec(program["source"], namespace)
    value = float(namespace["computed"](pd.DataFrame(program["inputs"]))["value"][0])
    expected = float("nan") if program["expected"] is None else float(program["expected"])
    assert value == expected or (math.isnan(value) and math.isnan(expected)), (program, value)
print("same")
"""
    command = [sys.executable, "-I", "-c", check]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "same", done.stderr
