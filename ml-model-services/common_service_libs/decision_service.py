"""The way of a decision: features, vector, score, policy, record. Pure in the middle, I/O at its two ends."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common_service_libs.decision_log import DecisionLog
from common_service_libs.decision_record import DecisionRecord, asks_the_same, rfc3339
from common_service_libs.decision_replay import (
    ReasonCode,
    agrees,
    read_reason_codes,
    reasons,
    replay_verdict,
)
from common_service_libs.errors import (
    ArtifactError,
    BundleUnavailable,
    DecisionNotFound,
    FeaturesMissing,
    FeaturesUnavailable,
    ModelUnavailable,
    NotExplainable,
    PolicyError,
    RequestIdReused,
    SpoolUnavailable,
)
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.feature_vector import FeatureVector, VectorBuilder
from common_service_libs.idempotency import Repeats
from common_service_libs.label_engine.engine import NO_INPUTS, LabelEngine, Verdict, require_fit
from common_service_libs.label_engine.lists import NO_LISTS
from common_service_libs.label_engine.policy import Policy
from common_service_libs.label_engine.reason_codes import reason_of_feature
from common_service_libs.label_engine.velocity import NO_VELOCITY, Velocity
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.model_registry import BundleCache, ModelVersion
from common_service_libs.online_store import FeatureReader, OnlineFeatures, Source
from common_service_libs.redis_link import RedisLink
from common_service_libs.release_bundle import Bundle, as_values, load_bundle
from common_service_libs.resilience.hot_snapshot import HotSnapshot
from common_service_libs.resilience.ladder import FeatureLadder
from common_service_libs.telemetry import current_trace

REPLAY_TOLERANCE = 1e-9
M = TypeVar("M")
CHAMPION = "champion"


class Rung(StrEnum):
    """The rungs of the degradation ladder."""

    ONLINE = "online"
    SNAPSHOT = "snapshot"
    DEFAULTS = "defaults"
    RULES_ONLY = "rules_only"


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be decided.

    `request` is the body as recorded, `request_values` what expressions and rules read of it, `as_of` the
    time of the event in seconds since the epoch, `requested_at` that of its arrival.
    """

    entity_ids: Mapping[str, int | str]
    request: Mapping[str, Any]
    request_values: Mapping[str, float]
    as_of: float
    requested_at: float


