"""The online reader: every view of a feature service in one round trip, with the state of each view."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain
from typing import Any

import msgspec

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import (
    WHOLE_SECONDS_BYTES,
    EntityValue,
    FeatureValue,
    ValueCaches,
    decode_timestamp,
    decode_value,
)
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.online_columns import ColumnDecoder, OnlineColumns
from common_service_libs.online_plan import EntityPlan, ReadPlan, ViewPlan
from common_service_libs.redis_link import RedisLink

_DOUBLE_BYTES = 9
_DOUBLE_TAG = b"\x29"
_PRESENT, _NULL, _MISSING, _STALE, _INVALID, _SNAPSHOT, _UNAVAILABLE = (
    FeatureStatus.PRESENT,
    FeatureStatus.NULL,
    FeatureStatus.MISSING,
    FeatureStatus.STALE,
    FeatureStatus.INVALID,
    FeatureStatus.SNAPSHOT,
    FeatureStatus.UNAVAILABLE,
)

SnapshotRow = tuple[Any, ...]
"""What a snapshot holds of one entity: the time at which it was read, and the reply."""


class Source(StrEnum):
    """Where features came from."""

    ONLINE = "online"
    SNAPSHOT = "snapshot"  # of at least one entity
    UNAVAILABLE = "unavailable"


class OnlineFeatures(msgspec.Struct, frozen=True):
    """What the online store knows: values, and per view its status and event time (epoch seconds).

    Where every view is present, without a null, `complete` holds all values in the order of the plan's
    `names`; otherwise `partial` holds by field those that may be used, and `stale_values` those of stale
    views. Where `source` is a snapshot, a view that would be present has the status `snapshot`.
    """

    status: Mapping[str, FeatureStatus]
    event_timestamps: Mapping[str, float | None]
    partial: Mapping[str, FeatureValue] = {}
    stale_values: Mapping[str, FeatureValue] = {}
    complete: list[Any] | None = None
    names: tuple[str, ...] = ()
    source: Source = Source.ONLINE

    @property
    def values(self) -> Mapping[str, FeatureValue]:
        """The values that may be used, by field."""
        return self.partial if self.complete is None else dict(zip(self.names, self.complete, strict=True))

    @property
    def unavailable(self) -> bool:
        """Whether anything is neither known from the store nor from a snapshot of it."""
        return self.complete is None and FeatureStatus.UNAVAILABLE in self.status.values()


class _EntityDecoder:
    """Decodes the reply to one entity: all doubles at once, whatever repeats from a cache."""

    def __init__(self, plan: EntityPlan, caches: ValueCaches) -> None:
        self.width, self.views, self.signature = plan.width, plan.views, plan.signature
        self._ttls = tuple((view.name, view.ttl_seconds) for view in plan.views)
        self._doubles, self._numbers, self._texts, self._times = plan.runs
        doubles = self._doubles.stop
        self._unpack = struct.Struct("<" + "xd" * doubles).unpack
        self._bytes, self._tags = _DOUBLE_BYTES * doubles, _DOUBLE_TAG * doubles
        self._number, self._text = caches.numbers.__getitem__, caches.texts.__getitem__
        self._time = caches.times.__getitem__

    def values(self, reply: Sequence[bytes | None]) -> list[Any]:
        """Return all values in the order of the plan, None for null; raises ValueError for other bytes."""
        return [
            *self._all_doubles(reply[self._doubles]),
            *map(self._number, reply[self._numbers]),
            *map(self._text, reply[self._texts]),
        ]

    def _all_doubles(self, raw: Sequence[bytes | None]) -> Sequence[float | None]:
        try:
            joined = b"".join(raw)  # type: ignore[arg-type]  # None, a field that is not there, is the TypeError
        except TypeError:
            return [_double(data) for data in raw]
        # A message of this tag has nine bytes: what is null, or no double, shows in tags or length.
        if len(joined) == self._bytes and joined[::_DOUBLE_BYTES] == self._tags:
            values = self._unpack(joined)
            total = sum(values)
            if total == total:
                return values
        return [_double(data) for data in raw]

    def fresh(self, reply: Sequence[bytes | None], as_of: float, times: dict[str, float | None]) -> bool:
        """Put the views' event times; return whether every view has one within its time to live."""
        for data, (view, ttl) in zip(reply[self._times], self._ttls):  # noqa: B905 - as long, and faster
            if data is None:
                return False
            time = self._time(data) if len(data) <= WHOLE_SECONDS_BYTES else decode_timestamp(data)
            if as_of - time > ttl:
                return False
            times[view] = time
        return True

    def _event_time(self, data: bytes) -> float:
        return self._time(data) if len(data) <= WHOLE_SECONDS_BYTES else decode_timestamp(data)

    def view(
        self, view: ViewPlan, reply: Sequence[bytes | None], values: Sequence[FeatureValue] | None
    ) -> tuple[FeatureStatus, float | None, Sequence[FeatureValue]]:
        """Return what one view holds, out of `values`; where these could not be decoded, by itself.

        Its time to live is not looked at.
        """
        stamp = reply[view.time]
        if stamp is None:
            return _MISSING, None, ()
        try:
            if values is None:
                own = [
                    *map(_double, reply[view.doubles]),
                    *map(self._number, reply[view.numbers]),
                    *map(self._text, reply[view.texts]),
                ]
            else:
                own = [*values[view.doubles], *values[view.numbers], *values[view.texts]]
            return (_NULL if None in own else _PRESENT), self._event_time(stamp), own
        except ValueError:
            return _INVALID, None, ()


