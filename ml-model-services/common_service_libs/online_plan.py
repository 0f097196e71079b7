"""What is asked of Redis for a contract: one HMGET an entity, all fields of all its views."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common_service_libs.feast_layout import (
    INT64_HEAD,
    EntityValue,
    field_name,
    key_head,
    key_value,
    timestamp_field,
)
from common_service_libs.feature_contract import Entity, FeatureContract, View
from common_service_libs.redis_link import encode_command

_INT64 = struct.Struct("<q")


@dataclass(frozen=True)
class ViewPlan:
    """Where the fields of a view stand in a reply: doubles, other numbers, texts, then the event time."""

    name: str
    ttl_seconds: float
    start: int
    doubles: tuple[str, ...]
    numbers: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The fields in the order of the reply."""
        return self.doubles + self.numbers + self.texts

    @property
    def end(self) -> int:
        """The index of the event time."""
        return self.start + len(self.names)


class EntityPlan:
    """One HMGET: only the value of the key changes from entity to entity."""

    def __init__(self, entity: Entity, views: Sequence[View], project: str) -> None:
        fields: list[bytes] = []
        plans = []
        for view in views:
            plan = _view_plan(view, len(fields))
            plans.append(plan)
            fields += [field_name(view.name, name) for name in plan.names]
            fields.append(timestamp_field(view.name))
        self.join_key = entity.join_key
        self.views = tuple(plans)
        self.width = len(fields)
        self.command = _command_of(entity, project, fields)


def _view_plan(view: View, start: int) -> ViewPlan:
    doubles = tuple(field.name for field in view.fields if field.type == "float64")
    texts = tuple(field.name for field in view.fields if field.type == "string")
    numbers = tuple(field.name for field in view.fields if field.type not in {"float64", "string"})
    return ViewPlan(view.name, float(view.ttl_seconds), start, doubles, numbers, texts)


def _command_of(entity: Entity, project: str, fields: Sequence[bytes]) -> Callable[[EntityValue], bytes]:
    """Return the function from a key's value to the bytes of the command.

    The function raises TypeError or ValueError for a value that is not of the key's type.
    """
    head, tail = key_head(entity.join_key), project.encode()
    if entity.type == "string":
        before = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        after = b"\r\n" + encode_command(*fields).partition(b"\r\n")[2]

        def string_command(value: EntityValue) -> bytes:
            if not isinstance(value, str):
                raise TypeError(f"{entity.join_key} is a string key, not {type(value).__name__}")
            key = head + key_value(value) + tail
            return b"%b$%d\r\n%b%b" % (before, len(key), key, after)

        return string_command
    head += INT64_HEAD
    command = encode_command(b"HMGET", head + bytes(_INT64.size) + tail, *fields)
    at = command.index(head) + len(head)
    before, after, pack = command[:at], command[at + _INT64.size :], _INT64.pack

    def int64_command(value: EntityValue) -> bytes:
        try:
            return before + pack(value) + after
        except struct.error:
            raise ValueError(f"{entity.join_key} is a 64-bit integer key: {type(value).__name__}") from None

    return int64_command


class ReadPlan:
    """Everything to send for one case or for many, and how wide the replies are."""

    def __init__(self, contract: FeatureContract, project: str) -> None:
        views = {
            entity.name: [view for view in contract.views if view.entity == entity.name]
            for entity in contract.entities
        }
        self.entities = tuple(
            EntityPlan(entity, views[entity.name], project)
            for entity in contract.entities
            if views[entity.name]
        )

    def one(self, entity_ids: Mapping[str, EntityValue]) -> bytes:
        """Return the commands for one case; `entity_ids` are values by join key."""
        return b"".join([plan.command(entity_ids[plan.join_key]) for plan in self.entities])

    def many(self, entity_ids: Mapping[str, Sequence[EntityValue]]) -> bytes:
        """Return the commands for as many cases as each join key has values: entity by entity, in order."""
        return b"".join(
            [command for plan in self.entities for command in map(plan.command, entity_ids[plan.join_key])]
        )
