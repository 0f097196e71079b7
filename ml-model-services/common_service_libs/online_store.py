"""The online reader: every view of a feature service in one round trip, with the state of each view."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import (
    FeatureValue,
    decode_timestamp,
    decode_value,
    field_name,
    key_head,
    timestamp_field,
)
from common_service_libs.feature_contract import Entity, FeatureContract, View
from common_service_libs.redis_link import RedisLink, encode_command

_INT64 = struct.Struct("<q")


class ViewStatus(StrEnum):
    """What was found of a view."""

    PRESENT = "present"
    NULL = "null"  # there, but a field of it is null
    MISSING = "missing"  # the entity has no such row
    STALE = "stale"  # older than the view's time to live, as of the request
    INVALID = "invalid"  # bytes that cannot be read
    UNAVAILABLE = "unavailable"  # the store did not answer in time


@dataclass(frozen=True, slots=True)
class OnlineFeatures:
    """What the online store knows: values by field, per view its status and event time (epoch seconds)."""

    values: Mapping[str, FeatureValue]
    status: Mapping[str, str]
    event_timestamps: Mapping[str, float | None]

    @property
    def unavailable(self) -> bool:
        """Whether the store did not answer."""
        return any(status == ViewStatus.UNAVAILABLE for status in self.status.values())


@dataclass(frozen=True, slots=True)
class _ViewPlan:
    name: str
    ttl_seconds: float
    start: int
    names: tuple[str, ...]

    @property
    def timestamp_index(self) -> int:
        return self.start + len(self.names)


class _EntityPlan:
    """One HMGET: all fields of all views of one entity; only the eight bytes of the key's value change."""

    def __init__(self, entity: Entity, views: Sequence[View], project: str) -> None:
        fields: list[bytes] = []
        plans = []
        for view in views:
            plans.append(
                _ViewPlan(
                    view.name, view.ttl_seconds, len(fields), tuple(field.name for field in view.fields)
                )
            )
            fields += [field_name(view.name, field.name) for field in view.fields]
            fields.append(timestamp_field(view.name))
        head = key_head(entity.join_key)
        placeholder = bytes(_INT64.size)
        command = encode_command(b"HMGET", head + placeholder + project.encode(), *fields)
        at = command.index(head) + len(head)
        self.join_key = entity.join_key
        self.views = tuple(plans)
        self._before = command[:at]
        self._after = command[at + _INT64.size :]

    def command(self, value: int) -> bytes:
        return self._before + _INT64.pack(value) + self._after


class FeatureReader:
    """Reads what one feature contract names, from Feast's layout."""

    def __init__(self, contract: FeatureContract, project: str) -> None:
        views = {
            entity.name: [view for view in contract.views if view.entity == entity.name]
            for entity in contract.entities
        }
        self._entities = tuple(
            _EntityPlan(entity, views[entity.name], project)
            for entity in contract.entities
            if views[entity.name]
        )
        self._nothing = OnlineFeatures(
            values={},
            status={view.name: ViewStatus.UNAVAILABLE.value for view in contract.views},
            event_timestamps={view.name: None for view in contract.views},
        )

    async def read(self, link: RedisLink, entity_ids: Mapping[str, int], as_of: float) -> OnlineFeatures:
        """Return the features of `entity_ids` (join key -> value) as of `as_of` (epoch seconds).

        One round trip. Never raises for a silent store: every view is then `unavailable`.
        """
        payload = b"".join([plan.command(entity_ids[plan.join_key]) for plan in self._entities])
        try:
            replies = await link.call(payload, len(self._entities))
        except OnlineStoreError:
            return self._nothing
        return self.decode(replies, as_of)

    def decode(self, replies: Sequence[Any], as_of: float) -> OnlineFeatures:
        """Return the features in the replies to one pipelined read."""
        values: dict[str, FeatureValue] = {}
        status: dict[str, str] = {}
        times: dict[str, float | None] = {}
        for plan, reply in zip(self._entities, replies, strict=True):
            if not isinstance(reply, list) or len(reply) != plan.views[-1].timestamp_index + 1:
                return self._nothing  # an error reply, such as "loading the dataset in memory"
            for view in plan.views:
                status[view.name], times[view.name] = _decode_view(view, reply, as_of, values)
        return OnlineFeatures(values, status, times)


def _decode_view(
    view: _ViewPlan, reply: Sequence[bytes | None], as_of: float, values: dict[str, FeatureValue]
) -> tuple[str, float | None]:
    """Put a view's fields into `values` unless they are missing or stale; return status and event time."""
    stamp = reply[view.timestamp_index]
    if stamp is None:
        return ViewStatus.MISSING.value, None
    try:
        time = decode_timestamp(stamp)
        if as_of - time > view.ttl_seconds:
            return ViewStatus.STALE.value, time
        decoded = [decode_value(raw) for raw in reply[view.start : view.timestamp_index]]
    except ValueError:
        return ViewStatus.INVALID.value, None
    values.update(zip(view.names, decoded, strict=True))
    return (ViewStatus.NULL.value if None in decoded else ViewStatus.PRESENT.value), time