def _double(data: bytes | None) -> float | None:
    """Return the double, or other number, in a message that is not kept; raises ValueError for a text."""
    value = decode_value(data)
    if isinstance(value, str):
        raise ValueError("not a number but text")
    return value


class FeatureReader:
    """Reads what one feature contract names, from Feast's layout."""

    def __init__(self, contract: FeatureContract, project: str) -> None:
        self._plan = ReadPlan(contract, project)
        caches = ValueCaches()
        self._decoders = tuple(_EntityDecoder(entity, caches) for entity in self._plan.entities)
        self._columns = ColumnDecoder(self._plan, caches)
        self._all_present = {view.name: _PRESENT for view in contract.views}
        self._nothing = OnlineFeatures(
            status={view.name: FeatureStatus.UNAVAILABLE for view in contract.views},
            event_timestamps={view.name: None for view in contract.views},
            source=Source.UNAVAILABLE,
        )
        self.numbers_only = all(entity.runs[2].start == entity.runs[2].stop for entity in self._plan.entities)
        self._entities = tuple((entity.signature, entity.join_key) for entity in self._plan.entities)

    @property
    def nothing(self) -> OnlineFeatures:
        """What is known when nothing is: every view is unavailable."""
        return self._nothing

    def row_keys(self, entity_ids: Mapping[str, EntityValue]) -> list[tuple[str, EntityValue]]:
        """Return by what the replies to one case are known in a snapshot, in the order of the replies."""
        return [(signature, entity_ids[join_key]) for signature, join_key in self._entities]

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
        decoded: list[list[Any] | None] = []
        times: dict[str, float | None] = {}
        complete = True
        for entity, reply in zip(self._decoders, replies, strict=True):
            if type(reply) is not list or len(reply) != entity.width:
                return self._nothing  # an error reply, such as "loading the dataset in memory"
            try:
                values = entity.values(reply)
                complete = complete and None not in values and entity.fresh(reply, as_of, times)
                decoded.append(values)
            except ValueError:
                complete = False
                decoded.append(None)
        if not complete:
            return self._partial(replies, decoded, as_of)
        together = decoded[0] if len(decoded) == 1 else list(chain.from_iterable(decoded))  # type: ignore[arg-type]
        return OnlineFeatures(self._all_present, times, {}, {}, together, self._plan.names)

    def _partial(
        self, replies: Sequence[Any], decoded: Sequence[list[Any] | None], as_of: float
    ) -> OnlineFeatures:
        values: dict[str, FeatureValue] = {}
        status: dict[str, FeatureStatus] = {}
        times: dict[str, float | None] = {}
        stale: dict[str, FeatureValue] = {}
        for entity, reply, together in zip(self._decoders, replies, decoded, strict=True):
            for view in entity.views:
                found, time, own = entity.view(view, reply, together)
                if time is not None and as_of - time > view.ttl_seconds:
                    found = _STALE
                status[view.name], times[view.name] = found, time
                if own:
                    (stale if found is _STALE else values).update(zip(view.names, own, strict=True))
        return OnlineFeatures(status, times, values, stale)

    def worth_keeping(self, replies: Sequence[Any]) -> list[bool]:
        """Return which of the replies to one case hold anything: an unknown entity's does not."""
        return [
            any(reply[view.time] is not None for view in entity.views)
            for entity, reply in zip(self._decoders, replies, strict=True)
        ]

    def decode_rows(self, rows: Sequence[SnapshotRow | None], as_of: float) -> OnlineFeatures:
        """Return the features of one case as a snapshot knows them; None stands for an entity it does not.

        Times to live count as ever: from the event times in the rows to `as_of`.
        """
        if not any(rows):
            return self._nothing
        values: dict[str, FeatureValue] = {}
        status: dict[str, FeatureStatus] = {}
        times: dict[str, float | None] = {}
        stale: dict[str, FeatureValue] = {}
        for entity, row in zip(self._decoders, rows, strict=True):
            reply = () if row is None else row[1:]
            if len(reply) != entity.width:
                status.update((view.name, _UNAVAILABLE) for view in entity.views)
                times.update((view.name, None) for view in entity.views)
                continue
            for view in entity.views:
                found, time, own = entity.view(view, reply, None)
                if time is not None and as_of - time > view.ttl_seconds:
                    found = _STALE
                status[view.name] = _SNAPSHOT if found is _PRESENT else found
                times[view.name] = time
                if own:
                    (stale if found is _STALE else values).update(zip(view.names, own, strict=True))
        return OnlineFeatures(status, times, values, stale, source=Source.SNAPSHOT)

    def decode_many(self, replies: Sequence[Any], as_of: Any) -> OnlineColumns:
        """Return the features in the replies to many cases; `as_of` is one time or an array of one a case.

        Raises OnlineStoreError for an error reply.
        """
        return self._columns.decode(replies, as_of)
