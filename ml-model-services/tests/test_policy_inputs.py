"""Final rules, costs, lists and velocities: what rules read beside features, and what comes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.engine import LabelEngine, Verdict
from common_service_libs.label_engine.lists import NO_LISTS, load_lists, parse_lists
from common_service_libs.label_engine.policy import Policy, load_policy, parse_policy
from common_service_libs.label_engine.velocity import AT_MOST, Velocity, VelocityLimit

FRAUD = Path(__file__).parents[1] / "services/fraud_detection_api/policies/fraud_detection.yaml"
HEAD = """name: test
version: 1
model: m
feature_service: s
description: For tests.
decisions: [approve, review, decline]
default: {decision: approve, reason_code: LOW_RISK}
without_features: rules_only
rules_only: {decision: review, reason_code: FEATURES_DEGRADED}
inputs: {request: [amount], lists: [blocked, trusted]}
velocity: {n: {entity: customer_id, window_seconds: 60}}
"""
COSTS = """costs:
  owner: tests
  description: For tests.
  positive: {approve: request.amount, review: 8, decline: 0}
  negative: {approve: 0, review: 8, decline: 30.0 + 0.1 * request.amount}
  examples: [{given: {score: 0.5, request.amount: 100.0}, cheapest: review}]
"""


def rule(when: str, example: str, decision: str, reason: str, *, extra: str = "") -> str:
    return (
        f"  - {{id: {decision}-{reason}, description: d, when: '{when}', decision: {decision}, {extra}\n"
        f"     owner: o, reason_code: {reason}, examples: [{{given: {{{example}}}, fires: true}}]}}\n"
    )


BLOCK = rule("lists.blocked", "lists.blocked: true", "decline", "ON_BLOCK_LIST", extra="final: true,")
ALLOW = rule("lists.trusted", "lists.trusted: true", "approve", "ON_ALLOW_LIST", extra="final: true,")
BIG = rule("request.amount > 10.0", "request.amount: 11.0", "review", "AMOUNT_OVER_LIMIT")
OFTEN = rule("velocity.n > 3.0", "velocity.n: 4.0", "review", "UNUSUALLY_FREQUENT")


def policy_of(*rules: str, costs: str = "") -> Policy:
    return parse_policy((HEAD + costs + "rules:\n" + "".join(rules)).encode(), "p.yaml")


def decide(
    policy: Policy,
    *,
    score: float = 0.0,
    amount: float | None = 20.0,
    n: float | None = 1.0,
    **lists: bool,
) -> Verdict:
    inputs = {"lists": {"blocked": False, "trusted": False} | lists, "velocity": {"n": n}}
    return LabelEngine(policy, {}).decide(
        score=score, features={}, request={"amount": amount}, status={}, degraded=False, policy_inputs=inputs
    )


# --- final rules ----------------------------------------------------------------------------------


def test_the_first_final_rule_that_fires_decides_alone_and_the_rest_is_recorded() -> None:
    policy = policy_of(BIG, BLOCK, ALLOW)
    every = ("review-AMOUNT_OVER_LIMIT", "decline-ON_BLOCK_LIST", "approve-ON_ALLOW_LIST")
    assert decide(policy).decision == "review"
    assert decide(policy, trusted=True) == Verdict("approve", ("ON_ALLOW_LIST",), (every[0], every[2]))
    assert decide(policy, trusted=True, blocked=True) == Verdict("decline", ("ON_BLOCK_LIST",), every)


def test_final_rules_count_without_a_score_too() -> None:
    engine = LabelEngine(policy_of(BIG, ALLOW), {})
    inputs = {"lists": {"trusted": True, "blocked": False}, "velocity": {"n": None}}
    assert engine.decide_without_score(
        request={"amount": 50.0}, status={}, policy_inputs=inputs
    ).decision == ("approve")


# --- costs ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.floats(0, 1), st.floats(0, 5000))
def test_the_cheapest_decision_costs_no_more_than_any_other(score: float, amount: float) -> None:
    cheap = [
        rule(f'cheapest == "{d}"', f"cheapest: {d}", d, "EXPECTED_COST")
        for d in ("approve", "review", "decline")
    ]  # fmt: skip
    verdict = decide(policy_of(*cheap, costs=COSTS), score=score, amount=amount)
    positive = {"approve": amount, "review": 8.0, "decline": 0.0}
    negative = {"approve": 0.0, "review": 8.0, "decline": 30.0 + 0.1 * amount}
    expected = {d: score * positive[d] + (1 - score) * negative[d] for d in positive}
    assert expected[verdict.decision] <= min(expected.values()) + 1e-9


def test_a_cost_that_is_null_makes_no_decision() -> None:
    cheap = rule('cheapest == "review"', "cheapest: review", "review", "EXPECTED_COST")
    assert decide(policy_of(cheap, costs=COSTS), score=0.5, amount=None).rules_fired == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("review: 8, decline: 0}", "decline: 0}"), "p.yaml:15: costs: positive: a cost for each decision"),
        (("approve: request.amount", "approve: lists.blocked"), "costs: positive: approve: unknown field"),
        (("approve: request.amount", "approve: score"), "unknown field score"),
        (("approve: request.amount", "approve: request.amount > 1.0"),
         "a cost is a number, not true or false"),
        (("cheapest: review", "cheapest: decline"),
         "p.yaml:17: costs: example 1: the cheapest decision is review"),
        (("examples: [{given: {score: 0.5, request.amount: 100.0}, cheapest: review}]", "examples: []"),
         "costs: an example is missing"),
    ],
)  # fmt: skip
def test_wrong_costs_are_refused_with_line(change: tuple[str, str], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy_of(BIG, costs=COSTS.replace(*change))


def test_the_costs_of_the_fraud_policy_put_a_price_on_every_decision() -> None:
    engine = LabelEngine(load_policy(FRAUD), {"review": 0.2, "decline": 0.7})
    costs = engine.costs(features={}, request={"tx_amount": 100.0})
    assert costs == {"approve": (100.0, 0.0), "review": (8.0, 8.0), "decline": (0.0, 40.0)}
    assert engine.costs(features={}, request={}) is None


# --- lists ----------------------------------------------------------------------------------------

ENTRIES = [
    {"list": "blocked", "entity": "customer_id:596", "expires_at": "2026-02-01T00:00:00Z",
     "reason": "r", "owner": "o"},
    {"list": "blocked", "entity": "terminal_id:7", "expires_at": None, "reason": "r", "owner": "o"},
    {"list": "trusted", "entity": "customer_id:596", "expires_at": "2026-03-01", "reason": "r", "owner": "o"},
    {"list": "blocked", "entity": "customer_id:596", "expires_at": "2026-01-01T00:00:00+01:00", "reason": "r",
     "owner": "o"},
]  # fmt: skip
CSV = "list,entity,expires_at,reason,owner\n" + "".join(
    f"{e['list']},{e['entity']},{e['expires_at'] or ''},r,o\n" for e in ENTRIES
)
JANUARY, FEBRUARY, MARCH = 1769904000.0, 1769904000.0 + 86400, 1772323200.0  # 31 Jan 24:00 is 1 Feb


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("l.json", json.dumps(ENTRIES)),
        ("l.yaml", json.dumps(ENTRIES)),
        ("l.csv", CSV),
        ("l.CSV", "\ufeff" + CSV),
    ],
)
def test_an_entity_is_on_a_list_until_its_entry_expires(file: str, content: str) -> None:
    lists = parse_lists(content.encode(), file)
    names = ("blocked", "trusted", "nobody")
    card = {"customer_id": 596, "terminal_id": 8}
    assert lists.of(card, names, JANUARY - 1) == {"blocked": True, "trusted": True, "nobody": False}
    assert lists.of(card, names, JANUARY) == {"blocked": False, "trusted": True, "nobody": False}
    assert lists.of(card, names, MARCH)["trusted"] is False
    assert lists.of({"terminal_id": 7}, names, MARCH)["blocked"] is True
    assert lists.of({"customer_id": 7}, names, JANUARY - 1)["blocked"] is False
    assert lists.sizes() == {"blocked": 2, "trusted": 1}
    assert NO_LISTS.of(card, names, 0.0) == dict.fromkeys(names, False)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("l.yaml", "- {list: a, entity: customer_id:1, reason: r}", "l.yaml:1: owner is missing"),
        ("l.yaml", "- {list: a, entity: 596, reason: r, owner: o}", "l.yaml:1: entity is missing or no text"),
        ("l.yaml", "- {list: a, entity: '596', reason: r, owner: o}", "an entity such as customer_id:596"),
        ("l.yaml", "- {list: a, entity: c:1, reason: r, owner: o, until: x}", "unknown field until"),
        ("l.yaml", "-\n  list: a\n  entity: c:1\n  reason: r\n  owner: o\n  expires_at: soon",
         "l.yaml:2: .*no time"),
        ("l.yaml", "- {list: a, entity: c:1, reason: r, owner: o, expires_at: 2026-01-01T00:00:00}",
         "no zone|no time"),
        ("l.yaml", "a: 1", "a list of entries is needed"),
        ("l.yaml", "- [", "l.yaml:"),
        ("l.json", "[{", "l.json:1: not JSON"),
        ("l.json", "[1]", "entry 1: a map is needed"),
        ("l.csv", "list,entity\na,c:1\n", "l.csv:1: the header must name"),
        ("l.csv", "list,entity,expires_at,reason,owner\na,c:1,,r\n", "l.csv:2: a row has 5 fields"),
        ("l.csv", "list,entity,expires_at,reason,owner\na,c:1,then,r,o\n",
         "l.csv:2: expires_at 'then' is no time"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_lists_is_refused_as_a_whole(file: str, content: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_lists(content.encode(), file)


def test_lists_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_lists(tmp_path / "nowhere.csv")


# --- velocity -------------------------------------------------------------------------------------

LIMITS = Velocity(
    {"n": VelocityLimit("customer_id", 60), "spent": VelocityLimit("customer_id", 600, "tx_amount")},
    "project",
)


def test_a_limit_is_five_commands_and_the_window_is_part_of_its_key() -> None:
    commands = LIMITS.commands({"customer_id": 596}, {"tx_amount": 12.5}, "id-1", 1000.25)
    assert len(commands) == 10
    assert b"velocity:project:n::60:customer_id:596" in commands[0]
    assert b"\r\n940250000\r\n" in commands[0], "what came within the last 60 s stays"
    assert b"\r\n1000250000\r\n$4\r\nid-1\r\n" in commands[1]
    assert b"velocity:project:spent:tx_amount:600:customer_id:596" in commands[5]
    assert b"12.5|id-1" in commands[6]


@pytest.mark.parametrize(
    ("replies", "values"),
    [
        ([0, 1, 0, 4, 1, 0, 1, 0, [b"2.5|a", b"10.0|b"], 1], {"n": 4.0, "spent": 12.5}),
        ([0, 0, 0, 4, 1, 0, 0, 0, [b"2.5|a", b"9.0|a"], 1], {"n": 4.0, "spent": 2.5}),
        ([RuntimeError("LOADING")] * 10, {"n": None, "spent": None}),
        ([0, OSError("OOM"), 0, 4, 1, 0, 1, 0, OSError("WRONGTYPE"), 1], {"n": None, "spent": None}),
        ((), {"n": None, "spent": None}),
    ],
)  # fmt: skip
def test_replies_become_values_and_errors_null(replies: list, values: dict) -> None:
    assert LIMITS.values(replies) == values


def test_a_velocity_that_is_not_known_fires_nothing() -> None:
    policy = policy_of(OFTEN)
    assert decide(policy, n=4.0).reason_codes == ("UNUSUALLY_FREQUENT",)
    assert decide(policy, n=None).rules_fired == ()
    assert AT_MOST == 1000, "the documentation says so"


@pytest.mark.parametrize(
    ("velocity", "message"),
    [
        ("{n: {entity: customer_id, window_seconds: 0}}", "p.yaml:11: velocity n: a window has"),
        ("{n: {entity: customer_id}}", "p.yaml:11: velocity.*window_seconds"),
        ("{n n: {entity: customer_id, window_seconds: 1}}", "'n n' is not a name"),
    ],
)
def test_a_wrong_limit_is_refused(velocity: str, message: str) -> None:
    limit = "{n: {entity: customer_id, window_seconds: 60}}"
    text = HEAD.replace(limit, velocity) + "rules:\n" + BIG
    with pytest.raises(PolicyError, match=message):
        parse_policy(text.encode(), "p.yaml")


def test_the_examples_of_the_documentation_are_policies() -> None:
    text = (Path(__file__).parents[1] / "docs" / "policies.md").read_text(encoding="utf-8")
    rules, costs = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    head = HEAD[: HEAD.index("inputs:")]
    assert parse_policy((head + rules).encode(), "docs").velocity["spent_1h"].sum == "tx_amount"
    assert parse_policy((head + costs + rules).encode(), "docs").costs is not None
