from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_testkit import contract

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.engine import LabelEngine, require_fit
from common_service_libs.label_engine.policy import Policy, find_policy, load_policy, parse_policy
from common_service_libs.label_engine.reason_codes import parse_table, reason_codes, reason_of_feature

SERVICES = Path(__file__).parents[1] / "services"
POLICIES = {
    "fraud_detection_api": {"review": 0.2, "decline": 0.7},
    "customer_churn_api": {"contact": 0.3, "offer": 0.6},
}

ENGINES = [
    LabelEngine(load_policy(find_policy(SERVICES / service / "policies")), thresholds)
    for service, thresholds in POLICIES.items()
]

HEAD = """
name: test
version: 3
model: fraud-detection-model
feature_service: fraud_detection_v1
description: For tests.
decisions: [approve, review, decline]
default: {decision: approve, reason_code: LOW_RISK}
without_features: rules_only
rules_only: {decision: review, reason_code: FEATURES_DEGRADED}
inputs:
  thresholds: [review]
  request: [tx_amount]
  features: [terminal_fraud_risk_7d, tx_amount]
  status: [customer_daily]
rules:
"""
RULE = """
  - id: risky
    description: Risky terminal.
    when: features.terminal_fraud_risk_7d > 0.5
    decision: review
    reason_code: TERMINAL_FRAUD_RISK
    owner: tests
    examples:
      - {given: {features.terminal_fraud_risk_7d: 0.6}, fires: true}
"""
READS = "when: features.terminal_fraud_risk_7d"


def rule(id_: str, when: str, given: str, *, decision: str = "review", mode: str = "enforce") -> str:
    return f"""
  - id: {id_}
    description: A rule.
    when: {when!r}
    decision: {decision}
    reason_code: AMOUNT_OVER_LIMIT
    owner: tests
    mode: {mode}
    examples:
      - {{given: {given}, fires: true}}
"""


def policy_of(*rules: str, head: str = HEAD) -> Policy:
    return parse_policy((head + "".join(rules)).encode(), "test.yaml")


def decide(policy: Policy, **changes: object):
    case = {
        "score": 0.0,
        "features": {"terminal_fraud_risk_7d": 0.0, "tx_amount": 1.0},
        "request": {"tx_amount": 1.0},
        "status": {"customer_daily": "present"},
        "degraded": False,
    } | changes
    return LabelEngine(policy, {"review": 0.5}).decide(**case)


# --- deciding -------------------------------------------------------------------------------------


def test_the_most_severe_rule_that_fires_decides_and_all_are_recorded_in_order() -> None:
    policy = policy_of(
        RULE,
        rule("big", "request.tx_amount > 10.0", "{request.tx_amount: 11.0}", decision="decline"),
        rule("high", "score >= thresholds.review", "{score: 0.9, thresholds.review: 0.5}"),
    )
    verdict = decide(
        policy,
        score=0.5,
        features={"terminal_fraud_risk_7d": 0.9, "tx_amount": 1.0},
        request={"tx_amount": 12.0},
    )
    assert verdict.decision == "decline"
    assert verdict.rules_fired == ("risky", "big", "high")
    assert verdict.reason_codes == ("TERMINAL_FRAUD_RISK", "AMOUNT_OVER_LIMIT")


def test_nothing_fires_and_the_default_decides() -> None:
    verdict = decide(policy_of(RULE))
    assert (verdict.decision, verdict.reason_codes, verdict.rules_fired) == ("approve", ("LOW_RISK",), ())


def test_a_shadow_rule_is_recorded_and_decides_nothing() -> None:
    policy = policy_of(rule("trial", "request.tx_amount > 0.0", "{request.tx_amount: 1.0}", mode="shadow"))
    verdict = decide(policy)
    assert (verdict.decision, verdict.reason_codes) == ("approve", ("LOW_RISK",))
    assert verdict.rules_fired == ("shadow:trial",)


