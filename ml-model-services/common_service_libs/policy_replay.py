"""A recorded decision decided again: by the policy that made it, or by another one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from common_service_libs.feature_status import FeatureStatus
from common_service_libs.label_engine.engine import LabelEngine, Verdict
from common_service_libs.label_engine.lists import EntityLists
from common_service_libs.label_engine.policy import Policy

REFUSED = "(refused)"
UNDECIDABLE = "(no score)"
_AGED = frozenset({FeatureStatus.STALE.value, FeatureStatus.INVALID.value})


class Recorded(msgspec.Struct, frozen=True):
    """What a replay needs of a decision record; `requested_at` in seconds since the epoch."""

    request_id: str
    requested_at: float
    entity_ids: dict[str, Any]
    request: dict[str, Any]
    features: dict[str, Any]
    feature_status: dict[str, Any]
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
    rung: str
    policy_inputs: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """What was decided."""
        return Verdict(self.decision, self.reason_codes, self.rules_fired)

    @property
    def event_time(self) -> float:
        """The time of the event where the request gives one, else that of its arrival."""
        found = [at for name, at in request_values(self).items() if name.endswith("_timestamp")]
        return found[0] if found else self.requested_at


def floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with every number a float: JSON does not tell 1 from 1.0, a rule does."""
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }


def request_values(record: Recorded) -> dict[str, Any]:
    """Return what rules could read of a request.

    A body's `<name>_datetime` is `<name>_timestamp`, in seconds since the epoch, to the microsecond.
    """
    values = floats(record.request)
    for name, value in record.request.items():
        if name.endswith("_datetime") and isinstance(value, str):
            values[f"{name.removesuffix('_datetime')}_timestamp"] = datetime.fromisoformat(value).timestamp()
    return values | record.entity_ids


def replay(record: Recorded, engine: LabelEngine) -> Verdict:
    """Return what the engine's policy, the one of the record, decides on what was recorded."""
    return _decide(record, engine, record.policy_inputs, record.degraded, record.score is None)


def decide_anew(
    record: Recorded, engine: LabelEngine, lists: EntityLists | None = None, before: Policy | None = None
) -> Verdict:
    """Return what another policy would have decided; `before` is the one that did, if it is known.

    Lists and velocities count as they were recorded. A list that was not looked at then is looked up in
    `lists` as of the request, and is null without it; a velocity that was not asked for is null.
    """
    policy = engine.policy
    status = record.feature_status
    aged = any(status.get(view, {}).get("status") in _AGED for view in policy.degraded_by)
    away = record.rung in {"defaults", "rules_only"}
    if away and policy.without_features == "refuse":
        return Verdict(REFUSED, (), ())
    if away and policy.without_features == "rules_only":
        return _decide(record, engine, _inputs(record, engine, lists), True, True)
    if record.score is None:
        return Verdict(UNDECIDABLE, (), ())
    if before is not None and before.degraded_by == policy.degraded_by:
        degraded = record.degraded
    else:
        degraded = record.rung != "online" or aged
    return _decide(record, engine, _inputs(record, engine, lists), degraded, False)


def missing_inputs(record: Recorded, engine: LabelEngine, lists: EntityLists | None = None) -> list[str]:
    """Return the lists and velocities that the policy reads and the record does not hold."""
    given = record.policy_inputs
    names = engine.policy.inputs
    known = given.get("lists", {})
    found = [f"lists.{name}" for name in names.lists if name not in known and lists is None]
    velocity = given.get("velocity", {})
    return found + [f"velocity.{name}" for name in names.velocity if name not in velocity]


def _inputs(record: Recorded, engine: LabelEngine, lists: EntityLists | None) -> dict[str, dict[str, Any]]:
    recorded = record.policy_inputs.get("lists", {})
    if lists is not None:
        names = [name for name in engine.policy.inputs.lists if name not in recorded]
        recorded = lists.of(record.entity_ids, names, record.requested_at) | recorded
    return {"lists": recorded, "velocity": record.policy_inputs.get("velocity", {})}


def _decide(
    record: Recorded,
    engine: LabelEngine,
    policy_inputs: Mapping[str, Mapping[str, Any]],
    degraded: bool,
    by_rules_only: bool,
) -> Verdict:
    status = {view: state["status"] for view, state in record.feature_status.items()}
    inputs = {
        "lists": policy_inputs.get("lists", {}),
        "velocity": floats(policy_inputs.get("velocity", {})),
    }
    if by_rules_only or record.score is None:
        return engine.decide_without_score(
            request=request_values(record), status=status, policy_inputs=inputs
        )
    return engine.decide(
        score=record.score,
        features=floats(record.features),
        request=request_values(record),
        status=status,
        degraded=degraded,
        policy_inputs=inputs,
    )
