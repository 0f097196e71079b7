"""Lineage: each feature's raw columns by hand, what the page holds, and that nothing served is left out."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
from common_test_utils import CONTRACTS_DIR

import lineage.page
from feature_contract import load_contract
from lineage.columns import Column, Parents, ancestors, column_parents, raw_ancestors
from lineage.definitions import Definitions
from lineage.page import consumers, feature_lineage, main, names_read, render
from on_demand_expressions import names

SERVICES = sorted(path.stem for path in CONTRACTS_DIR.glob("feature_services/*.yaml"))


@pytest.fixture(scope="module")
def parents() -> Parents:
    return column_parents(Definitions())


@pytest.fixture(scope="module")
def lineage_of_all(parents: Parents) -> dict[str, Any]:
    return feature_lineage(Definitions(), parents)


def test_doctests_hold():
    assert doctest.testmod(lineage.page).failed == 0


@pytest.mark.parametrize(
    ("table", "column", "raw"),
    [
        ("fct_customer_daily", "customer_tx_count_full_7d", {"raw.transactions.*"}),
        ("fct_customer_daily", "customer_tx_amount_sum_full_7d", {"raw.transactions.tx_amount"}),
        ("fct_customer_today", "customer_today_day", {"raw.transactions.tx_date"}),
        ("fct_customer_today", "customer_tx_amount_sum_today", {"raw.transactions.tx_amount"}),
        (
            "fct_terminal_daily",
            "terminal_fraud_risk_30d",
            {"raw.transactions.*", "raw.transaction_labels.*", "raw.transaction_labels.is_fraud"},
        ),
        ("fct_subscriber_profile", "subscriber_contract", {"raw.subscribers.subscriber_contract"}),
        ("fct_movie_profile", "movie_is_scifi", {"raw.movies.genres"}),
        ("fct_movie_popularity", "movie_rating_mean", {"raw.ratings.*", "raw.ratings.rating"}),
    ],
)
def test_raw_columns_of_a_feature_are_those_it_is_computed_from(
    parents: Parents, table: str, column: str, raw: set[str]
):
    assert {str(found) for found in raw_ancestors(Column("features", table, column), parents)} == raw


def test_the_way_from_a_feature_to_its_raw_column_is_kept(parents: Parents):
    start = Column("features", "fct_customer_daily", "customer_tx_amount_sum_full_1d")
    assert {str(column) for column in ancestors(start, parents)} == {
        "features.fct_customer_daily.customer_tx_amount_sum_full_1d",
        "intermediate.int_customer_daily_totals.tx_amount_cents",
        "staging.stg_transactions.tx_amount_cents",
        "raw.transactions.tx_amount",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_feature_stands_in_order_and_comes_from_something(lineage_of_all: dict[str, Any], name: str):
    contract = load_contract(name)
    (service,) = [service for service in lineage_of_all["services"] if service["name"] == name]
    assert [feature["name"] for feature in service["features"]] == [f.name for f in contract.features]
    for feature in service["features"]:
        assert feature["fields"] or feature["request"]
        for field in feature["fields"]:
            assert field["raw"], field
            assert all(re.match(r"(raw|labels)\.\w+\.(\w+|\*)$", column) for column in field["raw"])


def test_names_of_expressions_are_those_the_interpreter_reads():
    for name in SERVICES:
        on_demand = load_contract(name).on_demand
        for feature in on_demand.features if on_demand else []:
            assert names_read(feature.expression) == set(names(feature.expression))


def test_an_on_demand_feature_names_fields_and_request(lineage_of_all: dict[str, Any]):
    (fraud,) = [s for s in lineage_of_all["services"] if s["name"] == "fraud_detection_v1"]
    (mean,) = [f for f in fraud["features"] if f["name"] == "customer_tx_amount_mean_1d"]
    assert mean["request"] == ["tx_amount", "tx_timestamp"]
    assert {field["name"] for field in mean["fields"]} == {
        *("customer_tx_amount_sum_full_1d", "customer_tx_count_full_1d"),
        *("customer_tx_amount_sum_today", "customer_tx_count_today", "customer_today_day"),
    }
    assert fraud["streams"] == {
        "customer_today": "transactions.v1",
        "terminal_today": "transactions-by-terminal.v1",
    }


def test_a_policy_says_who_uses_a_service(tmp_path: Path):
    policy = tmp_path / "ml-model-services" / "services" / "an_api" / "policies" / "p.yaml"
    policy.parent.mkdir(parents=True)
    policy.write_text("model: a-model\nfeature_service: a_v1\n")
    assert consumers(tmp_path) == {"a_v1": [{"model": "a-model", "service": "an_api"}]}


def test_the_page_is_one_file_that_holds_the_lineage(lineage_of_all: dict[str, Any]):
    page = render({"services": [], "note": "</script>"} | lineage_of_all)
    assert "https://" not in page
    assert re.findall(r'(?:src|href)="', page) == []
    data = re.search(r"^const LINEAGE = (.*);$", page, re.MULTILINE)
    assert data
    assert "</script" not in data[1]
    assert json.loads(data[1])["services"] == lineage_of_all["services"]


def test_the_command_writes_page_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          lineage_of_all: dict[str, Any]):  # fmt: skip
    monkeypatch.setattr(lineage.page, "feature_lineage", lambda *_: lineage_of_all)
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    assert main([]) == 0
    assert json.loads((tmp_path / "lineage" / "lineage.json").read_text()) == lineage_of_all
    assert (tmp_path / "lineage" / "index.html").read_text() == render(lineage_of_all)
    monkeypatch.delenv("REPORTS_DIR")
    assert main([]) == 2