@pytest.mark.parametrize("null", [None, math.nan])
def test_a_comparison_with_null_is_not_true_but_the_rest_of_the_rule_counts(null: float | None) -> None:
    either = rule(
        "either",
        "features.terminal_fraud_risk_7d > 0.5 || request.tx_amount > 10.0",
        "{features.terminal_fraud_risk_7d: 0.6, request.tx_amount: 1.0}",
    )
    policy = policy_of(RULE, either)
    features = {"terminal_fraud_risk_7d": null, "tx_amount": 1.0}
    assert decide(policy, features=features).rules_fired == ()
    assert decide(policy, features=features, request={"tx_amount": 11.0}).rules_fired == ("either",)
    failed: list[str] = []
    engine = LabelEngine(policy, {"review": 0.5}, failed.append)
    engine.decide(score=0.1, features=features, request={"tx_amount": 1.0}, status={}, degraded=False)
    assert failed == [], "null is no failure of the rule"


def test_null_can_be_asked_for() -> None:
    unknown = rule(
        "unknown", "features.terminal_fraud_risk_7d == null", "{features.terminal_fraud_risk_7d: null}"
    )
    assert decide(policy_of(unknown), features={"tx_amount": 1.0}).rules_fired == ("unknown",)


def test_a_rule_that_fails_on_values_is_reported_and_the_others_still_decide() -> None:
    policy = policy_of(
        RULE, rule("text", 'status.customer_daily == "stale"', "{status.customer_daily: stale}")
    )
    failed: list[str] = []
    engine = LabelEngine(policy, {"review": 0.5}, failed.append)
    verdict = engine.decide(
        score=0.1,
        features={"terminal_fraud_risk_7d": "not a number"},
        request={},
        status={"customer_daily": "stale"},
        degraded=False,
    )
    assert failed == ["risky"]
    assert verdict.rules_fired == ("text",)


