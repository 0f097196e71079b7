"""Today's totals of one partition, in the order in which its events arrive. Pure: no clock, no I/O.

What a partition holds depends on its log alone: from the first event of the oldest day it keeps, the same
events give the same state and the same rows, whenever and however often they are read. All times are
microseconds since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .aggregation_contract import StreamedView, Window
from .transaction_events import RefusedMessageError, Transaction

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


class Limits(NamedTuple):
    """How many days before the newest are kept, and how far ahead of its arrival an event may claim to be."""

    late_days: int = 2
    ahead_us: int = 300_000_000


class TotalsRow(NamedTuple):
    """An entity's totals after an arrival; `online` says whether they are of its newest day."""

    entity: int
    event_us: int
    created_us: int
    day: int
    events: int
    cents: tuple[int, ...]
    online: bool


class _Day:
    """One day of a partition: events counted; per entity [count, newest time, newest arrival, cents...]."""

    __slots__ = ("entities", "first_offset", "ids")

    def __init__(self, first_offset: int) -> None:
        self.first_offset = first_offset
        self.ids: set[int] = set()
        self.entities: dict[int, list[int]] = {}


class PartitionTotals:
    """The totals of one view over one partition's events."""

    def __init__(self, view: StreamedView, window: Window, limits: Limits) -> None:
        self._key = view.entity_key
        self._summed = view.summed
        self._offset_us = window.utc_offset_hours * HOUR_US
        self._limits = limits
        self._days: dict[int, _Day] = {}
        self._newest_day_of: dict[int, int] = {}
        self._newest_day: int | None = None

    def add(self, event: Transaction, time_us: int, known_us: int, offset: int) -> TotalsRow | None:
        """Count an event that arrived at `known_us`; return its entity's new row, None for a duplicate.

        RefusedMessageError where its day is no longer kept, or its time lies too far ahead.
        """
        if time_us > known_us + self._limits.ahead_us:
            raise RefusedMessageError("future", f"{event.tx_datetime} is ahead of its arrival")
        number = (time_us + self._offset_us) // DAY_US
        day = self._days.get(number)
        if day is None:
            day = self._open(number, offset, event)
        if event.transaction_id in day.ids:
            return None
        day.ids.add(event.transaction_id)
        entity = getattr(event, self._key)
        totals = day.entities.get(entity)
        if totals is None:
            totals = day.entities[entity] = [0, time_us, known_us, *(0 for _ in self._summed)]
            if number > self._newest_day_of.get(entity, -1):
                self._newest_day_of[entity] = number
        totals[0] += 1
        totals[1] = max(totals[1], time_us)
        totals[2] = max(totals[2], known_us)
        for index, name in enumerate(self._summed, 3):
            totals[index] += whole_cents(getattr(event, name))
        return self._row(entity, number, totals)

    def _row(self, entity: int, number: int, totals: list[int]) -> TotalsRow:
        event_us = totals[1] + 1
        return TotalsRow(
            entity,
            event_us,
            max(event_us, totals[2] + 1),
            number,
            totals[0],
            tuple(totals[3:]),
            number == self._newest_day_of[entity],
        )

    def _open(self, number: int, offset: int, event: Transaction) -> _Day:
        newest = number if self._newest_day is None else max(number, self._newest_day)
        if number < newest - self._limits.late_days:
            raise RefusedMessageError(
                "too_late", f"{event.tx_datetime} is more than {self._limits.late_days} days late"
            )
        day = self._days[number] = _Day(offset)
        if newest != self._newest_day:
            self._newest_day = newest
            for old in [each for each in self._days if each < newest - self._limits.late_days]:
                del self._days[old]
            oldest = min(self._days)
            self._newest_day_of = {k: day for k, day in self._newest_day_of.items() if day >= oldest}
        return day

    @property
    def first_offsets(self) -> dict[int, int]:
        """The offset of the first event of each day that is kept: the least is where a rebuild begins."""
        return {number: day.first_offset for number, day in self._days.items()}

    def newest_rows(self) -> Iterator[TotalsRow]:
        """Yield every entity's totals of its newest day: what the online store must hold."""
        for entity, number in self._newest_day_of.items():
            yield self._row(entity, number, self._days[number].entities[entity])


def whole_cents(amount: float) -> int:
    """Return an amount in whole cents as PostgreSQL's `(amount * 100)::bigint`: the product, half to even.

    >>> whole_cents(0.005), whole_cents(1.005), whole_cents(0.015), whole_cents(19.99)
    (0, 100, 2, 1999)
    """
    return round(amount * 100)


def field_columns(view: StreamedView, rows: Sequence[TotalsRow]) -> dict[str, NDArray[Any]]:
    """Return the view's fields as columns, one value a row."""
    columns: dict[str, NDArray[Any]] = {}
    for field in view.fields:
        if field.aggregate == "count":
            columns[field.name] = np.array([row.events for row in rows], dtype=np.int64)
        elif field.aggregate == "day":
            columns[field.name] = np.array([row.day for row in rows], dtype=np.int64)
        else:
            index = view.summed.index(field.of or "")
            columns[field.name] = np.array([row.cents[index] for row in rows], dtype=np.int64) / 100
    return columns
