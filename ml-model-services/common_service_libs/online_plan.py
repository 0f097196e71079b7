"""What is asked of Redis for a contract: one HMGET an entity, all fields of all its views."""

from __future__ import annotations

import hashlib
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
from common_service_libs.feature_contract import Entity, FeatureContract, Field, View
from common_service_libs.redis_link import encode_command

_INT64 = struct.Struct("<q")


@dataclass(frozen=True)
class ViewPlan:
    """Where a view stands in the reply to its entity: three runs of fields, and the event time.

    `number_rows` and `text_rows` say the same of the entity's numbers (doubles first) and texts alone.
    """

    name: str
    ttl_seconds: float
    names: tuple[str, ...]
    doubles: slice
    numbers: slice
    texts: slice
    time: int
    number_rows: tuple[int, ...]
    text_rows: tuple[int, ...]


class EntityPlan:
    """One HMGET: only the value of the key changes from entity to entity.

    The reply holds the doubles of all views, their other numbers, their texts, their event times, so that
    everything of one kind is decoded at once. `names` are the fields in that order, `runs` where each kind
    stands. `signature` is the same for plans whose replies mean the same.
    """

    def __init__(self, entity: Entity, views: Sequence[View], project: str) -> None:
        doubles, numbers, texts = _by_kind(views)
        order = doubles + numbers + texts
        self.names = tuple(name for _, name in order)
        ends = len(doubles), len(doubles) + len(numbers), len(order)
        self.runs = slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2]), slice(ends[2], None)
        self.width = len(order) + len(views)
        self.join_key = entity.join_key
        self.views = tuple(_view_plan(view, order, ends, at) for at, view in enumerate(views))
        fields = [field_name(view, name) for view, name in order]
        fields += [timestamp_field(view.name) for view in views]
        self.command = _command_of(entity, project, fields)
        self.signature = hashlib.blake2b(
            encode_command(project.encode(), entity.join_key.encode(), entity.type.encode(), *fields),
            digest_size=8,
        ).hexdigest()


def _by_kind(views: Sequence[View]) -> list[list[tuple[str, str]]]:
    """Return (view, field) of the doubles, of the other numbers and of the texts."""
    return [
        [(view.name, field.name) for view in views for field in view.fields if _kind(field) == kind]
        for kind in range(3)
    ]


def _kind(field: Field) -> int:
    """Return 0 for a double, 1 for another number, 2 for a text."""
    return {"float64": 0, "string": 2}.get(field.type, 1)


def _view_plan(view: View, order: Sequence[tuple[str, str]], ends: tuple[int, int, int], at: int) -> ViewPlan:
    runs = []
    for begin, end in zip((0, *ends), ends, strict=False):
        own = [index for index in range(begin, end) if order[index][0] == view.name]
        runs.append(slice(own[0], own[-1] + 1) if own else slice(end, end))
    names = tuple(name for run in runs for _, name in order[run])
    doubles, numbers, texts = runs
    return ViewPlan(
        name=view.name,
        ttl_seconds=float(view.ttl_seconds),
        names=names,
        doubles=doubles,
        numbers=numbers,
        texts=texts,
        time=ends[2] + at,
        number_rows=(*range(doubles.start, doubles.stop), *range(numbers.start, numbers.stop)),
        text_rows=tuple(range(texts.start - ends[1], texts.stop - ends[1])),
    )


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

        self.names = tuple(name for entity in self.entities for name in entity.names)

    def one(self, entity_ids: Mapping[str, EntityValue]) -> bytes:
        """Return the commands for one case; `entity_ids` are values by join key."""
        if len(self.entities) == 1:
            plan = self.entities[0]
            return plan.command(entity_ids[plan.join_key])
        return b"".join([plan.command(entity_ids[plan.join_key]) for plan in self.entities])

    def many(self, entity_ids: Mapping[str, Sequence[EntityValue]]) -> bytes:
        """Return the commands for as many cases as each join key has values: entity by entity, in order."""
        return b"".join(
            [command for plan in self.entities for command in map(plan.command, entity_ids[plan.join_key])]
        )
