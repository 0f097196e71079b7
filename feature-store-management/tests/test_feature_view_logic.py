"""The Feast definitions say what the contracts and the feature tables say, and hold no label."""

import importlib
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from common_test_utils import CONTRACTS_DIR, DBT_DIR
from feast import Entity, FeatureService, FeatureView
from feast.on_demand_feature_view import OnDemandFeatureView

import entities
import feature_services
import feature_views
import on_demand_expressions
from contract_definitions import TYPES, computed_features, feature_service, on_demand_view
from data_sources import transaction_request
from feature_contract import FeatureContract, load_contract
from feature_views.transaction_on_demand import transaction_on_demand
from on_demand_expressions import names

CONTRACTS = [load_contract(path.stem) for path in sorted(CONTRACTS_DIR.glob("feature_services/*.yaml"))]
FRAUD, CHURN = load_contract("fraud_detection_v1"), load_contract("customer_churn_v1")


def defined(package: Any, kind: type) -> dict[str, Any]:
    """Return what the modules of a package define, by name."""
    modules = [
        importlib.import_module(f"{package.__name__}.{path.stem}")
        for path in sorted(Path(package.__path__[0]).glob("*.py"))
        if path.stem != "__init__"
    ]
    return {item.name: item for module in modules for item in vars(module).values() if isinstance(item, kind)}


FEATURE_VIEWS = defined(feature_views, FeatureView)
ON_DEMAND_VIEWS = defined(feature_views, OnDemandFeatureView)
FEATURE_SERVICES = defined(feature_services, FeatureService)
VIEWS: list[tuple[FeatureView, FeatureContract]] = [
    (FEATURE_VIEWS[view.name], contract) for contract in CONTRACTS for view in contract.views
]
SERVICES = [(FEATURE_SERVICES[contract.name], contract) for contract in CONTRACTS]


def view_id(value: object) -> str:
    return getattr(value, "name", "")


def documented_columns(model: str) -> list[str]:
    content = yaml.safe_load((DBT_DIR / "models" / "marts" / f"{model}.yml").read_text())
    return [column["name"] for column in content["models"][0]["columns"]]


def served_names(service: FeatureService) -> list[str]:
    return [
        feature.name for projection in service.feature_view_projections for feature in projection.features
    ]


def test_entities_are_those_of_the_contracts():
    declared = {(entity.name, entity.join_key) for contract in CONTRACTS for entity in contract.entities}
    ours = [entity for entity in vars(entities).values() if isinstance(entity, Entity)]
    assert {(entity.name, entity.join_key) for entity in ours} == declared


def test_every_view_and_service_of_a_contract_is_declared_once_in_a_file_of_its_name():
    declared = {view.name for contract in CONTRACTS for view in contract.views}
    computed = {contract.on_demand.view for contract in CONTRACTS if contract.on_demand}
    assert (set(FEATURE_VIEWS), set(ON_DEMAND_VIEWS)) == (declared, computed)
    folder = Path(feature_views.__path__[0])
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == declared | computed
    assert set(FEATURE_SERVICES) == {contract.name for contract in CONTRACTS}


@pytest.mark.parametrize(("view", "contract"), VIEWS, ids=view_id)
def test_view_is_as_its_contract_says(view: FeatureView, contract: FeatureContract):
    declared = contract.view(view.name)
    entity = next(entity for entity in contract.entities if entity.name == declared.entity)
    assert [(field.name, field.dtype) for field in view.features] == [
        (field.name, TYPES[field.type]) for field in declared.fields
    ]
    assert view.ttl == timedelta(seconds=declared.ttl_seconds)
    assert (view.entities, view.join_keys) == ([entity.name], [entity.join_key])
    assert view.online


@pytest.mark.parametrize(("view", "contract"), VIEWS, ids=view_id)
def test_view_reads_a_feature_table_that_has_its_columns(view: FeatureView, contract: FeatureContract):
    source = view.batch_source
    schema, table = source.get_table_query_string().split(".")
    assert schema == "features"
    assert (source.timestamp_field, source.created_timestamp_column) == (
        "event_timestamp",
        "created_timestamp",
    )
    key = contract.entities[
        [e.name for e in contract.entities].index(contract.view(view.name).entity)
    ].join_key
    assert documented_columns(table) == [
        key,
        "event_timestamp",
        "created_timestamp",
        *(field.name for field in contract.view(view.name).fields),
    ]


@pytest.mark.parametrize(("service", "contract"), SERVICES, ids=view_id)
def test_service_is_the_vector_and_carries_its_contract(service: FeatureService, contract: FeatureContract):
    requested = {field.name for field in contract.request}
    assert sorted(served_names(service)) == sorted(
        feature.name for feature in contract.features if feature.name not in requested
    )
    assert json.loads(service.tags["contract"]) == json.loads(contract.canonical_json())
    assert service.tags["contract"] == contract.canonical_json()


@pytest.mark.parametrize(("service", "contract"), SERVICES, ids=view_id)
def test_no_label_is_served(service: FeatureService, contract: FeatureContract):
    labels = {"is_fraud", "fraud_scenario", "churned", "label_known_at"}
    labels |= {
        column
        for table in ("fct_fraud_labels", "fct_churn_labels", "fct_movie_ratings")
        for column in documented_columns(table)
    } - {
        *(entity.join_key for entity in contract.entities),
        *("event_timestamp", "tx_amount", "tx_date", "transaction_id"),
    }
    assert not labels & set(served_names(service))
    for projection in service.feature_view_projections:
        if projection.batch_source is not None:
            assert projection.batch_source.get_table_query_string().startswith("features.")


