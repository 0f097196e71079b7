"""What is said of a policy before it decides anything: types, and rules that never fire or never matter."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.documents import WrongFile
from common_service_libs.label_engine.expressions import CEL_ERRORS, compile_expression, split, variable
from common_service_libs.label_engine.policy import Policy, domains_of, parse_policy
from common_service_libs.label_engine.reachability import implies, never
from common_service_libs.label_engine.syntax import canonical, parse
from common_service_libs.policy import main

FIELDS: dict[str, Any] = {
    "score": "double", "degraded": "bool", "thresholds.review": "double", "features.a": "double",
    "features.b": "double", "features.kind": "string", "request.id": "int", "lists.blocked": "bool",
    "velocity.n": "double", "status.daily": "string",
}  # fmt: skip
DOMAINS = domains_of(FIELDS, ("approve", "review"))

HEAD = """name: test
version: 1
model: m
feature_service: s
description: For tests.
decisions: [approve, review, decline]
default: {decision: approve, reason_code: LOW_RISK}
without_features: score_defaults
inputs: {thresholds: [review], request: {id: int, amount: double}, features: [a, b], lists: [blocked]}
velocity: {n: {entity: id, window_seconds: 60}}
rules:
"""


def rule(id_: str, when: str, example: str, **changes: str) -> str:
    fields = {"decision": "review", "reason_code": "AMOUNT_OVER_LIMIT", "owner": "tests"} | changes
    lines = [f"  - id: {id_}", "    description: A rule.", f"    when: {when}"]
    lines += [f"    {name}: {value}" for name, value in fields.items()]
    return "\n".join([*lines, "    examples:", f"      - {{given: {{{example}}}, fires: true}}", ""])


def policy_of(*rules: str) -> Policy:
    return parse_policy((HEAD + "".join(rules)).encode(), "p.yaml")


def problems_of(*rules: str) -> list[str]:
    with pytest.raises(WrongFile) as caught:
        policy_of(*rules)
    return [problem.said("p.yaml") for problem in caught.value.problems]


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('features.a == "x"', "`==` compares a number with a text"),
        ("features.a < true", "`<` compares a number with true or false"),
        ("features.kind > 5.0", "`>` compares a text with a number"),
        ("degraded + degraded > 1.0", "`+` joins true or false with true or false"),
        ("features.a + 5 > 1.0", "between a number and a whole number"),
        ("features.a % 2.0 == 0.0", "`%` joins a number"),
        ("features.a > null", "`>` compares a number with null"),
        ("score && degraded", "`&&` beside a number"),
        ("!score", "`!` before a number"),
        ("-degraded == degraded", "`-` before true or false"),
        ("degraded < lists.blocked", "`<` compares true or false"),
        ('features.a in ["x"]', "`in` looks for a number among values that are a text"),
        ("features.a in features.b", "on the right of `in` stands a list"),
        ("(score ? 1.0 : 2.0) > 1.0", "`?` after a number"),
        ('(degraded ? 1.0 : "x") == 1.0', "`?:` gives a number or a text"),
        ("[1.0] == [1.0]", "a list stands only on the right"),
        ("features.c > 1.0", "unknown field features.c"),
        ("feature.a > 1.0", "unknown field feature.a"),
        ("1.0 < score < 2.0", "comparisons are not chained"),
        ("size(features.kind) > 1", "functions are not part of the rule language: size"),
        ("features.kind[0] == 'a'", "indexing is not part of the rule language"),
        ("score > 1.0 extra", "'extra' was not expected here"),
        ("score >", "it ends too early"),
        ("score = 1.0", "'=' is not part of the rule language"),
        ('features.kind == "\\q"', "unknown escape"),
        ("request.id == 9007199254740993", "not exact beside other numbers"),
        ("(" * 60 + "score > 1.0" + ")" * 60, "nested too deeply"),
        ("!" * 60 + "degraded", "nested too deeply"),
    ],
)
def test_what_cel_would_refuse_at_run_time_is_refused_when_it_is_read(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message.replace("(", r"\(").replace("+", r"\+").replace("[", r"\[")
                       .replace("?", r"\?")):  # fmt: skip
        compile_expression(text, FIELDS)


@pytest.mark.parametrize(
    "text",
    ["request.id > 5.0", "request.id % 2 == 1", "features.kind + 'x' == 'ax'", "-features.a < 1",
     "features.a in [1, 2.0, null]", "features.kind != null", "degraded == true", "5 < features.a",
     'features.kind == "a" // and a comment', "(degraded ? features.a : features.b) > 1.0"],
)  # fmt: skip
def test_what_cel_can_evaluate_is_taken(text: str) -> None:
    expression = compile_expression(text, FIELDS)
    values = {"double": 2.0, "bool": True, "string": "a", "int": 7}
    context = {variable(*split(path)): values[kind] for path, kind in FIELDS.items()}
    assert isinstance(expression.evaluate(cel.Context(context)), bool)


# --- rules that never fire ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "false", "1.0 > 2.0", "'a' == 'b'", "score > 1.0", "score < 0.0", "thresholds.review > 1.5",
        "features.a > 5.0 && features.a < 3.0", "features.a > 5.0 && features.a <= 5.0",
        "features.a == 1.0 && features.a == 2.0", "features.a > 1.0 && !(features.a > 0.0)",
        "degraded && !degraded", "degraded == false && degraded", "features.a == null && features.a > 1.0",
        "features.kind == 'a' && features.kind == 'b'", "features.kind in ['a'] && features.kind != 'a'",
        "features.a in [1.0, 2.0] && features.a > 2.0", "status.daily == 'stail'",
        "(features.a > 3.0 || features.b > 1.0) && features.a < 2.0 && features.b < 0.0",
        "features.a * 2.0 > 1.0 && !(features.a * 2.0 > 1.0)", "degraded ? false : 1.0 > 2.0",
        "score >= thresholds.review && !(score >= thresholds.review)", "request.id < 3 && 5 < request.id",
    ],
)  # fmt: skip
def test_conditions_that_exclude_each_other_are_found(text: str) -> None:
    assert never(parse(text), DOMAINS)


@pytest.mark.parametrize(
    "text",
    ["score > 0.5", "score == 1.0", "features.a > 3.0 || features.a < 5.0",
     "features.a != 1.0 && features.a != 2.0",
     "features.a == null", "features.a > 3.0 && features.b < 3.0", "status.daily == 'stale'", "!degraded",
     "features.a >= 5.0 && features.a <= 5.0", "features.kind > 'a' && features.kind < 'b'",
     "velocity.n < 0.0",
     "!(features.a == 1.0) && features.a == null"],
)  # fmt: skip
def test_conditions_that_can_be_met_are_left_alone(text: str) -> None:
    assert not never(parse(text), DOMAINS)


def test_a_rule_that_can_never_fire_is_told_with_its_line() -> None:
    said = problems_of(rule("odd", "features.a > 5.0 && features.a < 3.0", "features.a: 4.0"))
    assert "p.yaml:14: rule odd: the rule can never fire: its conditions exclude each other" in said


# --- rules that never matter ----------------------------------------------------------------------

WIDE = rule("wide", "features.a > 1.0", "features.a: 2.0")


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ([WIDE, rule("again", "1.0 < features.a", "features.a: 2.0", reason_code="LOW_RISK")],
         "rule again: the rule can never matter: rule wide before it has the same condition"),
        ([WIDE, rule("narrow", "features.a > 2.0 && features.b > 1.0", "features.a: 3.0, features.b: 2.0")],
         "rule wide before it fires whenever it does, with this reason"),
        ([rule("last", "features.a > 1.0", "features.a: 2.0", decision="decline", final="true"),
          rule("narrow", "features.a >= 2.0", "features.a: 2.0", decision="decline", reason_code="LOW_RISK")],
         "wherever it fires, the final rule last decides alone"),
        ([rule("narrow", "features.a in [3.0, 4.0]", "features.a: 3.0"),
          rule("last", "features.a > 1.0", "features.a: 2.0", decision="approve", final="true")],
         "rule narrow: the rule can never matter: wherever it fires, the final rule last"),
    ],
)  # fmt: skip
def test_a_rule_that_can_never_matter_is_told(rules: list[str], why: str) -> None:
    assert any(why in said for said in problems_of(*rules))


@pytest.mark.parametrize(
    "second",
    [
        rule("more", "features.a > 2.0", "features.a: 3.0", decision="decline"),
        rule("reason", "features.a > 2.0", "features.a: 3.0", reason_code="LOW_RISK"),
        rule("wider", "features.a > 0.5", "features.a: 0.7"),
        rule("trial", "features.a > 2.0", "features.a: 3.0", mode="shadow"),
        rule("other", "features.b > 2.0", "features.b: 3.0"),
        rule("final", "features.a > 2.0", "features.a: 3.0", decision="approve", final="true"),
    ],
)
def test_a_rule_with_a_decision_or_a_reason_of_its_own_matters(second: str) -> None:
    assert len(policy_of(WIDE, second).rules) == 2


# --- the checks against random expressions and inputs ---------------------------------------------

VALUES = {
    "double": st.sampled_from([None, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0]),
    "int": st.sampled_from([None, 0, 1, 2, 3]),
    "bool": st.sampled_from([None, True, False]),
    "string": st.sampled_from([None, "present", "stale", "a"]),
}
CLOSED = {
    "score": st.sampled_from([None, 0.0, 0.5, 1.0]),
    "thresholds.review": st.sampled_from([0.0, 0.5, 1.0]),
    "degraded": st.booleans(),
    "lists.blocked": st.booleans() | st.none(),
    "status.daily": st.sampled_from([None, "present", "stale", "missing"]),
}
INPUTS = st.fixed_dictionaries({path: CLOSED.get(path, VALUES[kind]) for path, kind in FIELDS.items()})
NUMBERS = ["score", "thresholds.review", "features.a", "features.b", "request.id", "velocity.n"]
TEXTS = ["features.kind", "status.daily"]
number = st.sampled_from(["0.0", "0.5", "1.0", "2.0", "-1.0", "1", "2"])
text = st.sampled_from(["'present'", "'stale'", "'a'"])
relation = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
atoms = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), relation, number).map(" ".join),
    st.tuples(number, relation, st.sampled_from(NUMBERS)).map(" ".join),
    st.tuples(st.sampled_from(NUMBERS), relation, st.sampled_from(NUMBERS)).map(" ".join),
    st.tuples(st.sampled_from(TEXTS), relation, text).map(" ".join),
    st.tuples(st.sampled_from(TEXTS), st.lists(text | st.just("null"), max_size=3)).map(
        lambda pair: f"{pair[0]} in [{', '.join(pair[1])}]"
    ),
    st.tuples(st.sampled_from(NUMBERS), st.lists(number, max_size=3)).map(
        lambda pair: f"{pair[0]} in [{', '.join(pair[1])}]"
    ),
    st.tuples(st.sampled_from(NUMBERS + TEXTS), st.sampled_from(["== null", "!= null"])).map(" ".join),
    st.sampled_from(["degraded", "lists.blocked", "degraded == false", "lists.blocked != true"]),
    st.sampled_from(["true", "false"]),
    st.sampled_from(["features.a / features.b > 1.0", "features.a + features.b < 1.0"]),
)  # fmt: skip
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda one: f"!({one})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} ? {t[1]} : {t[2]})"),
    ),
    max_leaves=6,
)

# Two fields and few constants, so that expressions exclude and imply each other often.
near = st.recursive(
    st.one_of(
        st.tuples(relation, st.sampled_from(["0.0", "1.0", "2.0"])).map(
            lambda t: f"features.a {t[0]} {t[1]}"
        ),
        st.sampled_from(["features.a == null", "features.a != null", "features.a in [1.0, 2.0]", "degraded"]),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" && ".join),
        st.tuples(inner, inner).map(lambda t: f"({t[0]} || {t[1]})"),
        inner.map(lambda one: f"!({one})"),
    ),
    max_leaves=4,
)
EVERY = [
    dict.fromkeys(FIELDS) | {"features.a": a, "degraded": degraded}
    for a in (None, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    for degraded in (True, False)
]
rows = st.lists(INPUTS, min_size=4, max_size=8)


def fired(expression: str, inputs: list[dict[str, Any]]) -> list[bool]:
    program = compile_expression(expression, FIELDS).program
    found = []
    for row in inputs:
        try:
            found.append(
                program.execute(cel.Context({variable(*split(p)): v for p, v in row.items()})) is True
            )
        except CEL_ERRORS:
            found.append(False)
    return found


@settings(max_examples=60, deadline=None)
@given(expressions, rows)
def test_a_rule_said_to_be_unreachable_never_fires(expression: str, inputs: list[dict[str, Any]]) -> None:
    if never(parse(expression), DOMAINS):
        assert not any(fired(expression, inputs))


@settings(max_examples=150, deadline=None)
@given(near)
def test_a_rule_on_one_field_said_to_be_unreachable_never_fires(expression: str) -> None:
    if never(parse(expression), DOMAINS):
        assert not any(fired(expression, EVERY))


@settings(max_examples=150, deadline=None)
@given(near, near)
def test_a_rule_said_to_be_within_another_fires_only_with_it(one: str, other: str) -> None:
    for inner, outer in ((one, other), (other, one), (f"({one}) && ({other})", other)):
        if implies(parse(inner), parse(outer), DOMAINS):
            both = zip(fired(inner, EVERY), fired(outer, EVERY), strict=True)
            assert all(b for a, b in both if a), (inner, outer)


@settings(max_examples=40, deadline=None)
@given(expressions, INPUTS)
def test_an_expression_of_the_right_types_fails_on_nothing_but_null(
    expression: str, row: dict[str, Any]
) -> None:
    compiled = compile_expression(expression, FIELDS)
    known = {p: {"double": 1.5, "bool": True, "string": "a", "int": 2}[k] for p, k in FIELDS.items()}
    values = {p: known[p] if v is None else v for p, v in row.items()}
    if values["features.b"] == 0.0:
        values["features.b"] = 1.0  # 0 / 0 is NaN, whose comparison is an error like that of null
    value = compiled.evaluate(cel.Context({variable(*split(p)): v for p, v in values.items()}))
    assert isinstance(value, bool)


@settings(max_examples=40, deadline=None)
@given(expressions)
def test_the_canonical_text_reads_back_as_the_same_tree(expression: str) -> None:
    tree = parse(expression)
    shown = canonical(tree).replace("True", "true").replace("False", "false").replace("None", "null")
    assert canonical(parse(shown)) == canonical(tree)


@settings(max_examples=60)
@given(st.text(alphabet="()!&|<>=+-*/%?:[],.'\"abx01 \n\t", max_size=40))
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(PolicyError):
        compile_expression(text, FIELDS)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_every_problem_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        HEAD
        + rule("types", "features.a == 'x'", "features.a: 1.0")
        + rule("unknown", "features.c > 1.0", "features.c: 2.0", reason_code="BECAUSE")
    )
    right = tmp_path / "right.yaml"
    right.write_text(HEAD + WIDE)
    assert main(["check", str(wrong), str(right)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{wrong}:14: rule types: `==` compares a number with a text",
        f"{wrong}:22: rule unknown: unknown field features.c: not among the inputs of the policy",
        f"{wrong}:24: rule unknown: reason code BECAUSE is not in the table of reason codes",
        f"{right}: policy test version 1 is in order: 1 rules, 0 of them in shadow",
    ]
    assert main(["check", str(right)]) == 0
    assert main(["check", str(tmp_path / "nowhere.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().out
