"""The vectors of many cases as columns, with a status for each value: for batches, rankings and notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common_service_libs.feature_contract import Feature, FeatureContract
from common_service_libs.feature_status import CODE, STATUSES, FeatureStatus
from common_service_libs.feature_vector import plan_of
from common_service_libs.on_demand import compile_columns
from common_service_libs.online_columns import Codes, Column, OnlineColumns, ViewColumns

_PRESENT, _NULL = np.uint8(CODE[FeatureStatus.PRESENT]), np.uint8(CODE[FeatureStatus.NULL])
_STALE, _DEFAULTED = np.uint8(CODE[FeatureStatus.STALE]), np.uint8(CODE[FeatureStatus.DEFAULTED])


@dataclass(frozen=True)
class FeatureTable:
    """One row a case, in the order asked for.

    `columns` holds the vector's features in order: numbers as doubles (NaN: null; whole numbers are exact up
    to 2^53), texts as objects (None: null). `status` holds for each feature the codes of
    `feature_status.STATUSES`, `views` for each view status and event times. `failed` marks the rows that lack
    a feature without which the contract wants no score.
    """

    rows: int
    columns: Mapping[str, Column]
    status: Mapping[str, Codes]
    views: Mapping[str, ViewColumns]
    failed: NDArray[np.bool_]

    def status_names(self, feature: str) -> list[str]:
        """Return the status of each row's value of a feature in words."""
        return [STATUSES[code].value for code in self.status[feature]]

    def matrix(self) -> NDArray[np.float64]:
        """Return the vectors as an array of rows x features; raises ValueError where a feature is a text."""
        if texts := [name for name, column in self.columns.items() if column.dtype == object]:
            raise ValueError(f"no numbers, and so in no matrix: {', '.join(texts)}")
        return np.column_stack(list(self.columns.values()))


def joined(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Return the rows of `tables`, at least one, as one table."""
    first = tables[0]
    if len(tables) == 1:
        return first
    return FeatureTable(
        rows=sum(table.rows for table in tables),
        columns={name: np.concatenate([table.columns[name] for table in tables]) for name in first.columns},
        status={name: np.concatenate([table.status[name] for table in tables]) for name in first.status},
        views={
            name: ViewColumns(
                np.concatenate([table.views[name].status for table in tables]),
                np.concatenate([table.views[name].event_timestamps for table in tables]),
            )
            for name in first.views
        },
        failed=np.concatenate([table.failed for table in tables]),
    )


class TableBuilder:
    """Computes the vectors of many cases, row for row what `VectorBuilder` computes of each."""

    def __init__(self, contract: FeatureContract) -> None:
        self._plan = plan_of(contract)
        self._compute = compile_columns(contract.on_demand_features, self._plan.numeric)
        self._computed = tuple(feature.name for feature in contract.on_demand_features)

    def build(self, online: OnlineColumns, request: Mapping[str, Any]) -> FeatureTable:
        """Return the vectors of what the online store said and of the `request` values.

        A request value is one number for all rows or an array of one a row; one that is absent is null.
        """
        known = {**online.values, **request}
        inputs = {name: np.asarray(known.get(name, np.nan), dtype=np.float64) for name in self._plan.inputs}
        with np.errstate(all="ignore"):
            results = self._compute(inputs)
        computed = {
            name: np.array(np.broadcast_to(result, online.rows), dtype=np.float64)
            for name, result in zip(self._computed, results, strict=True)
        }
        clean = {name for name, view in online.views.items() if not view.status.any()}
        present = np.full(online.rows, _PRESENT)
        columns: dict[str, Column] = {}
        statuses: dict[str, Codes] = {}
        failed = np.zeros(online.rows, dtype=bool)
        for feature, on_demand in self._plan.features:
            name = feature.name
            reads = self._plan.reads[name] if on_demand else (name,)
            value = computed[name] if on_demand else online.values[name]
            dirty = [field for field in reads if self._plan.view_of[field] not in clean]
            if not dirty and not (on_demand and _is_null(value).any()):
                columns[name], statuses[name] = value, present
                continue
            worst = np.full(online.rows, _PRESENT)
            for field in dirty:
                worst = np.maximum(worst, self._status(field, online))
            columns[name], statuses[name] = _resolved(feature, value, worst, online, failed, on_demand)
        return FeatureTable(online.rows, columns, statuses, online.views, failed)

    def _status(self, field: str, online: OnlineColumns) -> Codes:
        """Return the status of one view field: a view that is `null` has a null among its values."""
        status = online.views[self._plan.view_of[field]].status
        return np.where((status == _NULL) & ~_is_null(online.values[field]), _PRESENT, status)


def _resolved(
    feature: Feature,
    value: Column,
    status: Codes,
    online: OnlineColumns,
    failed: NDArray[np.bool_],
    on_demand: bool,
) -> tuple[Column, Codes]:
    """Return a feature's values with what the contract puts in place of nulls; marks rows in `failed`."""
    stale = (status == _STALE) & (not on_demand)
    on_stale: str = feature.on_stale or feature.on_missing
    if on_stale == "use_stale":
        old = online.stale_values.get(feature.name)
        value = value if old is None else np.where(stale, old, value)
        on_stale = feature.on_missing
    null = _is_null(value)
    status = np.where(null & (status == _PRESENT), _NULL, status)
    defaulted = np.zeros(online.rows, dtype=bool)
    for policy, rows in ((on_stale, null & stale), (feature.on_missing, null & ~stale)):
        if policy == "default":
            defaulted |= rows
        elif policy == "fail":
            failed |= rows
    if defaulted.any():
        default = float(feature.default) if value.dtype != object else feature.default  # type: ignore[arg-type]
        value = np.where(defaulted, np.array(default, dtype=value.dtype), value)
        status = np.where(defaulted, _DEFAULTED, status)
    return value, status


def _is_null(values: Column) -> NDArray[np.bool_]:
    if values.dtype == object:
        return np.asarray(values == None)  # noqa: E711 - cell by cell
    return np.isnan(values)
