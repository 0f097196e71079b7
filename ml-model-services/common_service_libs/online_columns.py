"""Many cases at once: the replies of the online store become columns, a view at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import ValueCaches
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
_VARINT_WEIGHTS = np.array([1 << 7 * place for place in range(5)])
_EXACT_SECONDS = 2**53 // 10**6 - 1
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

    def __init__(self, plan: ReadPlan, caches: ValueCaches) -> None:
        self._plan = plan
        self._number, self._text = caches.numbers.__getitem__, caches.texts.__getitem__
        self._time = caches.times.__getitem__

    def nothing(self, rows: int) -> OnlineColumns:
        """Return what is known of `rows` cases when the store does not answer."""
        values: dict[str, Column] = {}
        views: dict[str, ViewColumns] = {}
        for entity in self._plan.entities:
            cells = _Cells.null(entity, rows)
            values |= cells.columns()
            for at, view in enumerate(entity.views):
                views[view.name] = ViewColumns(np.full(rows, _UNAVAILABLE), cells.times[at])
        return OnlineColumns(rows, values, views)

    def decode(self, replies: Sequence[Any], as_of: Any) -> OnlineColumns:
        """Return the columns in `replies`, entity by entity; `as_of` is one time or an array, epoch seconds.

        Raises OnlineStoreError for an error reply.
        """
        entities = self._plan.entities
        rows = len(replies) // len(entities)
        values: dict[str, Column] = {}
        views: dict[str, ViewColumns] = {}
        stale: dict[str, Column] = {}
        for number, entity in enumerate(entities):
            own = replies[number * rows : (number + 1) * rows]
            _require_replies(own, entity)
            try:
                cells = self._cells(entity, own)
            except ValueError:
                cells = self._row_by_row(entity, own)
            for view, status, times in zip(entity.views, _statuses(cells, as_of), cells.times, strict=True):
                views[view.name] = ViewColumns(status, times)
                if status.any():
                    _part_unusable(view, cells, status, stale)
            values |= cells.columns()
        return OnlineColumns(rows, values, views, stale)

    def _cells(self, entity: EntityPlan, replies: Sequence[Sequence[Any]]) -> _Cells:
        """Decode all cells of an entity; raises ValueError where one is not what it should be."""
        doubles, numbers, texts, times = entity.runs
        split, rows = numbers.stop, len(replies)
        cells = _Cells.empty(entity, rows)
        if doubles.stop:
            cells.numbers[: doubles.stop] = self._doubles([r[doubles] for r in replies], doubles.stop)
        if split > doubles.stop:
            cells.numbers[doubles.stop :] = _floats(self._number, [r[numbers] for r in replies])
        for at in range(texts.start, texts.stop):
            cells.texts[at - split, :] = [self._text(reply[at]) for reply in replies]
        cells.times[:] = self._event_times([data for r in replies for data in r[times]]).reshape(rows, -1).T
        return cells

    def _doubles(self, replies: Sequence[Sequence[Any]], fields: int) -> NDArray[np.float64]:
        """Decode messages of nine bytes without looking at them one by one, if that is all there is."""
        try:
            joined = b"".join(chain.from_iterable(replies))
        except TypeError:  # a field is not there
            joined = b""
        if len(joined) != _DOUBLE_BYTES * fields * len(replies):
            joined = b"".join([data or _NULL_DOUBLE for data in chain.from_iterable(replies)])
        if len(joined) == _DOUBLE_BYTES * fields * len(replies):
            messages = np.frombuffer(joined, np.uint8).reshape(-1, _DOUBLE_BYTES)
            if (messages[:, 0] == _DOUBLE_TAG).all():
                values = np.ascontiguousarray(messages[:, 1:]).view("<f8")
                return values.reshape(len(replies), fields).T
        return _floats(self._number, replies)

    def _event_times(self, cells: Sequence[bytes | None]) -> NDArray[np.float64]:
        """Decode event times: whole seconds from the cache, those with a fraction together."""
        times = np.empty(len(cells))
        fractions: dict[int, list[int]] = {11: [], 12: []}  # by length
        for index, data in enumerate(cells):
            if data is not None and (group := fractions.get(len(data))) is not None:
                group.append(index)
            else:
                times[index] = self._time(data)
        for size, group in fractions.items():
            if group:
                messages = [cells[index] for index in group]
                microseconds = _microseconds(b"".join(messages), size)  # type: ignore[arg-type]
                times[group] = (
                    list(map(self._time, messages)) if microseconds is None else microseconds / 1_000_000
                )
        return times

    def _row_by_row(self, entity: EntityPlan, replies: Sequence[Sequence[Any]]) -> _Cells:
        """As `_cells`, for replies among which there are unreadable ones: these spoil their view only."""
        cells = _Cells.null(entity, len(replies))
        for row, reply in enumerate(replies):
            for at, view in enumerate(entity.views):
                try:
                    numbers = [self._number(data) for data in (*reply[view.doubles], *reply[view.numbers])]
                    texts = [self._text(data) for data in reply[view.texts]]
                    time = self._time(reply[view.time])
                except ValueError:
                    cells.invalid[at, row] = reply[view.time] is not None
                    continue
                cells.numbers[list(view.number_rows), row] = numbers
                cells.texts[list(view.text_rows), row] = texts
                cells.times[at, row] = time
        return cells


@dataclass(frozen=True)
class _Cells:
    """All cells of an entity's replies: one row a field, one column a case; event times one row a view."""

    entity: EntityPlan
    numbers: NDArray[np.float64]
    texts: NDArray[np.object_]
    times: NDArray[np.float64]
    invalid: NDArray[np.bool_]

    @classmethod
    def empty(cls, entity: EntityPlan, rows: int) -> _Cells:
        split, texts = entity.runs[1].stop, len(entity.names) - entity.runs[1].stop
        views = len(entity.views)
        return cls(
            entity,
            np.empty((split, rows)),
            np.full((texts, rows), None, dtype=object),
            np.empty((views, rows)),
            np.zeros((views, rows), dtype=bool),
        )

    @classmethod
    def null(cls, entity: EntityPlan, rows: int) -> _Cells:
        cells = cls.empty(entity, rows)
        cells.numbers[:], cells.times[:] = np.nan, np.nan
        return cells

    def columns(self) -> dict[str, Column]:
        return dict(zip(self.entity.names, chain(self.numbers, self.texts), strict=True))


