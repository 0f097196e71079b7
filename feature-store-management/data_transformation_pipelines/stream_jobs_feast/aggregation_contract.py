"""What a stream keeps: the YAML files of contracts/stream_aggregations, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from .transaction_events import EVENT_ID, EVENT_TIME, INTEGER_FIELDS, NUMBER_FIELDS

DEFINITION = (
    Path(__file__).resolve().parents[2] / "contracts" / "stream_aggregations" / "transactions_today.yaml"
)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
TopicName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,200}$")]


class AggregationError(ValueError):
    """A definition is not what it must be; the message names the file and the place in it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EventFields(_Part):
    """Which fields of an event identify it and say when it happened."""

    id: Name
    time: Name


class Window(_Part):
    """Since the midnight of a clock that is `utc_offset_hours` ahead of UTC."""

    since: Literal["midnight"]
    utc_offset_hours: int = Field(ge=-12, le=14)


class AggregatedField(_Part):
    """One field of a view: how many events, the sum of a number (whole cents, divided by 100), or the day."""

    name: Name
    aggregate: Literal["count", "sum", "day"]
    of: Name | None = None

    @model_validator(mode="after")
    def _sum_says_of_what(self) -> Self:
        if (self.aggregate == "sum") != (self.of is not None):
            raise ValueError(f"{self.name}: `of` belongs to a sum, and to each of them")
        if self.of is not None and self.of not in NUMBER_FIELDS:
            raise ValueError(f"{self.name}: an event has no number {self.of}")
        return self


class StreamedView(_Part):
    """One view that a topic feeds; the topic's key is the entity's."""

    view: Name
    topic: TopicName
    entity_key: Name
    fields: list[AggregatedField] = Field(min_length=1)

    @property
    def summed(self) -> tuple[str, ...]:
        """The numbers that are summed, in the order of the fields."""
        return tuple(dict.fromkeys(field.of for field in self.fields if field.of is not None))


class StreamDefinition(_Part):
    """The totals kept of one stream of events: the first view's topic is where events arrive."""

    name: Name
    version: int = Field(ge=1)
    event: EventFields
    window: Window
    views: list[StreamedView] = Field(min_length=1)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if (self.event.id, self.event.time) != (EVENT_ID, EVENT_TIME):
            raise ValueError(f"an event is identified by {EVENT_ID} and happens at {EVENT_TIME}")
        for what, values in (
            ("view", [view.view for view in self.views]),
            ("topic", [view.topic for view in self.views]),
            ("field", [field.name for view in self.views for field in view.fields]),
        ):
            if repeated := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"the {what} {', '.join(repeated)} stands twice")
        for view in self.views:
            if view.entity_key not in INTEGER_FIELDS:
                raise ValueError(f"view {view.view}: an event has no key {view.entity_key}")
        return self


def load_definition(path: Path = DEFINITION) -> StreamDefinition:
    """Return the definition that a YAML file holds; raises AggregationError."""
    try:
        return StreamDefinition.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise AggregationError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the definition"
        raise AggregationError(f"{path}: {place}: {first['msg']}") from error
