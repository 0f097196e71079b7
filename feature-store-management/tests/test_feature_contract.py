"""Contracts are read strictly, hold together, and are published as they are written."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from common_test_utils import CONTRACTS_DIR

from feature_contract import ContractError, load_contract, parse_contract

NAMES = sorted(path.stem for path in (CONTRACTS_DIR / "feature_services").glob("*.yaml"))
FRAUD = yaml.safe_load((CONTRACTS_DIR / "feature_services" / "fraud_detection_v1.yaml").read_text())


def test_every_service_has_a_contract():
    assert {"customer_churn_v1", "fraud_detection_v1", "movie_recommendation_v1"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_canonical_json_holds_what_the_file_holds(name: str):
    contract = load_contract(name)
    written = yaml.safe_load((CONTRACTS_DIR / "feature_services" / f"{name}.yaml").read_text())
    assert json.loads(contract.canonical_json()) == written
    assert parse_contract(contract.canonical_json(), "its own JSON") == contract


def test_canonical_json_does_not_hang_on_the_order_of_keys():
    backwards = {key: FRAUD[key] for key in reversed(FRAUD)}
    text = yaml.safe_dump(backwards, sort_keys=False)
    contract = load_contract("fraud_detection_v1")
    assert parse_contract(text, "backwards").canonical_json() == contract.canonical_json()


def test_fraud_vector_is_the_documented_one_in_order():
    windows = (1, 7, 30)
    assert [feature.name for feature in load_contract("fraud_detection_v1").features] == [
        "tx_amount",
        "tx_is_weekend",
        "tx_is_night",
        *(f"customer_tx_count_{days}d" for days in windows),
        *(f"customer_tx_amount_mean_{days}d" for days in windows),
        *(f"terminal_tx_count_{days}d" for days in windows),
        *(f"terminal_labelled_tx_count_{days}d" for days in windows),
        *(f"terminal_fraud_risk_{days}d" for days in windows),
    ]


def test_churn_vector_is_the_profile_in_order():
    contract = load_contract("customer_churn_v1")
    assert [feature.name for feature in contract.features] == [
        field.name for field in contract.view("subscriber_profile").fields
    ]


def expression_of(index: int, text: str) -> Callable[[dict[str, Any]], None]:
    def change(contract: dict[str, Any]) -> None:
        contract["on_demand"]["features"][index]["expression"] = text

    return change


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown key": (lambda c: c.update(owner="me"), "owner: Extra inputs"),
    "a missing key": (lambda c: c.pop("views"), "views: Field required"),
    "a name without its version": (lambda c: c.update(version=2), "does not end in _v2"),
    "a number as text": (lambda c: c["views"][0].update(ttl_seconds="86400"), "views.0.ttl_seconds"),
    "a lifetime of nothing": (lambda c: c["views"][0].update(ttl_seconds=0), "views.0.ttl_seconds"),
    "an unknown type": (lambda c: c["views"][0]["fields"][0].update(type="int32"), "views.0.fields.0.type"),
    "an unknown entity": (lambda c: c["views"][0].update(entity="merchant"), "no entity merchant"),
    "a field twice": (
        lambda c: c["views"][1]["fields"].append(dict(c["views"][0]["fields"][0])),
        "an input stands twice: customer_tx_count_full_1d",
    ),
    "a feature twice": (lambda c: c["features"].append(c["features"][0]), "a feature stands twice: tx_amou"),
    "a field that nothing reads": (
        lambda c: c["views"][0]["fields"].append({"name": "idle", "type": "int64"}),
        "nothing reads idle",
    ),
    "a feature of another source": (
        lambda c: c["features"][1].update(source="customer_daily", on_missing="null"),
        "customer_daily has no tx_is_weekend",
    ),
    "a feature of another type": (
        lambda c: c["features"][-1].update(type="int64", default=0),
        "terminal_daily has no terminal_fraud_risk_30d of type int64",
    ),
    "no word on missing values": (
        lambda c: (c["features"][-1].pop("on_missing"), c["features"][-1].pop("default")),
        "on_missing belongs to a view's field",
    ),
    "a default without a use": (lambda c: c["features"][-1].update(on_missing="null"), "only there"),
    "a default that is missing": (lambda c: c["features"][-1].pop("default"), "default stands where"),
    "a default of another type": (lambda c: c["features"][-1].update(default=0), "is no float64"),
    "null that is not text": (
        lambda c: (c["features"][-1].pop("default"), c["features"][-1].update(on_missing=None)),
        "on_missing belongs to a view's field",
    ),
    "an unknown word on stale values": (
        lambda c: c["features"][-1].update(on_stale="keep"),
        "features.17.on_stale",
    ),
    "a stale default that is missing": (
        lambda c: (
            c["features"][-1].pop("default"),
            c["features"][-1].update(on_missing="null", on_stale="default"),
        ),
        "default stands where",
    ),
    "a stale value of what is computed": (
        lambda c: c["features"][1].update(on_stale="use_stale"),
        "tx_is_weekend is computed: it has no age",
    ),
    "an expression out of the language": (expression_of(0, "tx_amount ** 2"), "Pow is not allowed"),
    "an expression over nothing known": (expression_of(0, "tx_amount + tip"), "reads tip, which nothing"),
    "an on-demand feature that is not served": (
        lambda c: c["features"].pop(1),
        "on-demand features outside the vector: tx_is_weekend",
    ),
}


@pytest.mark.parametrize("word", ["null", "default", "use_stale", "fail"])
def test_a_word_on_stale_values_is_published_where_it_stands(word: str):
    contract = copy.deepcopy(FRAUD)
    contract["features"][-1]["on_stale"] = word
    parsed = parse_contract(yaml.safe_dump(contract), "stale.yaml")
    assert parsed.features[-1].on_stale == word
    assert json.loads(parsed.canonical_json()) == contract
    assert '"on_stale"' not in load_contract("fraud_detection_v1").canonical_json()


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_contract_is_refused_and_the_place_named(fault: str):
    change, message = BROKEN[fault]
    contract = copy.deepcopy(FRAUD)
    change(contract)
    with pytest.raises(ContractError) as refusal:
        parse_contract(yaml.safe_dump(contract), "broken.yaml")
    assert str(refusal.value).startswith("broken.yaml: ")
    assert message in str(refusal.value)


def test_text_cannot_be_computed_with():
    contract = copy.deepcopy(FRAUD)
    contract["views"][0]["fields"].append({"name": "customer_name", "type": "string"})
    expression_of(0, "tx_amount + customer_name")(contract)
    with pytest.raises(ContractError, match="reads customer_name, which is no number"):
        parse_contract(yaml.safe_dump(contract), "broken.yaml")


def test_a_key_given_twice_is_refused():
    with pytest.raises(ContractError, match="key 'name' twice"):
        parse_contract("name: a_v1\nname: b_v1\n", "broken.yaml")


def test_what_is_no_yaml_is_refused():
    with pytest.raises(ContractError, match=r"broken\.yaml"):
        parse_contract("{", "broken.yaml")


def test_an_unknown_contract_is_named():
    with pytest.raises(ContractError, match="nothing_v1"):
        load_contract("nothing_v1")
