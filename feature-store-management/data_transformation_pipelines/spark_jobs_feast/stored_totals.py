"""The processor's totals of a partition, as bytes that Spark keeps in its state. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import StreamedView, Window
from data_transformation_pipelines.stream_jobs_feast.running_totals import Limits, PartitionTotals, _Day


class _StoredDay(msgspec.Struct, array_like=True):
    """A day: where its first event is, the transactions counted (int64, as bytes), the totals by entity."""

    first_offset: int
    ids: bytes
    entities: dict[int, list[int]]


class _Stored(msgspec.Struct, array_like=True):
    days: dict[int, _StoredDay]
    newest_day_of: dict[int, int]
    newest_day: int | None


_DECODER = msgspec.msgpack.Decoder(_Stored)


class StoredTotals(PartitionTotals):
    """Totals that can be put down and taken up again."""

    def __init__(self, view: StreamedView, window: Window, limits: Limits, stored: bytes | None) -> None:
        super().__init__(view, window, limits)
        if stored is None:
            return
        state = _DECODER.decode(stored)
        self._newest_day, self._newest_day_of = state.newest_day, state.newest_day_of
        for number, kept in state.days.items():
            day = self._days[number] = _Day(kept.first_offset)
            day.ids = set(np.frombuffer(kept.ids, dtype=np.int64).tolist())
            day.entities = kept.entities

    def stored(self) -> bytes:
        """Return what a successor needs to go on from here."""
        days = {
            number: _StoredDay(
                day.first_offset, np.fromiter(day.ids, np.int64, len(day.ids)).tobytes(), day.entities
            )
            for number, day in self._days.items()
        }
        return msgspec.msgpack.encode(_Stored(days, self._newest_day_of, self._newest_day))
