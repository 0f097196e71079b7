"""The online reader: every view of a feature service in one round trip, with the state of each view."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import (
    EntityValue,
    FeatureValue,
    NumberCache,
    TextCache,
    TimestampCache,
)
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.online_columns import ColumnDecoder, OnlineColumns
from common_service_libs.online_plan import ReadPlan, ViewPlan
from common_service_libs.redis_link import RedisLink

_DOUBLE_BYTES = 9
_DOUBLE_TAG = b"\x29"
_PRESENT, _NULL, _MISSING, _STALE, _INVALID = (
    FeatureStatus.PRESENT,
    FeatureStatus.NULL,
    FeatureStatus.MISSING,
    FeatureStatus.STALE,
    FeatureStatus.INVALID,
)


@dataclass(frozen=True, slots=True)
class OnlineFeatures:
    """What the online store knows: values by field, per view its status and event time (epoch seconds).

    The values of a stale view stand apart.
    """

    values: Mapping[str, FeatureValue]
    status: Mapping[str, FeatureStatus]
    event_timestamps: Mapping[str, float | None]
    stale_values: Mapping[str, FeatureValue] = field(default_factory=dict)

    @property
    def unavailable(self) -> bool:
        """Whether the store did not answer."""
        return any(status == FeatureStatus.UNAVAILABLE for status in self.status.values())


class _ViewDecoder:
    """Decodes the values of one view in one reply: all doubles at once, everything else from a cache."""

    def __init__(self, plan: ViewPlan, numbers: NumberCache, texts: TextCache) -> None:
        self.name = plan.name
        self.ttl_seconds = plan.ttl_seconds
        self.names = plan.names
        self.end = plan.end
        self._doubles = slice(plan.start, plan.start + len(plan.doubles))
        self._numbers = slice(self._doubles.stop, self._doubles.stop + len(plan.numbers))
        self._texts = slice(self._numbers.stop, plan.end)
        self._unpack = struct.Struct("<" + "xd" * len(plan.doubles)).unpack
        self._lengths = [_DOUBLE_BYTES] * len(plan.doubles)
        self._tags = _DOUBLE_TAG * len(plan.doubles)
        self._number, self._text = numbers.__getitem__, texts.__getitem__

    def values(self, reply: Sequence[bytes | None]) -> list[FeatureValue]:
        """Return the values in the order of `names`; raises ValueError for other bytes."""
        values: list[FeatureValue] = self._all_doubles(reply[self._doubles])
        values += map(self._number, reply[self._numbers])
        values += map(self._text, reply[self._texts])
        return values

    def _all_doubles(self, raw: Sequence[bytes | None]) -> list[Any]:
        try:
            joined = b"".join(raw)  # type: ignore[arg-type]  # None, a missing field, is the TypeError
        except TypeError:
            return list(map(self._number, raw))
        if joined[::_DOUBLE_BYTES] == self._tags and list(map(len, raw)) == self._lengths:  # type: ignore[arg-type]
            values = list(self._unpack(joined))
            total = sum(values)
            if total == total:
                return values
        return list(map(self._number, raw))  # a null, a NaN, or another kind of number among them


class FeatureReader:
    """Reads what one feature contract names, from Feast's layout."""

    def __init__(self, contract: FeatureContract, project: str) -> None:
        self._plan = ReadPlan(contract, project)
        numbers, texts, self._timestamps = NumberCache(), TextCache(), TimestampCache()
        self._decoders = tuple(
            (entity.width, [_ViewDecoder(view, numbers, texts) for view in entity.views])
            for entity in self._plan.entities
        )
        self._columns = ColumnDecoder(self._plan, numbers, texts, self._timestamps)
        self._nothing = OnlineFeatures(
            values={},
            status={view.name: FeatureStatus.UNAVAILABLE for view in contract.views},
            event_timestamps={view.name: None for view in contract.views},
        )

    def command(self, entity_ids: Mapping[str, EntityValue]) -> tuple[bytes, int]:
        """Return what to send for one case, and how many replies to expect."""
        return self._plan.one(entity_ids), len(self._decoders)

    def commands(self, entity_ids: Mapping[str, Sequence[EntityValue]]) -> tuple[bytes, int, int]:
        """Return what to send for many cases, how many replies to expect, and how many cases these are.

        Raises ValueError if the join keys do not have the same number of values.
        """
        counts = {plan.join_key: len(entity_ids[plan.join_key]) for plan in self._plan.entities}
        if len(set(counts.values())) != 1:
            raise ValueError(f"a case has one value of each join key; given are {counts}")
        rows = next(iter(counts.values()))
        return self._plan.many(entity_ids), rows * len(counts), rows

    async def read(
        self, link: RedisLink, entity_ids: Mapping[str, EntityValue], as_of: float
    ) -> OnlineFeatures:
        """Return the features of `entity_ids` (join key -> value) as of `as_of` (epoch seconds).

        One round trip. Never raises for a silent store: every view is then `unavailable`.
        """
        try:
            replies = await link.call(*self.command(entity_ids))
        except OnlineStoreError:
            return self._nothing
        return self.decode(replies, as_of)

    async def read_many(
        self,
        link: RedisLink,
        entity_ids: Mapping[str, Sequence[EntityValue]],
        as_of: float,
        *,
        deadline: float | None = None,
    ) -> OnlineColumns:
        """Return the features of many cases as columns, in their order; otherwise as `read`.

        One round trip. `deadline` (seconds) stands in for the link's own, which is meant for one case.
        """
        payload, expected, rows = self.commands(entity_ids)
        if not rows:
            return self._columns.nothing(0)
        try:
            replies = await link.call(payload, expected, deadline=deadline)
            return self.decode_many(replies, as_of)
        except OnlineStoreError:
            return self._columns.nothing(rows)

    def decode(self, replies: Sequence[Any], as_of: float) -> OnlineFeatures:
        """Return the features in the replies to one case."""
        values: dict[str, FeatureValue] = {}
        status: dict[str, FeatureStatus] = {}
        times: dict[str, float | None] = {}
        stale: dict[str, FeatureValue] = {}
        for (width, views), reply in zip(self._decoders, replies, strict=True):
            if not isinstance(reply, list) or len(reply) != width:
                return self._nothing  # an error reply, such as "loading the dataset in memory"
            for view in views:
                status[view.name], times[view.name] = self._decode_view(view, reply, as_of, values, stale)
        return OnlineFeatures(values, status, times, stale)

    def decode_many(self, replies: Sequence[Any], as_of: Any) -> OnlineColumns:
        """Return the features in the replies to many cases; `as_of` is one time or an array of one a case.

        Raises OnlineStoreError for an error reply.
        """
        return self._columns.decode(replies, as_of)

    def _decode_view(
        self,
        view: _ViewDecoder,
        reply: Sequence[bytes | None],
        as_of: float,
        values: dict[str, FeatureValue],
        stale: dict[str, FeatureValue],
    ) -> tuple[FeatureStatus, float | None]:
        """Put a view's fields where they belong; return its status and event time."""
        stamp = reply[view.end]
        if stamp is None:
            return _MISSING, None
        try:
            time = self._timestamps[stamp]
            decoded = view.values(reply)
        except ValueError:
            return _INVALID, None
        if as_of - time > view.ttl_seconds:
            stale.update(zip(view.names, decoded, strict=True))
            return _STALE, time
        values.update(zip(view.names, decoded, strict=True))
        return (_NULL if None in decoded else _PRESENT), time