@dataclass(frozen=True)
class ServedModel:
    """A bundle with everything compiled from it; replaced as a whole."""

    version: int
    bundle: Bundle
    reader: FeatureReader
    vectors: VectorBuilder
    engine: LabelEngine
    velocity: Velocity = NO_VELOCITY
    loaded_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided, and from what."""

    vector: FeatureVector
    score: float | None
    verdict: Verdict
    degraded: bool
    rung: Rung
    features: dict[str, Any]
    policy_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def serve(
    folder: Path, version: ModelVersion, policy: Policy, project: str, metrics: ServiceMetrics
) -> ServedModel:
    """Load, check and compile a bundle; raises ArtifactError if it does not fit service and policy."""
    bundle = load_bundle(
        folder,
        model_name=version.name,
        feature_service=policy.feature_service,
        expected_sha256=version.bundle_sha256,
    )
    require_fit(policy, bundle.contract)
    return ServedModel(
        version=version.version,
        bundle=bundle,
        reader=FeatureReader(bundle.contract, project),
        vectors=VectorBuilder(bundle.contract),
        engine=_engine(policy, bundle, metrics),
        velocity=Velocity(policy.velocity, project),
    )


def with_policy(model: ServedModel, policy: Policy, project: str, metrics: ServiceMetrics) -> ServedModel:
    """Return the model under another policy; raises PolicyError if the two do not fit."""
    bundle = model.bundle
    if policy.feature_service != bundle.manifest.feature_service:
        raise PolicyError(
            f"policy {policy.name} is made for {policy.feature_service}, "
            f"the bundle in service for {bundle.manifest.feature_service}"
        )
    require_fit(policy, bundle.contract)
    return replace(
        model, engine=_engine(policy, bundle, metrics), velocity=Velocity(policy.velocity, project)
    )


def _engine(policy: Policy, bundle: Bundle, metrics: ServiceMetrics) -> LabelEngine:
    return LabelEngine(policy, bundle.thresholds, lambda rule: metrics.rule_errors.at(rule).inc())


def judge(
    case: Case,
    online: OnlineFeatures,
    model: ServedModel,
    policy_inputs: Mapping[str, Mapping[str, Any]] = NO_INPUTS,
) -> Outcome:
    """Decide one case from what the online store said.

    `policy_inputs` is what the rules read beside features and request. Raises FeaturesUnavailable or
    FeaturesMissing when contract or policy want no decision without the features.
    """
    policy = model.engine.policy
    vector = model.vectors.build(online, case.request_values)
    features = dict(zip(model.bundle.feature_names, vector.values, strict=True))
    request: dict[str, Any] = {**case.entity_ids, **case.request_values}
    if online.unavailable and policy.without_features != "score_defaults":
        if policy.without_features == "refuse":
            raise FeaturesUnavailable(
                "the online store does not answer, and nothing is decided without features"
            )
        verdict = model.engine.decide_without_score(
            request=request, status=online.status, policy_inputs=policy_inputs
        )
        return Outcome(vector, None, verdict, True, Rung.RULES_ONLY, features, policy_inputs)
    if vector.failed:
        raise FeaturesMissing(vector.failed)
    degraded = online.complete is None and (
        online.source is not Source.ONLINE
        or any(
            online.status[view] in {FeatureStatus.STALE, FeatureStatus.INVALID} for view in policy.degraded_by
        )
    )
    score = model.bundle.score(vector.values)
    trace = current_trace()
    if trace is not None:
        trace.stage("score")
    verdict = model.engine.decide(
        score=score,
        features=features,
        request=request,
        status=online.status,
        degraded=degraded,
        policy_inputs=policy_inputs,
    )
    if trace is not None:
        trace.stage("policy")
    rung = Rung.DEFAULTS if online.unavailable else Rung(online.source)
    return Outcome(vector, score, verdict, degraded, rung, features, policy_inputs)


Judged = tuple[OnlineFeatures, Outcome]


class Rolling(Protocol):
    """What a decision asks of a rollout; None stands in while nothing is rolled out."""

    async def decided(
        self, case: Case, judged: Callable[[Case, ServedModel], Awaitable[Judged]]
    ) -> tuple[ServedModel, str, Judged]:
        """Return model and variant of a case, and what `judged` said with that model."""

    def after(self, case: Case, online: OnlineFeatures, record: DecisionRecord) -> None:
        """Hear of a decision that is durable; never slows or fails the reply."""


class DecisionService:
    """Decides, finds and explains; holds the model in service."""

    rolls_out = True

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        link: RedisLink,
        log: DecisionLog,
        bundles: BundleCache,
        metrics: ServiceMetrics,
        snapshot: HotSnapshot | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.lists = NO_LISTS
        self._ladder = FeatureLadder(link, snapshot)
        self._log = log
        self._repeats = Repeats(log=log, metrics=metrics)
        self._bundles = bundles
        self._metrics = metrics
        self._model: ServedModel | None = None
        self.rollout: Rolling | None = None
        self._running: dict[str, asyncio.Future[DecisionRecord]] = {}
        self._deciding = 0
        self._replays = ThreadPoolExecutor(1, "replay")  # one: a scorer reuses its row
        self._replayed: Bundle | None = None
        self._reason_codes: Mapping[str, ReasonCode] | None = None
        self.recorded_policy: Callable[[str], Policy | None] = lambda sha256: None

    @property
    def model(self) -> ServedModel | None:
        """The model in service, if there is one."""
        return self._model

    def swap(self, model: ServedModel) -> None:
        """Put a model in service; requests that are under way finish on the one they began with."""
        self._model = model
        self._metrics.model.clear()
        self._metrics.model.labels(model.bundle.manifest.model_name, model.version, model.bundle.sha256).set(
            1
        )

    async def decide(self, case: Case, request_id: str, *, id_sent: bool, started: float) -> DecisionRecord:
        """Decide a case once: a request id that the client sent before gives the recorded decision.

        `started` is the `perf_counter` of the request's arrival. Raises RequestIdReused if the id stands for
        another body, and whatever `judge` raises.
        """
        if not id_sent:
            return await self._decide(case, request_id, started)
        running = self._running.get(request_id)
        if running is None:
            running = asyncio.ensure_future(self._recorded_or_new(case, request_id, started))
            self._running[request_id] = running
            running.add_done_callback(lambda done: self._forget(request_id, done))
        record = await asyncio.shield(running)
        if not asks_the_same(record.request, case.request):
            raise RequestIdReused(f"request id {request_id} was used for another body")
        return record

    def _forget(self, request_id: str, done: asyncio.Future[DecisionRecord]) -> None:
        del self._running[request_id]
        if not done.cancelled():
            done.exception()

    async def _recorded_or_new(self, case: Case, request_id: str, started: float) -> DecisionRecord:
        record = await self._repeats.find_or_claim(request_id)
        if record is not None:
            self._metrics.repeats.inc()
            return record
        try:
            return await self._decide(case, request_id, started)
        except BaseException:
            self._repeats.release(request_id)
            raise

    def _in_service(self, model: M | None) -> M:
        """Return the model; raises ModelUnavailable without one, SpoolUnavailable if nothing can be kept."""
        if model is None:
            raise ModelUnavailable("no release bundle is loaded yet")
        if self._log.full:
            raise SpoolUnavailable(
                "the spool of decisions is full: the decision database has been silent too long"
            )
        return model

    async def _decide(self, case: Case, request_id: str, started: float) -> DecisionRecord:
        self._deciding += 1
        try:
            return await self._decide_now(case, request_id, started)
        finally:
            self._deciding -= 1

    async def _decide_now(self, case: Case, request_id: str, started: float) -> DecisionRecord:
        model = self._in_service(self._model)
        trace = current_trace()
        if trace is not None:
            trace.skip()
        rollout = self.rollout
        if rollout is None:
            variant, (online, outcome) = CHAMPION, await self._judged(case, model, request_id)
        else:
            model, variant, (online, outcome) = await rollout.decided(
                case, lambda case, model: self._judged(case, model, request_id)
            )
        latency_ms = (time.perf_counter() - started) * 1000
        record = self._record(case, request_id, model, variant, online, outcome, latency_ms)
        await self._log.append(record, alone=self._deciding == 1)
        if trace is not None:
            trace.decided(record)
        self._count(model, online, outcome)
        if rollout is not None:
            rollout.after(case, online, record)
        return record

    async def _judged(self, case: Case, model: ServedModel, request_id: str) -> Judged:
        policy = model.engine.policy
        if not policy.reads_more:
            online, _ = await self._ladder.read(model.reader, case.entity_ids, case.as_of)
            if (trace := current_trace()) is not None:
                trace.stage("features")
            return online, judge(case, online, model)
        velocity, at = model.velocity, case.requested_at
        commands = velocity.commands(case.entity_ids, case.request_values, request_id, at)
        online, replies = await self._ladder.read(model.reader, case.entity_ids, case.as_of, commands)
        if (trace := current_trace()) is not None:
            trace.stage("features")
        inputs = {
            "lists": self.lists.of(case.entity_ids, policy.inputs.lists, at),
            "velocity": velocity.values(replies),
        }
        return online, judge(case, online, model, inputs)

    def _record(
        self,
        case: Case,
        request_id: str,
        model: ServedModel,
        variant: str,
        online: OnlineFeatures,
        outcome: Outcome,
        latency_ms: float,
    ) -> DecisionRecord:
        times = online.event_timestamps
        policy = model.engine.policy  # the one that decided: another may be in service by now
        return DecisionRecord(
            request_id=request_id,
            service=self.name,
            requested_at=rfc3339(case.requested_at),
            entity_ids=dict(case.entity_ids),
            request=dict(case.request),
            features=outcome.features,
            feature_status={
                view: _view_status(status, times[view]) for view, status in online.status.items()
            },
            model_name=model.bundle.manifest.model_name,
            model_version=model.version,
            bundle_sha256=model.bundle.sha256,
            policy_version=policy.version,
            policy_sha256=policy.sha256,
            score=outcome.score,
            decision=outcome.verdict.decision,
            reason_codes=outcome.verdict.reason_codes,
            rules_fired=outcome.verdict.rules_fired,
            degraded=outcome.degraded,
            latency_ms=round(latency_ms, 3),
            rung=outcome.rung.value,
            variant=variant,
            policy_inputs=dict(outcome.policy_inputs),
        )

    def _count(self, model: ServedModel, online: OnlineFeatures, outcome: Outcome) -> None:
        metrics = self._metrics
        metrics.decisions.count(
            outcome.verdict.decision, str(model.version), str(model.engine.policy.version)
        )
        metrics.rungs.count(outcome.rung)
        if outcome.score is not None:
            metrics.scores.observe(outcome.score)
        for view, status in online.status.items():
            metrics.feature_status.count(view, status)
        if online.complete is None or outcome.vector.fallbacks:
            for feature, status in zip(model.bundle.feature_names, outcome.vector.status, strict=True):
                if status is not FeatureStatus.PRESENT:
                    metrics.value_status.at(feature, status).inc()
        for feature in outcome.vector.fallbacks:
            metrics.fallbacks.at(feature).inc()
        for rule in outcome.verdict.rules_fired:
            metrics.rule_hits.count(rule)

    async def find(self, request_id: str) -> DecisionRecord:
        """Return a recorded decision; raises DecisionNotFound or DecisionStoreUnavailable."""
        record = await self._log.find(request_id)
        if record is None:
            raise DecisionNotFound(f"no decision of {self.name} has the id {request_id}")
        return record

    async def explain(self, request_id: str) -> dict[str, Any]:
        """Replay a decision from its record with the bundle that made it, and say what moved the score."""
        record = await self.find(request_id)
        if record.score is None:
            raise NotExplainable("the decision was made by rules only, without a score")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._replays, self._explain, record, record.score)

    def close(self) -> None:
        """Take no more replays."""
        self._replays.shutdown(wait=False, cancel_futures=True)

    def _explain(self, record: DecisionRecord, recorded_score: float) -> dict[str, Any]:
        bundle = self._bundle_of(record)
        names = bundle.feature_names
        values = as_values(names, record.features)
        score = bundle.score(values)
        *parts, base = bundle.contributions(values)
        ranked = sorted(zip(names, values, parts, strict=True), key=lambda row: -abs(row[2]))
        by_feature = reason_of_feature()
        verdict = self._replay_verdict(record, bundle)
        return {
            "request_id": record.request_id,
            "decision": record.decision,
            "reason_codes": list(record.reason_codes),
            "recorded_score": recorded_score,
            "replayed_score": score,
            "reproduced": abs(score - recorded_score) <= REPLAY_TOLERANCE,
            "model": model_of(record),
            "unit": "log-odds",
            "base_value": base,
            "contributions": [
                {"feature": name, "value": value, "contribution": part, "reason_code": by_feature.get(name)}
                for name, value, part in ranked
            ],
            "reasons": None if self._reason_codes is None else reasons(names, parts, self._reason_codes),
            "replayed_decision": None if verdict is None else verdict.decision,
            "decision_reproduced": None if verdict is None else agrees(record, verdict),
        }

    def _replay_verdict(self, record: DecisionRecord, bundle: Bundle) -> Verdict | None:
        """Return what the policy of the record says now, None if that policy cannot be had."""
        policy = self.policy
        if record.policy_sha256 != policy.sha256:
            found = self.recorded_policy(record.policy_sha256)
            if found is None:
                return None
            policy = found
        return replay_verdict(record, bundle, LabelEngine(policy, bundle.thresholds))

    def _bundle_of(self, record: DecisionRecord) -> Bundle:
        """Return the bundle of a decision, loaded for replays: the one in service belongs to the loop."""
        if self._replayed is not None and self._replayed.sha256 == record.bundle_sha256:
            return self._replayed
        folder = self._bundles.obtain_recorded(record.model_name, record.model_version, record.bundle_sha256)
        try:
            self._replayed = load_bundle(
                folder,
                model_name=record.model_name,
                feature_service=self.policy.feature_service,
                expected_sha256=record.bundle_sha256,
            )
            self._reason_codes = read_reason_codes(folder, self._replayed)
        except ArtifactError as error:
            self._replayed = None
            raise BundleUnavailable(f"the bundle of this decision cannot be used: {error}") from None
        return self._replayed


@functools.lru_cache(maxsize=4096)  # most event times are one of a few midnights
def _view_status(status: FeatureStatus, event_time: float | None) -> dict[str, str | None]:
    """Return what is recorded of a view; nobody changes it."""
    return {"status": status.value, "event_timestamp": None if event_time is None else rfc3339(event_time)}


def model_of(record: DecisionRecord) -> dict[str, Any]:
    """Return what a reply says about the model of a decision."""
    return {
        "name": record.model_name,
        "version": record.model_version,
        "bundle_sha256": record.bundle_sha256,
    }


def reply_of(record: DecisionRecord, policy_name: str) -> dict[str, Any]:
    """Return the reply to a decision, the same whether it was just made or is read from the record."""
    return {
        "request_id": record.request_id,
        "decision": record.decision,
        "score": record.score,
        "reason_codes": record.reason_codes,
        "rules_fired": record.rules_fired,
        "degraded": record.degraded,
        "rung": record.rung,
        "variant": record.variant,
        "feature_status": {view: state["status"] for view, state in record.feature_status.items()},
        "model": model_of(record),
        "policy": {"name": policy_name, "version": record.policy_version, "sha256": record.policy_sha256},
        "latency_ms": record.latency_ms,
    }
