"""A decision as it is recorded: everything needed to repeat it and to explain it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

DEFAULTED = "defaulted"


class DecisionRecord(msgspec.Struct, frozen=True):
    """One row of `decisions.decision_records`; times are RFC 3339 in UTC, null features are None.

    `request` is the body with its defaults filled in; the names of those stand in its list `defaulted`.
    `score` is None for a decision made by rules only. `feature_status` holds status and event time of each
    view: with the contract in the bundle and the value itself it says what became of every value. `rung` is
    the step of the degradation ladder that answered, `variant` the model's part in a rollout (`champion` or
    `canary`), and `policy_inputs` what the rules read beside features and request, e.g.
    `{"lists": {name: bool}, "velocity": {name: number or null}}`. `result` is what was given beside the
    decision, such as a list of recommended movies. Fields added later have defaults, so that a spool written
    by an earlier version can still be read.
    """

    request_id: str
    service: str
    requested_at: str
    entity_ids: dict[str, int | str]
    request: dict[str, Any]
    features: dict[str, Any]
    feature_status: dict[str, dict[str, str | None]]
    model_name: str
    model_version: int
    bundle_sha256: str
    policy_version: int
    policy_sha256: str
    score: float | None
    decision: str
    reason_codes: tuple[str, ...]
    rules_fired: tuple[str, ...]
    degraded: bool
    latency_ms: float
    rung: str = "online"
    variant: str = "champion"
    policy_inputs: dict[str, Any] = {}
    result: dict[str, Any] | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DecisionRecord)


def encode(record: DecisionRecord) -> bytes:
    """Return the record as JSON; a NaN feature becomes null."""
    return _encoder.encode(record)


def decode(content: bytes) -> DecisionRecord:
    """Return the record in `content`; raises msgspec.DecodeError for anything else."""
    return _decoder.decode(content)


def asks_the_same(request: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two recorded requests stand for the same body; what was defaulted counts as not sent."""
    return _sent(request) == _sent(other)


def _sent(request: Mapping[str, Any]) -> dict[str, Any]:
    defaulted = request.get(DEFAULTED, ())
    return {name: value for name, value in request.items() if name not in defaulted and name != DEFAULTED}


def rfc3339(seconds: float) -> str:
    """Return a time in seconds since the epoch as RFC 3339 in UTC, to the microsecond.

    >>> rfc3339(1728000000.25)
    '2024-10-04T00:00:00.250000Z'
    """
    fraction, whole = math.modf(seconds)
    microseconds = round(fraction * 1e6)  # half to even, as `datetime.fromtimestamp` does
    if microseconds >= 1_000_000:
        microseconds, whole = microseconds - 1_000_000, whole + 1
    elif microseconds < 0:
        microseconds, whole = microseconds + 1_000_000, whole - 1
    return f"{_second(int(whole))}.{microseconds:06d}Z"


@functools.lru_cache(maxsize=4096)  # now, and most event times are one of a few midnights
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
