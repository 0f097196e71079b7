"""From what the online store knows to the model's vector: on-demand features, declared fallbacks, order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common_service_libs.feast_layout import FeatureValue
from common_service_libs.feature_contract import NUMERIC_TYPES, Feature, FeatureContract
from common_service_libs.on_demand import compile_features, names_in


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """The vector in the contract's order (null is None), and the features that took their fallback."""

    values: tuple[FeatureValue, ...]
    fallbacks: tuple[str, ...]
    failed: tuple[str, ...]


class VectorBuilder:
    """Computes the vector of one contract; built once a bundle."""

    def __init__(self, contract: FeatureContract) -> None:
        numeric = {
            field.name for view in contract.views for field in view.fields if field.type in NUMERIC_TYPES
        } | {field.name for field in contract.request if field.type in NUMERIC_TYPES}
        self._compute = compile_features(contract.on_demand_features, numeric)
        self._computed = tuple(feature.name for feature in contract.on_demand_features)
        read: set[str] = set().union(
            *(names_in(feature.expression) for feature in contract.on_demand_features)
        )
        self._inputs = tuple(sorted(read))
        view = contract.on_demand.view if contract.on_demand else None
        self._features = tuple((feature, feature.source == view) for feature in contract.features)

    def build(self, online: Mapping[str, FeatureValue], request: Mapping[str, float]) -> FeatureVector:
        """Return the vector of `online` (view fields; absent or None is null) and `request` values."""
        known = {**online, **request}
        inputs: dict[str, float] = {}
        for name in self._inputs:
            value = known.get(name)
            inputs[name] = value if isinstance(value, float) else math.nan
        computed = dict(zip(self._computed, self._compute(inputs), strict=True))
        values: list[FeatureValue] = []
        fallbacks: list[str] = []
        failed: list[str] = []
        for feature, on_demand in self._features:
            value = computed[feature.name] if on_demand else online.get(feature.name)
            if value is None or value != value:
                value = _fallback(feature, failed)
                fallbacks.append(feature.name)
            values.append(value)
        return FeatureVector(tuple(values), tuple(fallbacks), tuple(failed))


def _fallback(feature: Feature, failed: list[str]) -> FeatureValue:
    if feature.on_missing == "fail":
        failed.append(feature.name)
    if feature.on_missing != "default":
        return None
    return feature.default
