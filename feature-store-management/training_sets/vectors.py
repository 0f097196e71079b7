"""The vector of a feature service from what its views and the request say: as the services compute it online.

A raw field that only feeds expressions reaches them as null where its row is missing or stale; a feature that
is a view's own field becomes what `on_stale` says where it is stale, what `on_missing` says where it is null.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_contract import FeatureContract, VectorFeature
from on_demand_expressions import evaluate, names
from training_sets.errors import MissingFeatureError
from training_sets.look_up import ARROW_TYPES, Looked
from training_sets.point_in_time import Truths

Doubles = NDArray[np.float64]


def fields_read(contract: FeatureContract, view: str) -> list[str]:
    """Return the fields of a view that the vector or an expression reads, in the contract's order."""
    read = {feature.name for feature in contract.features if feature.source == view}
    for feature in contract.on_demand.features if contract.on_demand else []:
        read.update(names(feature.expression))
    return [field.name for field in contract.view(view).fields if field.name in read]


def keeps_stale(contract: FeatureContract, view: str) -> bool:
    """Tell whether a stale value of the view becomes something else than a missing one."""
    features = [feature for feature in contract.features if feature.source == view]
    return any(feature.on_stale not in (None, feature.on_missing) for feature in features)


def vectors(
    contract: FeatureContract, looked: Mapping[str, Looked], request: Mapping[str, Doubles], rows: int
) -> dict[str, pa.Array]:
    """Return the vector's columns in the contract's order and types; null where a value may be missing.

    Raises MissingFeatureError where one may not.
    """
    computed = _computed(contract, looked, request, rows)
    columns = {}
    for feature in contract.features:
        if feature.name in computed:
            columns[feature.name] = computed[feature.name]
        else:
            columns[feature.name] = _of_view(feature, looked[feature.source], contract)
    return columns


def _computed(
    contract: FeatureContract, looked: Mapping[str, Looked], request: Mapping[str, Doubles], rows: int
) -> dict[str, pa.Array]:
    if contract.on_demand is None:
        return {}
    read = {name for feature in contract.on_demand.features for name in names(feature.expression)}
    inputs: dict[str, Doubles] = {name: request[name] for name in request if name in read}
    for view in looked.values():
        for name in view.values.keys() & read:
            column = view.values[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            inputs[name] = np.where(view.stale, np.nan, column) if view.stale.any() else column
    values = {
        feature.name: np.broadcast_to(evaluate(feature.expression, inputs), rows)
        for feature in contract.on_demand.features
    }
    return {name: pa.array(value, mask=np.isnan(value)) for name, value in values.items()}


def _of_view(feature: VectorFeature, looked: Looked, contract: FeatureContract) -> pa.Array:
    values = looked.values[feature.name]
    if feature.type == "float64":  # not a number is null, for a service too
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    on_stale = feature.on_stale or feature.on_missing
    if on_stale == "use_stale":
        on_stale = feature.on_missing
    elif looked.stale.any():
        values = pc.if_else(pa.array(looked.stale), pa.scalar(None, values.type), values)
    null = values.is_null().to_numpy(zero_copy_only=False)
    for policy, rows in ((on_stale, null & looked.stale), (feature.on_missing, null & ~looked.stale)):
        if not rows.any():
            continue
        if policy == "fail":
            raise MissingFeatureError(
                f"{contract.name}: {feature.name} may not be missing, stale or null; it is in {_rows(rows)}"
            )
        if policy == "default":
            default = pa.scalar(feature.default, ARROW_TYPES[feature.type])
            values = pc.if_else(pa.array(rows), default, values)
    return values


def _rows(rows: Truths) -> str:
    """Say how many rows these are and which is the first, counted from 0."""
    return f"{int(rows.sum())} of {len(rows)} rows, first row {int(np.argmax(rows))}"
