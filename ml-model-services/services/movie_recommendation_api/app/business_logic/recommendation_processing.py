"""From a request to a case, and from a record to a reply; pure."""

from __future__ import annotations

from typing import Any

from app.schemas import ListRequest, NewMoviesRequest
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.decision_service import Case, reply_of

ROUTES = {True: "recommend_new_movies", False: "recommend"}


def to_case(request: ListRequest, requested_at: float) -> Case:
    """Return what is to be decided; `requested_at` is the time of arrival in seconds since the epoch."""
    viewer = {} if request.viewer_id is None else {"viewer_id": request.viewer_id}
    recorded = request.model_dump(mode="json")
    return Case(
        entity_ids=viewer,
        request={"route": ROUTES[isinstance(request, NewMoviesRequest)], **recorded},
        request_values={"request_timestamp": requested_at},
        as_of=requested_at,
        requested_at=requested_at,
    )


def to_reply(record: DecisionRecord, policy_name: str) -> dict[str, Any]:
    """Return the reply to a recorded decision: the list, and how it came about."""
    result = record.result or {}
    return reply_of(record, policy_name) | {
        "movies": result["movies"],
        "viewer_rating_count": result["viewer_rating_count"],
        "hidden_count": len(result["hidden"]),
        "left_out": result["left_out"],
    }
