"""Request and reply of `POST /predict`, strict: no text for numbers, no unknown fields, no NaN."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common_service_libs.schemas import MAX_ENTITY_ID, DecisionReply

MAX_AMOUNT = 1e9
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})")


def _rfc3339(value: Any) -> Any:
    """Return a time in JSON as an aware datetime; text only, and only in the one form."""
    if value is None:
        return None
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be an RFC 3339 time with a zone, such as 2026-01-31T12:00:00Z")
    return datetime.fromisoformat(value.upper())


EntityId = Annotated[int, Field(ge=0, le=MAX_ENTITY_ID)]
EventTime = Annotated[
    datetime,
    BeforeValidator(_rfc3339),
    Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2100, 1, 1, tzinfo=UTC)),
]


class FraudRequest(BaseModel):
    """One card transaction."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "customer_id": 596,
                    "terminal_id": 3156,
                    "tx_amount": 57.16,
                    "tx_datetime": "2026-01-31T08:15:00Z",
                },
                {"transaction_id": 1754155, "customer_id": 596, "terminal_id": 3156, "tx_amount": 260.0},
            ]
        },
    )

    customer_id: EntityId
    terminal_id: EntityId
    tx_amount: float = Field(ge=0, le=MAX_AMOUNT, allow_inf_nan=False, description="in the card's currency")
    tx_datetime: EventTime | None = Field(
        default=None, description="RFC 3339 with a zone; the time of arrival if it is left out"
    )
    transaction_id: EntityId | Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,64}$")] | None = Field(
        default=None, description="the caller's own id, recorded with the decision"
    )


class FraudReply(DecisionReply):
    """The decision on a transaction."""

    decision: Literal["approve", "review", "decline"]
