"""From what the online store knows to the model's vector: on-demand features, declared fallbacks, order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec

from common_service_libs.feast_layout import FeatureValue
from common_service_libs.feature_contract import NUMERIC_TYPES, Feature, FeatureContract
from common_service_libs.feature_status import CODE, FeatureStatus
from common_service_libs.on_demand import compile_features, names_in
from common_service_libs.online_plan import ReadPlan
from common_service_libs.online_store import OnlineFeatures

_PRESENT, _NULL, _STALE = FeatureStatus.PRESENT, FeatureStatus.NULL, FeatureStatus.STALE


class FeatureVector(msgspec.Struct, frozen=True):
    """The vector in the contract's order (null is None) with the status of each value.

    `fallbacks` names the features that had no value of their own, `failed` those of them without which the
    contract wants no score.
    """

    values: tuple[FeatureValue, ...]
    status: tuple[FeatureStatus, ...]
    fallbacks: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class VectorPlan:
    """How the vector of a contract comes about; the same for one case and for many.

    `inputs` are the names that expressions read, `reads` the view fields among them by feature, `view_of`
    the view of each field.
    """

    inputs: tuple[str, ...]
    numeric: frozenset[str]
    reads: Mapping[str, tuple[str, ...]]
    view_of: Mapping[str, str]
    features: tuple[tuple[Feature, bool], ...]


def plan_of(contract: FeatureContract) -> VectorPlan:
    """Return the plan of a contract; raises ExpressionError for an expression outside of the language."""
    view_of = {field.name: view.name for view in contract.views for field in view.fields}
    numeric = {field.name for view in contract.views for field in view.fields if field.type in NUMERIC_TYPES}
    numeric |= {field.name for field in contract.request if field.type in NUMERIC_TYPES}
    read = {feature.name: names_in(feature.expression) for feature in contract.on_demand_features}
    view = contract.on_demand.view if contract.on_demand else None
    return VectorPlan(
        inputs=tuple(sorted(frozenset().union(*read.values()))),
        numeric=frozenset(numeric),
        reads={name: tuple(sorted(names & view_of.keys())) for name, names in read.items()},
        view_of=view_of,
        features=tuple((feature, feature.source == view) for feature in contract.features),
    )


def _selection(contract: FeatureContract) -> Callable[[list[Any]], tuple[Any, ...]]:
    """Return the function from a complete reply to the vector, where nothing is computed."""
    names = ReadPlan(contract, project="").names
    return itemgetter(*[names.index(feature.name) for feature in contract.features])


class VectorBuilder:
    """Computes the vector of one contract; built once a bundle."""

    def __init__(self, contract: FeatureContract) -> None:
        self._plan = plan_of(contract)
        self._compute = compile_features(contract.on_demand_features, self._plan.numeric)
        self._computed = tuple(feature.name for feature in contract.on_demand_features)
        self._names = contract.feature_names
        self._all_present = (_PRESENT,) * len(contract.features)
        self._vector: Callable[[dict[str, Any]], tuple[Any, ...]] = (
            itemgetter(*self._names) if len(self._names) > 1 else lambda known: (known[self._names[0]],)
        )
        self._nulls = dict.fromkeys(self._plan.inputs, math.nan)
        # Features that depend on the same views share a status, which is worked out once a vector.
        views = [
            tuple(sorted({self._plan.view_of[field] for field in self._plan.reads[feature.name]}))
            if on_demand
            else (feature.source,)
            for feature, on_demand in self._plan.features
        ]
        self._groups = tuple(dict.fromkeys(views))
        self._features = tuple(
            (feature, on_demand, self._groups.index(of))
            for (feature, on_demand), of in zip(self._plan.features, views, strict=True)
        )
        self._select = None if self._computed or len(self._names) < 2 else _selection(contract)

    def build(self, online: OnlineFeatures, request: Mapping[str, float]) -> FeatureVector:
        """Return the vector of what the online store said and of the `request` values."""
        if online.complete is None:
            return self._with_fallbacks(online, request)
        if self._select is not None:
            return FeatureVector(self._select(online.complete), self._all_present, (), ())
        known: dict[str, Any] = dict(zip(online.names, online.complete, strict=True))
        known.update(request)
        try:
            computed = self._compute(known)
        except KeyError:  # a value of the request is not there
            return self._with_fallbacks(online, request)
        total = sum(computed)
        if total != total:
            return self._with_fallbacks(online, request)
        known.update(zip(self._computed, computed, strict=True))
        return FeatureVector(self._vector(known), self._all_present, (), ())

    def _with_fallbacks(self, online: OnlineFeatures, request: Mapping[str, float]) -> FeatureVector:
        known: dict[str, Any] = {**self._nulls, **online.values, **request}
        has_null = _NULL in online.status.values()
        if has_null:
            known.update((name, math.nan) for name in self._plan.inputs if known[name] is None)
        known.update(zip(self._computed, self._compute(known), strict=True))
        groups = [_worst([online.status[view] for view in views]) for views in self._groups]
        values: list[FeatureValue] = []
        statuses: list[FeatureStatus] = []
        fallbacks: list[str] = []
        failed: list[str] = []
        for feature, on_demand, group in self._features:
            name = feature.name
            value, status = known.get(name), groups[group]
            if status is _NULL:  # of a view: which of the values is it?
                reads = self._plan.reads[name] if on_demand else (name,)
                status = _worst([self._status(field, online) for field in reads])
            if value is None or value != value:
                value, status = _fallback(feature, status, on_demand, online, fallbacks, failed)
            values.append(value)
            statuses.append(status)
        return FeatureVector(tuple(values), tuple(statuses), tuple(fallbacks), tuple(failed))

    def _status(self, field: str, online: OnlineFeatures) -> FeatureStatus:
        """Return the status of one view field: a view that is `null` has a null among its values."""
        status = online.status[self._plan.view_of[field]]
        if status is not _NULL:
            return status
        return _NULL if online.values.get(field) is None else _PRESENT


def _worst(statuses: Sequence[FeatureStatus]) -> FeatureStatus:
    return max(statuses, key=CODE.__getitem__, default=_PRESENT)


def _fallback(
    feature: Feature,
    status: FeatureStatus,
    on_demand: bool,
    online: OnlineFeatures,
    fallbacks: list[str],
    failed: list[str],
) -> tuple[FeatureValue, FeatureStatus]:
    """Return what the contract puts in place of a null, with its status; notes who fell back or failed."""
    policy: str = feature.on_missing
    if status is _STALE and not on_demand:
        policy = feature.on_stale or feature.on_missing
        if policy == "use_stale":
            old = online.stale_values.get(feature.name)
            if old is not None:
                return old, status
            policy = feature.on_missing
    fallbacks.append(feature.name)
    if policy == "default":
        return feature.default, FeatureStatus.DEFAULTED
    if policy == "fail":
        failed.append(feature.name)
    return None, _NULL if status is _PRESENT else status
