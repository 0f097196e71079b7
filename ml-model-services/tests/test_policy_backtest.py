"""A changed policy on records: what is reproduced, what flips, what is counted; on records made here."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from common_service_libs.batch_door import SERVICES
from common_service_libs.label_engine.engine import LabelEngine
from common_service_libs.label_engine.lists import parse_lists
from common_service_libs.label_engine.policy import Policy, find_policy, parse_policy
from common_service_libs.policy_backtest import Comparison, compare, document_of
from common_service_libs.policy_measures import card_precision
from common_service_libs.policy_replay import REFUSED, UNDECIDABLE, Recorded, decide_anew, replay
from common_service_libs.policy_report import page

TEXT = find_policy(SERVICES / "fraud_detection_api" / "policies").read_text()
OLD = parse_policy(TEXT.encode(), "old.yaml")
NEW = parse_policy(
    TEXT.replace("220.0", "100.0").replace("version: 2\n", "version: 3\n").encode(), "new.yaml"
)
THRESHOLDS = {"review": 0.5, "decline": 0.9}
DAY = datetime(2026, 1, 30, 12, tzinfo=UTC).timestamp()


ENGINES: dict[str, LabelEngine] = {}


def engine_with(policy: Policy, record: Recorded | None = None) -> LabelEngine:
    if policy.sha256 not in ENGINES:
        ENGINES[policy.sha256] = LabelEngine(policy, THRESHOLDS)
    return ENGINES[policy.sha256]


def recorded(number: int, policy: Policy = OLD, **changes: Any) -> Recorded:
    """Return a record as the service writes one, decided by `policy`."""
    chance = random.Random(number)
    amount = round(chance.uniform(1, 300), 2)
    at = DAY + 86400 * (number % 3)
    features = {
        "tx_amount": amount, "customer_tx_count_30d": float(chance.randint(1, 40)), "tx_is_night": 0.0,
        "customer_tx_amount_mean_30d": 50.0, "terminal_tx_count_30d": 20.0,
        "terminal_fraud_risk_7d": chance.choice([0.0, 0.1, 0.5, None]),
    }  # fmt: skip
    case: dict[str, Any] = {
        "request_id": f"r-{number}", "requested_at": at,
        "entity_ids": {"customer_id": number % 40, "terminal_id": 7},
        "request": {"customer_id": number % 40, "terminal_id": 7, "tx_amount": amount,
        "transaction_id": number,
                    "tx_datetime": "2026-01-31T12:00:00.000000Z", "defaulted": []},
        "features": features,
        "feature_status": {"customer_daily": {"status": "present", "event_timestamp": None}},
        "model_name": "m", "model_version": 1, "bundle_sha256": "b", "policy_version": policy.version,
        "policy_sha256": policy.sha256, "score": round(chance.random(), 6), "decision": "",
        "reason_codes": (), "rules_fired": (), "degraded": False, "rung": "online",
        "policy_inputs": {"lists": {"blocked": False, "trusted_customers": number % 10 == 0},
                          "velocity": {}},
    } | changes  # fmt: skip
    said = replay(Recorded(**case), engine_with(policy))
    decided = {
        "decision": said.decision,
        "reason_codes": said.reason_codes,
        "rules_fired": said.rules_fired,
    }
    return Recorded(**(case | decided))


def run(
    records: list[Recorded], new: Policy = NEW, labels: Mapping[str, int] | None = None, lists: Any = None
) -> Comparison:
    return compare([(records, labels or {})], new, {OLD.sha256: OLD}, engine_with, lists)


def document(found: Comparison) -> dict[str, Any]:
    return document_of(
        found, service="fraud_detection_api", new=NEW, old={OLD.sha256: OLD},
        counts={OLD.sha256: found.records},
        command="python -m common_service_libs.policy backtest", labels_problem=None, unavailable={},
    )  # fmt: skip


RECORDS = [recorded(number) for number in range(300)]


def test_the_policy_of_the_records_reproduces_them_and_flips_nothing() -> None:
    found = run(RECORDS, new=OLD)
    assert (found.verified, found.mismatched, found.flips) == (300, 0, [])
    assert found.old.decisions == found.new.decisions
    assert len(found.old.decisions) == 3, "the records are of all kinds"


def test_exactly_those_decisions_flip_that_the_changed_rule_reaches() -> None:
    found = run(RECORDS)
    reached = {
        record.request_id
        for record in RECORDS
        if record.decision == "approve"
        and 100.0 < record.request["tx_amount"] <= 220.0
        and not record.policy_inputs["lists"]["trusted_customers"]
    }
    assert {flip["request_id"] for flip in found.flips} == reached
    assert len(reached) > 20
    for flip in found.flips:
        assert (flip["old"]["decision"], flip["new"]["decision"]) == ("approve", "review")
        assert flip["rules_gained"] == ["amount-over-limit"]
    assert found.new.alerts.total() - found.old.alerts.total() == len(reached)


def test_a_record_that_is_not_reproduced_is_told() -> None:
    values = {name: getattr(RECORDS[0], name) for name in Recorded.__struct_fields__}
    odd = Recorded(**(values | {"decision": "x"}))
    found = run([odd, *RECORDS[1:5]])
    assert (found.verified, found.mismatched) == (4, 1)
    assert found.mismatches[0]["request_id"] == "r-0"
    assert "1 decisions are not reproduced" in page(document(found))
    unknown = recorded(1, policy_sha256="0" * 64)
    assert run([unknown]).unverified == {"0" * 64: 1}


def test_costs_count_the_truth_where_it_is_known_and_the_score_elsewhere() -> None:
    one = next(r for r in RECORDS if r.decision == "approve" and 100.0 < r.request["tx_amount"] < 220.0
               and not r.policy_inputs["lists"]["trusted_customers"])  # fmt: skip
    amount, score = one.request["tx_amount"], one.score
    assert score is not None
    fraud = run([one], labels={one.request_id: 1})
    assert (fraud.old.cost_known, fraud.new.cost_known) == (amount, 8.0)
    assert fraud.old.cost_expected == pytest.approx(score * amount)
    assert fraud.flips[0]["cost_change"] == pytest.approx(8.0 - amount, abs=1e-3)
    assert (fraud.old.frauds_stopped, fraud.new.frauds_stopped, fraud.new.false_alerts) == (0, 1, 0)
    unlabelled = run([one])
    assert unlabelled.old.cost_known == 0.0
    assert unlabelled.flips[0]["cost_change"] == pytest.approx(8.0 - score * amount, abs=1e-3)


def test_card_precision_takes_the_highest_cards_of_a_day_and_drops_the_compromised() -> None:
    day1 = {card: [1.0 - card / 1000, 1.0 if card < 10 else 0.0] for card in range(150)}
    assert card_precision({"d1": day1}, ["d1"]) == pytest.approx(0.10)
    day2 = {5: [0.99, 1.0], 200: [0.5, 1.0]}
    assert card_precision({"d1": day1, "d2": day2}, ["d1", "d2"]) == pytest.approx((0.10 + 0.01) / 2)
    assert card_precision({"d1": day1}, []) is None
    labels = {record.request_id: int(record.entity_ids["customer_id"] < 5) for record in RECORDS}
    report = document(run(RECORDS, labels=labels))
    assert report["new"]["card_precision_at_100"] <= 0.05
    assert report["new"]["alert_precision"] == pytest.approx(
        report["new"]["frauds_stopped"] / report["new"]["alerts"]
    )


def test_lists_and_velocities_count_as_they_were_and_are_null_where_they_were_not_asked_for() -> None:
    text = TEXT.replace("lists: [blocked, trusted_customers]", "lists: [blocked, trusted_customers, watched]")
    text = text.replace("\nrules:\n", "\nvelocity: {n: {entity: customer_id, window_seconds: 60}}\nrules:\n")
    text += """
  - id: watched-or-often
    description: d
    when: lists.watched || velocity.n > 3.0
    decision: review
    reason_code: UNUSUALLY_FREQUENT
    owner: o
    examples: [{given: {lists.watched: true, velocity.n: null}, fires: true}]