def _statuses(cells: _Cells, as_of: Any) -> list[Codes]:
    """Return the status codes of each view."""
    views = cells.entity.views
    number_nulls, text_nulls = np.isnan(cells.numbers), cells.texts == None  # noqa: E711 - cell by cell
    any_null = bool(number_nulls.any() or text_nulls.any())
    ttls = np.array([[view.ttl_seconds] for view in views])
    statuses = np.full(cells.times.shape, _PRESENT)
    if any_null:
        for at, view in enumerate(views):
            nulls = number_nulls[list(view.number_rows)].any(axis=0)
            statuses[at, nulls | text_nulls[list(view.text_rows)].any(axis=0)] = _NULL
    statuses[as_of - cells.times > ttls] = _STALE
    statuses[np.isnan(cells.times)] = _MISSING
    statuses[cells.invalid] = _INVALID
    return list(statuses)


def _part_unusable(view: ViewPlan, cells: _Cells, status: Codes, stale: dict[str, Column]) -> None:
    """Empty the cells of rows whose values may not be used, after those of stale rows have been put aside."""
    numbers, texts = list(view.number_rows), list(view.text_rows)
    if (status == _STALE).any():  # taken out by lists of rows, so these are copies
        stale.update(zip(view.names, chain(cells.numbers[numbers], cells.texts[texts]), strict=True))
    unusable = np.flatnonzero(status >= _MISSING)
    if len(unusable):
        cells.numbers[np.ix_(np.array(numbers, dtype=np.intp), unusable)] = np.nan
        cells.texts[np.ix_(np.array(texts, dtype=np.intp), unusable)] = None


def _microseconds(joined: bytes, size: int) -> NDArray[np.int64] | None:
    """Return the microseconds since the epoch in Timestamps of `size` bytes, five of them for the seconds.

    None if one is not of that form, has a finer fraction, or lies beyond what a double holds exactly.
    """
    messages = np.frombuffer(joined, np.uint8).reshape(-1, size)
    more_follow = [0, 1, 1, 1, 1, 0, 0, *[1] * (size - 8), 0]
    if (messages >> 7 != more_follow).any() or (messages[:, [0, 6]] != (0x08, 0x10)).any():
        return None
    bits = (messages & 0x7F).astype(np.int64)
    seconds = bits[:, 1:6] @ _VARINT_WEIGHTS
    nanoseconds = bits[:, 7:] @ _VARINT_WEIGHTS[: size - 7]
    if (nanoseconds % 1000).any() or (seconds > _EXACT_SECONDS).any():
        return None
    result: NDArray[np.int64] = seconds * 1_000_000 + nanoseconds // 1000
    return result


def _require_replies(replies: Sequence[Any], entity: EntityPlan) -> None:
    for reply in replies:
        if type(reply) is not list or len(reply) != entity.width:
            said = f": {reply}" if isinstance(reply, Exception) else ""
            raise OnlineStoreError(f"the online store answers a read with {type(reply).__name__}{said}")


def _floats(decode: Callable[[Any], float | None], replies: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    """Decode the cells of `replies`; one row a field, null becomes NaN."""
    cells = list(map(decode, chain.from_iterable(replies)))
    return np.array(cells, dtype=np.float64).reshape(len(replies), -1).T
