"""Feast's fields and feature services, built from the contracts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureView, Field, RequestSource
from feast.feature_view_projection import FeatureViewProjection
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import FeastType, Float64, Int64, String

import on_demand_expressions
from feature_contract import FeatureContract, OnDemandFeature, load_contract
from on_demand_expressions import names

OWNER = "feature-store"
TYPES: dict[str, FeastType] = {"int64": Int64, "float64": Float64, "string": String}


def view_schema(contract: FeatureContract, view: str) -> list[Field]:
    """Return the join key and the fields of a view, in the contract's order."""
    declared = contract.view(view)
    key = next(entity.join_key for entity in contract.entities if entity.name == declared.entity)
    return [
        Field(name=key, dtype=Int64),
        *(Field(name=field.name, dtype=TYPES[field.type]) for field in declared.fields),
    ]


def computed_features(contract: FeatureContract) -> list[OnDemandFeature]:
    """Return the on-demand features that Feast computes.

    A feature that is a request value under its own name is left out: the caller's data frame already has that
    column, and Feast would append a second one of the same name.
    """
    return [
        feature
        for feature in (contract.on_demand.features if contract.on_demand else [])
        if feature.expression.strip() != feature.name
    ]


def on_demand_sources(
    contract: FeatureContract, views: Sequence[FeatureView]
) -> list[FeatureView | FeatureViewProjection]:
    """Return, of each view, only the fields that some on-demand feature reads."""
    read = {name for feature in computed_features(contract) for name in names(feature.expression)}
    return [view[[field.name for field in view.features if field.name in read]] for view in views]


def on_demand_view(
    contract: FeatureContract, views: Sequence[FeatureView], request: RequestSource, description: str
) -> OnDemandFeatureView:
    """Return the view whose transformation is the text of the interpreter with the contract's expressions.

    Feast runs the text that stands in the registry, so a client needs none of this project's modules. Raises
    ValueError for a contract without on-demand features.
    """
    if contract.on_demand is None:
        raise ValueError(f"{contract.name} has no on-demand features")
    name, features = contract.on_demand.view, computed_features(contract)
    source = on_demand_expressions.registered_source(
        name,
        {feature.name: feature.expression for feature in features},
        Path(on_demand_expressions.__file__).read_text(encoding="utf-8"),
    )
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(source, f"<{name}>", "exec"), namespace)  # noqa: S102 (our own text, as Feast will run it)
    return OnDemandFeatureView(
        name=name,
        sources=[*on_demand_sources(contract, views), request],
        schema=[Field(name=feature.name, dtype=TYPES[feature.type]) for feature in features],
        udf=namespace[name],
        udf_string=source,
        mode="pandas",
        description=description,
        owner=OWNER,
    )


def feature_service(
    name: str, views: Mapping[str, FeatureView | OnDemandFeatureView], description: str
) -> FeatureService:
    """Return the feature service of a contract; its tag `contract` is the contract as canonical JSON."""
    contract = load_contract(name)
    computed = {feature.name for feature in computed_features(contract)}
    on_demand_view = contract.on_demand.view if contract.on_demand else None
    wanted: dict[str, list[str]] = {}
    for feature in contract.features:
        if feature.source != on_demand_view or feature.name in computed:
            wanted.setdefault(feature.source, []).append(feature.name)
    return FeatureService(
        name=name,
        features=[views[source][features] for source, features in wanted.items()],
        tags={"contract": contract.canonical_json()},
        description=description,
        owner=OWNER,
    )
