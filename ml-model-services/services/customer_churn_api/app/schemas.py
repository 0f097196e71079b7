"""Request and reply of `POST /predict`, strict: no text for numbers, no unknown fields."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from common_service_libs.schemas import MAX_ENTITY_ID, DecisionReply


class ChurnRequest(BaseModel):
    """One subscriber."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [{"subscriber_id": 1207}]}
    )

    subscriber_id: int = Field(ge=0, le=MAX_ENTITY_ID)


class ChurnReply(DecisionReply):
    """The decision on a subscriber."""

    decision: Literal["none", "contact", "offer"]
    churn_probability: float | None = Field(ge=0, le=1, description="the score, under its older name")
