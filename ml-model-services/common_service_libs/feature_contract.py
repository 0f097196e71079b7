"""The feature service contract: which features a model reads, in which order, and what replaces one."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from common_service_libs.errors import ContractError

NUMERIC_TYPES = frozenset({"bool", "int32", "int64", "float32", "float64", "unix_timestamp"})
FIELD_TYPES = NUMERIC_TYPES | {"string"}
KEY_TYPES = frozenset({"int64", "string"})


class Entity(msgspec.Struct, frozen=True):
    """What a row is about, and the name of its key."""

    name: str
    join_key: str
    type: str


class Field(msgspec.Struct, frozen=True):
    """A named, typed value."""

    name: str
    type: str


class View(msgspec.Struct, frozen=True):
    """A feature view: fields of one entity that are written together, valid for `ttl_seconds`."""

    name: str
    entity: str
    ttl_seconds: int
    fields: tuple[Field, ...]


class OnDemandFeature(msgspec.Struct, frozen=True):
    """A feature computed from the request and view fields by an expression."""

    name: str
    type: str
    expression: str


class OnDemand(msgspec.Struct, frozen=True):
    """The on-demand view."""

    view: str
    features: tuple[OnDemandFeature, ...]


class Feature(msgspec.Struct, frozen=True):
    """One position of the vector.

    `on_missing` says what a missing, stale or null value becomes; `on_stale`, where it is given, says so for
    a stale one.
    """

    name: str
    source: str
    type: str
    on_missing: Literal["default", "null", "fail"] = "null"
    on_stale: Literal["default", "null", "fail", "use_stale"] | None = None
    default: float | str | None = None


class FeatureContract(msgspec.Struct, frozen=True):
    """Everything that training and serving must agree on about the inputs of a model."""

    name: str
    version: int
    entities: tuple[Entity, ...]
    views: tuple[View, ...]
    features: tuple[Feature, ...]
    request: tuple[Field, ...] = ()
    on_demand: OnDemand | None = None

    @property
    def on_demand_features(self) -> tuple[OnDemandFeature, ...]:
        """The on-demand features, none if there is no on-demand view."""
        return self.on_demand.features if self.on_demand else ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the vector, in order."""
        return tuple(feature.name for feature in self.features)


def parse_contract(document: Any) -> FeatureContract:
    """Return the contract in decoded JSON or YAML; raises ContractError if it contradicts itself."""
    try:
        contract = msgspec.convert(document, FeatureContract)
    except msgspec.ValidationError as error:
        raise ContractError(f"not a feature service contract: {error}") from None
    _require_consistent(contract)
    return contract


def _require_consistent(contract: FeatureContract) -> None:
    entities = {entity.name for entity in contract.entities}
    view_fields = {view.name: {field.name for field in view.fields} for view in contract.views}
    on_demand = {feature.name for feature in contract.on_demand_features}
    problems = [
        f"view {view.name} is of the unknown entity {view.entity}"
        for view in contract.views
        if view.entity not in entities
    ]
    problems += [
        f"entity {entity.name} has keys of type {entity.type}, only int64 and string are served"
        for entity in contract.entities
        if entity.type not in KEY_TYPES
    ]
    problems += [
        f"field {field.name} has the type {field.type}, only {', '.join(sorted(FIELD_TYPES))} are served"
        for field in (*(field for view in contract.views for field in view.fields), *contract.request)
        if field.type not in FIELD_TYPES
    ]
    for feature in contract.features:
        source = on_demand if contract.on_demand and feature.source == contract.on_demand.view else None
        if feature.name not in (source if source is not None else view_fields.get(feature.source, set())):
            problems.append(f"feature {feature.name} is not in {feature.source}")
        if source is not None and feature.on_stale is not None:
            problems.append(f"feature {feature.name} is computed: it has no age for on_stale")
        if "default" in (feature.on_missing, feature.on_stale) and feature.default is None:
            problems.append(f"feature {feature.name} falls back to a default and has none")
    names = [name for fields in view_fields.values() for name in fields]
    names += [field.name for field in contract.request]
    problems += [
        f"the name {name} is used twice" for name in {name for name in names if names.count(name) > 1}
    ]
    if len(set(contract.feature_names)) != len(contract.features):
        problems.append("a feature stands in the vector twice")
    if problems:
        raise ContractError(f"contract {contract.name}: " + "; ".join(problems))