def test_only_the_request_value_itself_is_left_to_the_caller():
    assert FRAUD.on_demand is not None
    left = [f.name for f in FRAUD.on_demand.features if f not in computed_features(FRAUD)]
    assert left == ["tx_amount"]
    assert [field.name for field in transaction_on_demand.features] == [
        f.name for f in computed_features(FRAUD)
    ]


def test_on_demand_view_asks_only_for_what_its_expressions_read():
    read = {name for feature in computed_features(FRAUD) for name in names(feature.expression)}
    given = {
        field.name
        for projection in transaction_on_demand.source_feature_view_projections.values()
        for field in projection.features
    }
    requested = set(transaction_on_demand.get_request_data_schema())
    assert given | requested == read
    assert requested == {field.name for field in FRAUD.request}


def test_on_demand_view_computes_after_a_round_trip_through_the_registry():
    """The text is what Feast runs: it prefers it to the pickled function."""
    proto = transaction_on_demand.to_proto()
    text = proto.spec.feature_transformation.user_defined_function.body_text
    assert text == transaction_on_demand.udf_string
    assert not re.search(r"^(import|from) (?!ast\b|collections\.abc\b|typing\b|numpy\b|pandas\b)", text, re.M)
    restored = OnDemandFeatureView.from_proto(proto)
    assert restored.feature_transformation is not None
    inputs = pd.DataFrame(
        {
            "customer_tx_count_full_1d": [2.0, None],
            "customer_tx_count_full_7d": [15.0, None],
            "customer_tx_count_full_30d": [62.0, None],
            "customer_tx_amount_sum_full_1d": [100.5, None],
            "customer_tx_amount_sum_full_7d": [700.25, None],
            "customer_tx_amount_sum_full_30d": [2000.0, None],
            "customer_tx_count_today": [3.0, None],
            "customer_tx_amount_sum_today": [30.25, None],
            "customer_today_day": [20000.0, None],
            "terminal_tx_count_full_1d": [4.0, None],
            "terminal_tx_count_full_7d": [8.0, None],
            "terminal_tx_count_full_30d": [16.0, None],
            "terminal_tx_count_today": [5.0, None],
            "terminal_today_day": [19999.0, None],
            "tx_amount": [9.25, 9.25],
            "tx_timestamp": [1728043200.0, 1728086400.0],  # Friday noon, Saturday midnight
        }
    )
    result = restored.feature_transformation.udf(inputs)
    assert result.iloc[0].to_dict() == {
        "tx_is_weekend": 0.0,
        "tx_is_night": 0.0,
        "customer_tx_count_1d": 6.0,
        "customer_tx_count_7d": 19.0,
        "customer_tx_count_30d": 66.0,
        "customer_tx_amount_mean_1d": 140.0 / 6,
        "customer_tx_amount_mean_7d": 739.75 / 19,
        "customer_tx_amount_mean_30d": 2039.5 / 66,
        "terminal_tx_count_1d": 5.0,
        "terminal_tx_count_7d": 9.0,
        "terminal_tx_count_30d": 17.0,
    }
    new = result.iloc[1].to_dict()
    assert (new["tx_is_weekend"], new["tx_is_night"]) == (1.0, 1.0)
    assert {value for name, value in new.items() if "count" in name} == {1.0}
    assert {value for name, value in new.items() if "mean" in name} == {9.25}


def test_a_changed_interpreter_or_expression_changes_what_is_registered():
    text = Path(on_demand_expressions.__file__).read_text()
    assert text in transaction_on_demand.udf_string
    for feature in computed_features(FRAUD):
        assert repr(feature.expression) in transaction_on_demand.udf_string


def test_a_service_needs_every_view_that_its_contract_names():
    with pytest.raises(KeyError, match="terminal_daily"):
        feature_service("fraud_detection_v1", {"transaction_on_demand": transaction_on_demand}, "")


def test_a_contract_without_expressions_has_no_on_demand_view():
    with pytest.raises(ValueError, match="customer_churn_v1 has no on-demand features"):
        on_demand_view(CHURN, [], transaction_request, "")


def test_a_recommendation_meets_the_viewers_taste_with_the_movies_genres():
    """A crime drama of 1995, asked for on 2016-01-01 (day 16,801): one mean known; then a stranger."""
    genres = ("action", "adventure", "children", "comedy", "crime")
    genres += ("drama", "fantasy", "romance", "scifi", "thriller")
    row = {f"movie_is_{genre}": float(genre in ("crime", "drama")) for genre in genres}
    row |= {f"viewer_rating_share_{genre}": 0.1 for genre in genres} | {"viewer_rating_share_drama": 0.5}
    row |= {f"viewer_rating_mean_{genre}": None for genre in genres} | {"viewer_rating_mean_drama": 4.5}
    row |= {"movie_year": 1995.0, "viewer_rating_mean": 3.0, "request_timestamp": 1451606400.0}
    stranger = dict.fromkeys(row) | {"request_timestamp": 1451606400.0}
    result = ON_DEMAND_VIEWS["recommendation_on_demand"].feature_transformation.udf(
        pd.DataFrame([row, stranger], dtype=float)
    )
    assert result.iloc[0].to_dict() == {
        "movie_age_years": 16_801 / 365.2425 + 1970 - 1995,
        "viewer_movie_genre_share": (0.1 + 0.5) / 2,
        "viewer_movie_genre_liking": 1.5 / 2,
    }
    assert result["viewer_movie_genre_share"][1] == result["viewer_movie_genre_liking"][1] == 0.0
    assert pd.isna(result["movie_age_years"][1])