"""
    new = parse_policy(text.encode(), "new.yaml")
    asked = {"lists": {"blocked": False, "trusted_customers": False, "watched": False}, "velocity": {"n": 4}}
    records = [recorded(1), recorded(2), recorded(3, policy_inputs=asked)]
    found = run(records, new=new)
    assert found.missing == {"lists.watched": 2, "velocity.n": 2}
    assert found.new.rules["watched-or-often"] == 1
    entry = b"- {list: watched, entity: customer_id:2, expires_at: 2026-06-01, reason: r, owner: o}"
    lists = parse_lists(entry, "l.yaml")
    found = run(records, new=new, lists=lists)
    assert found.missing == {"velocity.n": 2}
    assert found.new.rules["watched-or-often"] == 2


def test_decisions_without_the_store_follow_what_the_new_policy_wants() -> None:
    away = recorded(1, rung="defaults", degraded=True)
    text = TEXT.replace("without_features: score_defaults", "without_features: refuse")
    refusing = LabelEngine(parse_policy(text.encode(), "n"), THRESHOLDS)
    assert decide_anew(away, refusing).decision == REFUSED
    outcome = "without_features: rules_only\nrules_only: {decision: decline, reason_code: FEATURES_DEGRADED}"
    by_rules = LabelEngine(
        parse_policy(TEXT.replace("without_features: score_defaults", outcome).encode(), "n"), THRESHOLDS
    )
    assert decide_anew(away, by_rules).decision == "decline"
    scoreless = recorded(1, policy=by_rules.policy, rung="rules_only", score=None, degraded=True)
    assert scoreless.decision == "decline"
    assert decide_anew(scoreless, LabelEngine(OLD, THRESHOLDS)).decision == UNDECIDABLE
    stale = {"customer_daily": {"status": "stale", "event_timestamp": None}}
    assert (
        "degraded-features"
        in decide_anew(recorded(1, feature_status=stale), LabelEngine(OLD, THRESHOLDS)).rules_fired
    )


def test_the_page_holds_everything_and_asks_for_nothing_elsewhere() -> None:
    report = document(run(RECORDS, labels={record.request_id: 0 for record in RECORDS}))
    json.dumps(report)
    report["flips"][0]["request"]["note"] = "</script><script>alert(1)</script>"
    said = page(report)
    assert not re.search(r"(src|href)=|https?://|url\(|@import", said)
    held = re.search(r'id="flips">(.*?)</script>', said, re.DOTALL)
    assert held is not None
    assert json.loads(held[1]) == report["flips"]
    assert "reproduces all 300 decisions" in said
    for heading in ("Side by side", "Decisions by kind", "Alerts a day", "Rule hits", "Decisions that flip"):
        assert f"<h2>{heading}</h2>" in said
    results = {one["name"]: one for one in report["results"]}
    assert results["decisions_not_reproduced"]["met"] is True
    assert results["alerts_a_day"]["value"] > results["alerts_a_day"]["peer_value"]