def test_without_a_score_only_rules_that_need_neither_score_nor_features_are_asked() -> None:
    policy = policy_of(
        RULE,
        rule("high", "score >= thresholds.review", "{score: 0.9, thresholds.review: 0.5}"),
        rule("big", "request.tx_amount > 10.0", "{request.tx_amount: 11.0}", decision="decline"),
    )
    engine = LabelEngine(policy, {"review": 0.5})
    status = {"customer_daily": "unavailable"}
    small = engine.decide_without_score(request={"tx_amount": 1.0}, status=status)
    assert (small.decision, small.reason_codes) == ("review", ("FEATURES_DEGRADED",))
    assert engine.decide_without_score(request={"tx_amount": 11.0}, status=status).decision == "decline"


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + RULE + RULE, r"test.yaml:27: rule risky: the id is used twice"),
        (HEAD + RULE.replace("> 0.5", ">> 0.5"), r"test.yaml:20: rule risky: not an expression"),
        (HEAD + RULE.replace(READS, "when: features.risk"), "unknown field features.risk"),
        (HEAD + RULE.replace(READS, "when: amount"), "unknown field amount"),
        (HEAD + RULE.replace(READS, "when: size(features.tx_amount)"), "functions are not part"),
        (HEAD + RULE.split("    examples", maxsplit=1)[0], "an example in which the rule fires is missing"),
        (HEAD + RULE.replace("fires: true", "fires: false"), "an example in which the rule fires is missing"),
        (HEAD + RULE.replace(": 0.6}", ": 0.4}"), "example 1: the rule does not fire"),
        (HEAD + RULE.replace("{features.terminal_fraud_risk_7d: 0.6}", "{score: 0.6}"), "must give exactly"),
        (HEAD + RULE.replace(": 0.6}", ": high}"), r":25: rule risky: example 1: .* is a number, not"),
        (HEAD + RULE.replace(" > 0.5", " + 0.5"), r":20: rule risky: the expression gives a number, not"),
        (HEAD + RULE.replace("decision: review", "decision: shrug"), "unknown decision shrug"),
        (HEAD + RULE.replace("TERMINAL_FRAUD_RISK", "BECAUSE"), "BECAUSE is not in the table"),
        (HEAD + RULE.replace("owner: tests", "owners: tests"), "test.yaml:23: rule risky: .*unknown field"),
        (HEAD + RULE.replace("    owner: tests\n", ""), "missing required field `owner`"),
        (HEAD + RULE.replace("owner: tests", "owner: tests\n    owner: others"), "yaml:24: the key owner"),
        (HEAD.replace("version: 3", "version: three") + RULE, "test.yaml:3: version: Expected"),
        (HEAD.replace("rules_only: {", "rules_else: {") + RULE, "unknown field `rules_else`"),
        (HEAD.replace("without_features: rules_only", "without_features: refuse") + RULE, "goes with"),
        (HEAD + "  - nonsense\n", "test.yaml:16: a rule: a rule is a map"),
        ("- a list\n", "a map is needed"),
        ("a: [1, 2\n", "test.yaml:2"),
    ],
)  # fmt: skip
def test_a_wrong_policy_is_refused_with_file_line_and_rule(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(text.encode(), "test.yaml")


def test_a_policy_that_does_not_fit_the_bundle_is_refused() -> None:
    policy = policy_of(RULE)
    require_fit(policy, contract("fraud_detection_v1"))
    with pytest.raises(PolicyError, match=r"features\.terminal_fraud_risk_7d"):
        require_fit(policy, contract("customer_churn_v1"))
    with pytest.raises(PolicyError, match="thresholds that the bundle does not have"):
        LabelEngine(policy, {"decline": 0.5})


def test_field_names_in_text_and_comments_are_left_alone() -> None:
    text = 'features.kind == "features.x" // not features.y'
    head = HEAD.replace("features: [terminal_fraud_risk_7d, tx_amount]", "features: {kind: string}")
    policy = policy_of(rule("quoted", text, "{features.kind: features.x}"), head=head)
    assert policy.rules[0].when.fields == {("features", "kind")}
    features = {"kind": "features.x"}
    assert decide(policy, features=features).rules_fired == ("quoted",)


def test_the_version_of_a_policy_is_its_hash() -> None:
    assert policy_of(RULE).sha256 != policy_of(RULE.replace("Risky", "Very risky")).sha256


# --- the policies in service ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.policy.name)
def test_the_policies_fit_the_published_contracts(engine: LabelEngine) -> None:
    require_fit(engine.policy, contract(engine.policy.feature_service))


scores = st.floats(0, 1)


@given(scores, scores, st.data())
def test_a_higher_score_never_gives_a_milder_decision(a: float, b: float, data: st.DataObject) -> None:
    for engine in ENGINES:
        policy = engine.policy
        features = {name: data.draw(st.floats(0, 300) | st.none()) for name in policy.inputs.features}
        low, high = (
            policy.decisions.index(
                engine.decide(
                    score=score, features=features, request={"tx_amount": 10.0}, status={}, degraded=False
                ).decision
            )
            for score in sorted((a, b))
        )
        assert low <= high


def test_every_feature_of_the_published_contracts_has_one_reason_code() -> None:
    published = {
        feature
        for name in ("fraud_detection_v1", "customer_churn_v1")
        for feature in contract(name).feature_names
    }
    assert set(reason_of_feature()) == published
    assert set(reason_of_feature().values()) <= set(reason_codes())


@pytest.mark.parametrize(
    "text",
    [
        "- {code: A, meaning: x}\n- {code: A, meaning: y}",
        "- {code: A, meaning: x, features: [f]}\n- {code: B, meaning: y, features: [f]}",
        "- {code: small, meaning: x}",
        "- {code: A}",
        "a: [",
    ],
)
def test_a_wrong_table_of_reason_codes_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="table of reason codes"):
        parse_table(text)
