"""From a transaction to a case, and from a record to a reply; pure."""

from __future__ import annotations

from typing import Any

from app.schemas import FraudRequest
from common_service_libs.decision_record import DEFAULTED, DecisionRecord, rfc3339
from common_service_libs.decision_service import Case, reply_of


def to_case(request: FraudRequest, requested_at: float) -> Case:
    """Return what is to be decided; `requested_at` (epoch seconds) stands in for a time not given."""
    given = request.tx_datetime
    as_of = requested_at if given is None else given.timestamp()
    recorded: dict[str, Any] = {
        "transaction_id": request.transaction_id,
        "customer_id": request.customer_id,
        "terminal_id": request.terminal_id,
        "tx_amount": request.tx_amount,
        "tx_datetime": rfc3339(as_of),
        DEFAULTED: ["tx_datetime"] if given is None else [],
    }
    return Case(
        entity_ids={"customer_id": request.customer_id, "terminal_id": request.terminal_id},
        request=recorded,
        request_values={"tx_amount": request.tx_amount, "tx_timestamp": as_of},
        as_of=as_of,
        requested_at=requested_at,
    )


def to_reply(record: DecisionRecord, policy_name: str) -> dict[str, Any]:
    """Return the reply to a recorded decision."""
    return reply_of(record, policy_name)
