"""The newest decisions of a service, page by page: what the list holds, and how its cursor is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import Query
from pydantic import Field

from common_service_libs.errors import FieldError, InvalidRequest
from common_service_libs.monitoring_middleware import REQUEST_ID
from common_service_libs.schemas import Reply

MOST = 200
_CURSOR = re.compile(
    rf"(?P<at>\d{{4}}-\d{{2}}-\d{{2}}T\d{{2}}:\d{{2}}:\d{{2}}(\.\d{{1,6}})?Z)(,(?P<id>{REQUEST_ID.pattern}))?"
)

Limit = Annotated[int, Query(ge=1, le=MOST, description="at most so many decisions")]
Before = Annotated[
    str | None,
    Query(
        max_length=160,
        description="only decisions before this: a time in UTC such as 2026-01-31T12:00:00Z, or `next` of "
        "the page before",
        examples=["2026-01-31T12:00:00Z"],
    ),
]

# Newest first; the id keeps apart what was decided in the same microsecond, so that no page skips or repeats.
SELECT_RECENT = """
select request_id, to_char(requested_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as requested_at,
    entity_ids, request, model_version, policy_version, score, decision, reason_codes, rules_fired, degraded,
    rung, variant, latency_ms
from decisions.decision_records as record
where service = %s and (record.requested_at, record.request_id) < (%s::timestamptz, %s)
order by record.requested_at desc, record.request_id desc
limit %s
"""


class DecisionSummary(Reply):
    """A recorded decision in short; `GET /decisions/{request_id}` has all of it."""

    request_id: str
    requested_at: str
    entity_ids: dict[str, int | str]
    request: dict[str, Any]
    model_version: int
    policy_version: int
    score: float | None
    decision: str
    reason_codes: list[str]
    rules_fired: list[str]
    degraded: bool
    rung: str
    variant: str
    latency_ms: float


class DecisionPage(Reply):
    """Recorded decisions, newest first."""

    decisions: list[DecisionSummary]
    next: str | None = Field(description="`before` of the page that follows; null on the last one")


class Cursor(NamedTuple):
    """Where a page begins: only what is older than this time, and of the same time what has a smaller id."""

    at: str = "infinity"
    request_id: str = ""


def read_cursor(before: str | None) -> Cursor:
    """Return the beginning of the page; raises InvalidRequest.

    >>> read_cursor("2026-01-31T12:00:00Z,7f0c")
    Cursor(at='2026-01-31T12:00:00.000000+00:00', request_id='7f0c')
    """
    if before is None:
        return Cursor()
    found = _CURSOR.fullmatch(before)
    try:
        if found is None:
            raise ValueError
        at = datetime.fromisoformat(found["at"]).astimezone(UTC)
    except ValueError:
        field = FieldError("/query/before", "must be a time in UTC such as 2026-01-31T12:00:00Z, or `next`")
        raise InvalidRequest("a parameter is wrong", [field]) from None
    return Cursor(at.isoformat(timespec="microseconds"), found["id"] or "")


def page_of(rows: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """Return at most `limit` of the rows as a page; a row more than that says that another page follows."""
    shown = rows[:limit]
    last = shown[-1] if len(rows) > limit else None
    return {
        "decisions": shown,
        "next": None if last is None else f"{last['requested_at']},{last['request_id']}",
    }
