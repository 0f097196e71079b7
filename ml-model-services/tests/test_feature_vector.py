from __future__ import annotations

import copy

import pytest
from service_testkit import contract, contract_document

from common_service_libs.errors import ContractError
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.feature_vector import VectorBuilder
from common_service_libs.online_store import OnlineFeatures

FRAUD = contract("fraud_detection_v1")
PRESENT, MISSING = FeatureStatus.PRESENT, FeatureStatus.MISSING
SATURDAY_NOON = 1728086400.0 + 12 * 3600


def known(contract: FeatureContract, values: dict, status: FeatureStatus = PRESENT) -> OnlineFeatures:
    """Return what a store says whose views all have one status."""
    return OnlineFeatures({view.name: status for view in contract.views}, {}, values)


def test_full_days_today_and_the_transaction_itself_are_added() -> None:
    online = {
        "customer_tx_count_full_7d": 15.0,
        "customer_tx_amount_sum_full_7d": 700.25,
        "customer_tx_count_today": 3.0,
        "customer_tx_amount_sum_today": 30.25,
        "customer_today_day": 20001.0,
    }
    built = VectorBuilder(FRAUD).build(
        known(FRAUD, online), {"tx_amount": 9.25, "tx_timestamp": SATURDAY_NOON}
    )
    vector = dict(zip(FRAUD.feature_names, built.values, strict=True))
    assert vector["customer_tx_count_7d"] == 19.0
    assert vector["customer_tx_amount_mean_7d"] == (700.25 + 30.25 + 9.25) / 19
    assert vector["tx_is_weekend"] == 1.0
    assert vector["tx_is_night"] == 0.0


def test_an_unknown_entity_takes_the_declared_defaults_and_they_are_named() -> None:
    built = VectorBuilder(FRAUD).build(
        known(FRAUD, {}, MISSING), {"tx_amount": 9.25, "tx_timestamp": SATURDAY_NOON}
    )
    vector = dict(zip(FRAUD.feature_names, built.values, strict=True))
    assert vector["customer_tx_count_30d"] == 1.0
    assert vector["customer_tx_amount_mean_30d"] == 9.25
    assert vector["terminal_fraud_risk_7d"] == 0.0
    assert set(built.fallbacks) == {n for n in vector if "risk" in n or "labelled" in n}
    assert built.failed == ()


def test_a_feature_that_may_not_be_missing_is_reported() -> None:
    churn = contract("customer_churn_v1")
    built = VectorBuilder(churn).build(
        known(churn, {"subscriber_tenure_months": 3.0}, FeatureStatus.NULL), {}
    )
    assert built.failed == ("subscriber_contract", "subscriber_monthly_charges_usd")
    assert built.values[churn.feature_names.index("subscriber_has_partner")] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["views"][0].update(entity="nobody"), "unknown entity nobody"),
        (lambda d: d["features"][12].update(source="customer_daily"), "is not in customer_daily"),
        (lambda d: d["features"][12].update(default=None), "has none"),
        (lambda d: d["features"].append(d["features"][0]), "twice"),
        (lambda d: d["entities"][0].update(type="bytes"), "only int64 and string"),
        (lambda d: d["views"][0]["fields"][0].update(type="bytes"), "has the type bytes"),
        (lambda d: d["features"][0].update(on_stale="null"), "tx_amount is computed"),
        (lambda d: d["features"][12].update(on_missing="null", on_stale="default", default=None), "has none"),
        (lambda d: d["features"][12].update(on_stale="use_it"), "not a feature service contract"),
        (lambda d: d["views"][0]["fields"].append({"name": "tx_amount", "type": "int64"}), "used twice"),
        (lambda d: d.update(features="none"), "not a feature service contract"),
        (lambda d: d["features"][12].update(on_missing="guess"), "not a feature service contract"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(change, message: str) -> None:
    document = copy.deepcopy(contract_document("fraud_detection_v1"))
    change(document)
    with pytest.raises(ContractError, match=message):
        parse_contract(document)


@pytest.mark.parametrize("name", ["fraud_detection_v1", "customer_churn_v1"])
def test_the_published_contracts_are_served(name: str) -> None:
    published = contract(name)
    VectorBuilder(published)
    assert published.name == name
