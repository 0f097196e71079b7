"""The parts of requests and replies that every service shares, as they stand in OpenAPI."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_ENTITY_ID = 2**63 - 1
SHA256_EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class Reply(BaseModel):
    """A reply; fields are added in a new version of the service, never taken away."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelReference(Reply):
    """The model that scored."""

    name: str
    version: int
    bundle_sha256: str = Field(description="identity of the release bundle", examples=[SHA256_EXAMPLE])


class PolicyReference(Reply):
    """The policy that decided."""

    name: str
    version: int
    sha256: str = Field(description="hash of the policy file", examples=[SHA256_EXAMPLE])


class DecisionReply(Reply):
    """A decision, why it was taken, and by what."""

    request_id: str = Field(examples=["7f0c6c0e-6a0e-4a53-9a52-2f3d5a1a8d10"])
    decision: str
    score: float | None = Field(ge=0, le=1, description="P(positive); null if rules alone decided")
    reason_codes: list[str] = Field(min_length=1)
    rules_fired: list[str] = Field(
        description="in the policy's order; `shadow:` marks rules that decide nothing"
    )
    degraded: bool = Field(
        description="the online store was silent, or a view the policy names was out of date"
    )
    rung: str = Field(
        description="the step of the ladder that answered: online, snapshot, defaults, rules_only"
    )
    variant: str = Field(description="the model's part in a rollout: champion or canary")
    feature_status: dict[str, str] = Field(
        description="per view: present, null, missing, stale, invalid or unavailable"
    )
    model: ModelReference
    policy: PolicyReference
    latency_ms: float = Field(ge=0, description="from arrival to decision")


class ViewState(Reply):
    """What was found of a view."""

    status: str
    event_timestamp: str | None


class DecisionDocument(Reply):
    """A decision as it was recorded; a null feature had no value."""

    request_id: str
    service: str
    requested_at: str
    entity_ids: dict[str, int | str]
    request: dict[str, Any]
    features: dict[str, float | str | None]
    feature_status: dict[str, ViewState]
    model_name: str
    model_version: int
    bundle_sha256: str
    policy_version: int
    policy_sha256: str
    score: float | None
    decision: str
    reason_codes: list[str]
    rules_fired: list[str]
    degraded: bool
    latency_ms: float
    rung: str
    variant: str
    policy_inputs: dict[str, Any] = Field(description="what the rules read beside features and request")
    result: dict[str, Any] | None = Field(description="what was given beside the decision, such as a list")


class Contribution(Reply):
    """How far one feature moved the score, in log-odds."""

    feature: str
    value: float | str | None
    contribution: float
    reason_code: str | None


class Reason(Reply):
    """What raised the score: the contributions of the features behind one code, in log-odds."""

    code: str
    text: str
    contribution: float


class Explanation(Reply):
    """A decision replayed from its record; `base_value` and contributions add up to the score's log-odds."""

    request_id: str
    decision: str
    reason_codes: list[str]
    recorded_score: float
    replayed_score: float
    reproduced: bool
    model: ModelReference
    unit: str
    base_value: float
    contributions: list[Contribution]
    reasons: list[Reason] | None = Field(
        default=None, description="at most three, strongest first; null where the bundle names no codes"
    )
    replayed_decision: str | None = Field(default=None, description="null where the policy is not at hand")
    decision_reproduced: bool | None = Field(
        default=None, description="whether decision, reason codes and rules are those recorded"
    )


class CanaryState(Reply):
    """The canary: `share` of the entities get it now; `state` is waiting, serving or aborted."""

    version: int
    bundle_sha256: str
    share: float = Field(ge=0, le=1)
    state: str
    reason: str | None = Field(description="why it was stopped")
    loaded_at: str


class ShadowState(Reply):
    """The shadow: it decides live traffic for the record only."""

    version: int
    bundle_sha256: str
    loaded_at: str


class RolloutCheck(Reply):
    """One comparison of the canary with the champion; `finding` is pass, watch or abort."""

    name: str
    finding: str
    canary: float | None
    champion: float | None
    detail: str


class RolloutVerdict(Reply):
    """The last verdict on the canary: continue, promote-ready or abort."""

    verdict: str
    reason: str
    canary_requests: int
    champion_requests: int
    checks: list[RolloutCheck]


class RolloutState(Reply):
    """Who takes part in a rollout, and what becomes of it."""

    canary: CanaryState | None
    shadow: ShadowState | None
    verdict: RolloutVerdict | None


class ModelDocument(Reply):
    """What is in service."""

    service: str
    service_version: str
    model: ModelReference
    model_kind: str
    feature_service: str
    features: list[str]
    thresholds: dict[str, float]
    label_policy_version: int | str
    training: dict[str, Any]
    git_commit: str
    data_version: str
    policy: PolicyReference
    loaded_at: str
    rollout: RolloutState | None = Field(description="null where this service rolls nothing out")


class Readiness(Reply):
    """Whether requests can be answered, and with what."""

    ready: bool
    checks: dict[str, bool]
    service: str
    service_version: str
    model: ModelReference | None
    policy: PolicyReference
