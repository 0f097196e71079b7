from __future__ import annotations

import pytest
from service_testkit import CUSTOMER, NOON, PROJECT, TERMINAL, contract, known_store, replies_to

from common_service_libs.batch_door import SERVICES, BatchScore, decide, main
from common_service_libs.decision_service import Case, ServedModel, judge
from common_service_libs.feature_vector import VectorBuilder
from common_service_libs.label_engine.engine import LabelEngine
from common_service_libs.label_engine.policy import find_policy, load_policy
from common_service_libs.online_store import FeatureReader, OnlineFeatures
from common_service_libs.release_bundle import load_bundle

POLICY = load_policy(find_policy(SERVICES / "fraud_detection_api" / "policies"))


def _served(bundle_folder) -> ServedModel:
    bundle = load_bundle(
        bundle_folder, model_name="fraud-detection-model", feature_service="fraud_detection_v1"
    )
    return ServedModel(
        version=1,
        bundle=bundle,
        reader=FeatureReader(bundle.contract, PROJECT),
        vectors=VectorBuilder(bundle.contract),
        engine=LabelEngine(POLICY, bundle.thresholds),
    )


def _online(model: ServedModel) -> OnlineFeatures:
    """Decode the test store without a server: what a pipelined read would answer."""
    commands, _ = model.reader.command({"customer_id": CUSTOMER, "terminal_id": TERMINAL})
    return model.reader.decode(replies_to(known_store(), commands), NOON)


@pytest.mark.parametrize("amount", [0.0, 57.16, 151.0, 220.0, 221.0, 400.0])
def test_both_doors_decide_the_same_on_the_same_vector(bundle_folder, amount: float) -> None:
    model = _served(bundle_folder)
    ids = {"customer_id": CUSTOMER, "terminal_id": TERMINAL}
    request = {"tx_amount": amount, "tx_timestamp": NOON}
    outcome = judge(Case(ids, {}, request, NOON, NOON), _online(model), model)
    assert outcome.score is not None
    features = dict(zip(model.bundle.contract.feature_names, outcome.vector.values, strict=True))
    as_json_numbers = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in features.items()
    }
    row = BatchScore("1", 1, model.bundle.sha256, ids, request, as_json_numbers, outcome.score)
    assert decide(row, model.engine) == outcome.verdict


def test_a_null_feature_of_a_batch_score_is_a_null_feature() -> None:
    engine = LabelEngine(POLICY, {"review": 0.5, "decline": 0.9})
    features = dict.fromkeys(contract("fraud_detection_v1").feature_names)
    row = BatchScore("1", 1, "x", {"customer_id": 1}, {"tx_amount": 1, "tx_timestamp": NOON}, features, 0.1)
    assert decide(row, engine).decision == "approve"


@pytest.mark.parametrize(
    ("score", "contract_kind", "decision", "reason"),
    [
        (0.8, "Two year", "offer", "HIGH_CHURN_SCORE"),
        (0.5, "Month-to-month", "contact", "MONTH_TO_MONTH_CONTRACT"),
        (0.1, "Month-to-month", "none", "LOW_CHURN_RISK"),
    ],
)
def test_subscribers_are_decided_by_the_policy_of_their_service(
    score: float, contract_kind: str, decision: str, reason: str
) -> None:
    """A batch row of churn has text among its features, whole numbers, and no request."""
    policy = load_policy(find_policy(SERVICES / "customer_churn_api" / "policies"))
    features = dict.fromkeys(contract("customer_churn_v1").feature_names)
    features |= {"subscriber_contract": contract_kind, "subscriber_tenure_months": 40}
    row = BatchScore("7", 1, "x", {"subscriber_id": 7}, {}, features, score)
    verdict = decide(row, LabelEngine(policy, {"contact": 0.3, "offer": 0.7}))
    assert verdict.decision == decision
    assert reason in verdict.reason_codes


def test_an_unknown_service_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--service", "nobody", "--date", "2026-01-31"])
    assert "invalid choice" in capsys.readouterr().err
