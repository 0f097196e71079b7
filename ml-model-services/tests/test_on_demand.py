from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_testkit import CONTRACTS

from common_service_libs.errors import ExpressionError
from common_service_libs.feature_contract import OnDemandFeature
from common_service_libs.on_demand import compile_columns, compile_features, divide, names_in

VECTORS = json.loads((CONTRACTS / "expression_vectors.json").read_text())


def evaluate(expression: str, inputs: dict[str, float | None]) -> float:
    function = compile_features([OnDemandFeature("f", "float64", expression)], set(inputs))
    return function({name: math.nan if v is None else float(v) for name, v in inputs.items()})[0]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_contract_vectors_are_reproduced_bit_for_bit(case: dict) -> None:
    value = evaluate(case["expression"], case["inputs"])
    expected = math.nan if case["expected"] is None else float(case["expected"])
    assert isinstance(value, float)
    assert math.isnan(value) if math.isnan(expected) else value == expected


@pytest.mark.parametrize("case", VECTORS["rejected"], ids=lambda case: case["name"])
def test_what_is_outside_of_the_language_is_refused(case: dict) -> None:
    with pytest.raises(ExpressionError):
        names_in(case["expression"])


def test_an_unknown_name_is_refused_before_anything_is_evaluated() -> None:
    with pytest.raises(ExpressionError, match="unknown name y"):
        compile_features([OnDemandFeature("f", "float64", "x + y")], {"x"})


def test_an_endless_or_deep_expression_is_refused() -> None:
    for expression in ("1+" * 3000 + "1", "(" * 900 + "1" + ")" * 900, "-" * 3900 + "1"):
        with pytest.raises(ExpressionError):
            names_in(expression)


floats = st.floats(allow_nan=True, allow_infinity=True)


@given(floats, floats)
def test_division_never_raises_and_agrees_with_ieee(a: float, b: float) -> None:
    with np.errstate(all="ignore"):
        expected = float(np.float64(a) / np.float64(b))
    result = divide(a, b)
    assert math.isnan(result) if math.isnan(expected) else result == expected


@given(st.lists(floats, min_size=3, max_size=3))
def test_no_input_makes_a_documented_expression_fail(values: list[float]) -> None:
    inputs = dict(zip(("v", "d", "t"), values, strict=True))
    for expression in ("if_same_day(v, d, t)", "hour(t) + weekday(t) * day(t)", "where(v > d, v / d, t / 0)"):
        assert isinstance(evaluate(expression, inputs), float)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_contract_vectors_are_reproduced_by_columns_too(case: dict) -> None:
    function = compile_columns([OnDemandFeature("f", "float64", case["expression"])], set(case["inputs"]))
    inputs = {name: np.array([math.nan if v is None else float(v)] * 2) for name, v in case["inputs"].items()}
    expected = math.nan if case["expected"] is None else float(case["expected"])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(np.broadcast_to(function(inputs)[0], 2), [expected] * 2)


@given(st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=5))
def test_columns_are_row_for_row_what_the_scalars_are(rows: list[tuple[float, float, float]]) -> None:
    features = [
        OnDemandFeature(str(n), "float64", text)
        for n, text in enumerate(
            ["if_same_day(v, d, t)", "hour(t) + weekday(t) * day(t)", "where(v > d, v / d, t / 0)",
             "coalesce(v, d) - t", "weekday(v)", "-v <= d", "2"]
        )
    ]  # fmt: skip
    scalar, columns = compile_features(features, {"v", "d", "t"}), compile_columns(features, {"v", "d", "t"})
    table = np.array(rows)
    with np.errstate(all="ignore"):
        together = columns(dict(zip(("v", "d", "t"), table.T, strict=True)))
    for row, values in enumerate(rows):
        alone = scalar(dict(zip(("v", "d", "t"), values, strict=True)))
        np.testing.assert_array_equal([np.broadcast_to(c, len(rows))[row] for c in together], alone)


@settings(deadline=None)  # each example compiles
@given(st.lists(floats, min_size=8, max_size=8))
def test_what_is_computed_once_for_all_is_what_each_computes_alone(values: list[float]) -> None:
    expressions = (
        "coalesce(a, 0) + if_same_day(b, c, t) + 1",
        "(coalesce(d, 0) + if_same_day(b, c, t) + 1) / (coalesce(a, 0) + if_same_day(b, c, t) + 1)",
        "where(hour(t) <= 6, if_same_day(e, c, t), day(t) / day(t))",
        "where(coalesce(a, 0) > f, day(t) - g, hour(t) * weekday(t + g))",
        "1 / (1 / (coalesce(a, 0)))",
    )
    known = dict(zip("abcdefgt", values, strict=True))
    features = [OnDemandFeature(f"f{at}", "float64", text) for at, text in enumerate(expressions)]
    together = compile_features(features, set(known))(known)
    alone = [evaluate(text, known) for text in expressions]
    assert [repr(value) for value in together] == [repr(value) for value in alone]
    with np.errstate(all="ignore"):
        columns = compile_columns(features, set(known))({k: np.array([v]) for k, v in known.items()})
    assert np.array_equal([float(column[0]) for column in columns], alone, equal_nan=True)
