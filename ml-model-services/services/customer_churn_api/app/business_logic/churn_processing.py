"""From a subscriber to a case, and from a record to a reply; pure."""

from __future__ import annotations

from typing import Any

from app.schemas import ChurnRequest
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.decision_service import Case, reply_of


def to_case(request: ChurnRequest, requested_at: float) -> Case:
    """Return what is to be decided; `requested_at` is the time of arrival in seconds since the epoch."""
    return Case(
        entity_ids={"subscriber_id": request.subscriber_id},
        request={"subscriber_id": request.subscriber_id},
        request_values={},
        as_of=requested_at,
        requested_at=requested_at,
    )


def to_reply(record: DecisionRecord, policy_name: str) -> dict[str, Any]:
    """Return the reply to a recorded decision; the probability also stands under its older name."""
    return reply_of(record, policy_name) | {"churn_probability": record.score}
