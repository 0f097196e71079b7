"""Many cases at once: the replies of the online store become columns, a view at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import NumberCache, TextCache, TimestampCache
from common_service_libs.feature_status import CODE, FeatureStatus
from common_service_libs.online_plan import EntityPlan, ReadPlan, ViewPlan

Column = NDArray[Any]
Codes = NDArray[np.uint8]

_PRESENT, _NULL, _MISSING, _STALE, _INVALID, _UNAVAILABLE = (
    np.uint8(CODE[status])
    for status in (
        FeatureStatus.PRESENT,
        FeatureStatus.NULL,
        FeatureStatus.MISSING,
        FeatureStatus.STALE,
        FeatureStatus.INVALID,
        FeatureStatus.UNAVAILABLE,
    )
)
_DOUBLE_TAG, _DOUBLE_BYTES = 0x29, 9
_NULL_DOUBLE = b"\x29" + np.array([np.nan], "<f8").tobytes()


@dataclass(frozen=True)
class ViewColumns:
    """One view of many cases: a status code and an event time (epoch seconds, NaN: none) each."""

    status: Codes
    event_timestamps: NDArray[np.float64]


@dataclass(frozen=True)
class OnlineColumns:
    """What the online store knows of many cases, in their order.

    A number is a double, NaN for null; a text an object, None for null. `values` holds what may be used, so
    the fields of a row that is missing, stale or invalid are null there; `stale_values` holds the columns
    with the old values too, for views that have any. A field without a column in `stale_values` has none.
    """

    rows: int
    values: Mapping[str, Column]
    views: Mapping[str, ViewColumns]
    stale_values: Mapping[str, Column] = field(default_factory=dict)


class ColumnDecoder:
    """Decodes the replies to many cases of one contract."""

    def __init__(
        self, plan: ReadPlan, numbers: NumberCache, texts: TextCache, timestamps: TimestampCache
    ) -> None:
        self._plan = plan
        self._number, self._text = numbers.__getitem__, texts.__getitem__
        self._timestamp = timestamps.__getitem__

    def nothing(self, rows: int) -> OnlineColumns:
        """Return what is known of `rows` cases when the store does not answer."""
        found = _Found({}, {}, {})
        for entity in self._plan.entities:
            for view in entity.views:
                status = np.full(rows, _UNAVAILABLE)
                found.put(view, status, np.full(rows, np.nan), *_nulls(view, rows))
        return OnlineColumns(rows, found.values, found.views)

    def decode(self, replies: Sequence[Any], as_of: Any) -> OnlineColumns:
        """Return the columns in `replies`, entity by entity; `as_of` is one time or an array, epoch seconds.

        Raises OnlineStoreError for an error reply.
        """
        entities = self._plan.entities
        rows = len(replies) // len(entities)
        found = _Found({}, {}, {})
        for number, entity in enumerate(entities):
            columns = _transposed(replies[number * rows : (number + 1) * rows], entity)
            for view in entity.views:
                self._view(view, columns, as_of, rows, found)
        return OnlineColumns(rows, found.values, found.views, found.stale)

    def _view(
        self, view: ViewPlan, columns: Sequence[Sequence[Any]], as_of: Any, rows: int, found: _Found
    ) -> None:
        cells = columns[view.start : view.end]
        invalid = None
        try:
            times = _floats(self._timestamp, columns[view.end], 1, rows)[0]
            numbers, texts = self._cells(view, cells, rows)
        except ValueError:
            times, numbers, texts, invalid = self._row_by_row(view, columns, rows)
        status = np.where(np.isnan(times), _MISSING, _PRESENT)
        stale = as_of - times > view.ttl_seconds
        any_stale = bool(stale.any())
        if any_stale:
            status[stale] = _STALE
        if invalid is not None:
            status[invalid] = _INVALID
            times[invalid] = np.nan
        nulls = _any_null(numbers, texts, rows)
        if nulls.any():
            status[nulls & (status == _PRESENT)] = _NULL
        if any_stale:
            found.stale.update(_named(view, numbers.copy(), texts.copy()))
        unusable = status >= _MISSING
        if unusable.any():
            numbers[:, unusable] = np.nan
            texts[:, unusable] = None
        found.put(view, status, times, numbers, texts)

    def _cells(
        self, view: ViewPlan, cells: Sequence[Sequence[Any]], rows: int
    ) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
        """Return numbers (doubles first) and texts, one row a field; raises ValueError for other bytes."""
        doubles, split = len(view.doubles), len(view.doubles) + len(view.numbers)
        numbers = np.empty((split, rows))
        if doubles:
            numbers[:doubles] = self._doubles(cells[:doubles], rows)
        if split > doubles:
            numbers[doubles:] = _floats(
                self._number, chain.from_iterable(cells[doubles:split]), split - doubles, rows
            )
        texts = np.empty((len(view.texts), rows), dtype=object)
        for at, column in enumerate(cells[split:]):
            texts[at, :] = list(map(self._text, column))
        return numbers, texts

    def _doubles(self, cells: Sequence[Sequence[Any]], rows: int) -> NDArray[np.float64]:
        raw = [data or _NULL_DOUBLE for data in chain.from_iterable(cells)]
        if set(map(len, raw)) == {_DOUBLE_BYTES}:
            messages = np.frombuffer(b"".join(raw), np.uint8).reshape(-1, _DOUBLE_BYTES)
            if (messages[:, 0] == _DOUBLE_TAG).all():
                return np.ascontiguousarray(messages[:, 1:]).view("<f8").reshape(len(cells), rows)
        return _floats(self._number, chain.from_iterable(cells), len(cells), rows)

    def _row_by_row(
        self, view: ViewPlan, columns: Sequence[Sequence[Any]], rows: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_], NDArray[np.bool_]]:
        """As `_cells` with the event times, for replies among which there are unreadable ones."""
        times = np.full(rows, np.nan)
        numbers, texts = _nulls(view, rows)
        invalid = np.zeros(rows, dtype=bool)
        for row in range(rows):
            cells = [[column[row]] for column in columns[view.start : view.end]]
            try:
                times[row] = self._timestamp(columns[view.end][row])
                if not np.isnan(times[row]):
                    numbers[:, [row]], texts[:, [row]] = self._cells(view, cells, 1)
            except ValueError:
                invalid[row] = True
        return times, numbers, texts, invalid


@dataclass
class _Found:
    values: dict[str, Column]
    views: dict[str, ViewColumns]
    stale: dict[str, Column]

    def put(
        self,
        view: ViewPlan,
        status: Codes,
        times: NDArray[np.float64],
        numbers: NDArray[np.float64],
        texts: NDArray[np.object_],
    ) -> None:
        self.values.update(_named(view, numbers, texts))
        self.views[view.name] = ViewColumns(status, times)


def _named(view: ViewPlan, numbers: NDArray[np.float64], texts: NDArray[np.object_]) -> dict[str, Column]:
    return dict(zip(view.names, chain(numbers, texts), strict=True))


def _nulls(view: ViewPlan, rows: int) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    numbers = np.full((len(view.doubles) + len(view.numbers), rows), np.nan)
    return numbers, np.full((len(view.texts), rows), None, dtype=object)


def _any_null(numbers: NDArray[np.float64], texts: NDArray[np.object_], rows: int) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = np.zeros(rows, dtype=bool)
    if len(numbers):
        nulls |= np.isnan(numbers).any(axis=0)
    if len(texts):
        nulls |= (texts == None).any(axis=0)  # noqa: E711 - cell by cell
    return nulls


def _transposed(replies: Sequence[Any], entity: EntityPlan) -> list[Sequence[Any]]:
    for reply in replies:
        if not isinstance(reply, list) or len(reply) != entity.width:
            said = f": {reply}" if isinstance(reply, Exception) else ""
            raise OnlineStoreError(f"the online store answers a read with {type(reply).__name__}{said}")
    return list(zip(*replies, strict=True)) or [()] * entity.width


def _floats(decode: Callable[[Any], float | None], cells: Any, fields: int, rows: int) -> NDArray[np.float64]:
    """Decode `cells` into one row a field; null becomes NaN."""
    return np.array(list(map(decode, cells)), dtype=np.float64).reshape(fields, rows)
