"""The way of a recommendation: history, ranking, policy, record; replayed to the same list."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.decision_record import DecisionRecord, rfc3339
from common_service_libs.decision_service import Case, DecisionService, Rung, ServedModel, model_of
from common_service_libs.errors import (
    ArtifactError,
    BundleUnavailable,
    ContractError,
    PolicyError,
)
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.feature_vector import VectorBuilder
from common_service_libs.label_engine.engine import LabelEngine, require_fit
from common_service_libs.label_engine.lists import EntityLists
from common_service_libs.label_engine.policy import Policy
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.model_registry import ModelVersion
from common_service_libs.online_store import FeatureReader, OnlineFeatures, Source
from common_service_libs.recommender import Recommender
from common_service_libs.recommender_bundle import RecommenderBundle, difference, load_recommender
from common_service_libs.recommender_lists import (
    MOVIE_FEATURES,
    VIEWER_FEATURE,
    Picked,
    Request,
    parse_history,
)
from common_service_libs.runtime import Runtime
from common_service_libs.telemetry import current_trace

SHOW, HIDE = "show", "hide"
"""What a policy decides of one movie."""
RECOMMEND, NONE = "recommend", "none"
"""What is decided of a request."""
HISTORY_FEATURE = "viewer_rated_movie_ids"


class RecommenderApiConfig(BaseApiConfig):
    """Settings of a service that recommends; `history_contract_file` says how a viewer's history is read."""

    history_contract_file: Path


@dataclass(frozen=True)
class ServedRecommender(ServedModel):
    """A recommender with everything compiled from it; reader and vectors are of the viewer's history."""

    bundle: RecommenderBundle  # type: ignore[assignment]  # it has all that is asked of the model in service


@dataclass(frozen=True, slots=True)
class History:
    """The movies a list is made from, oldest first, and what was found of the stored part.

    `stored` is the value as it was read; `degraded` that it should be there and could not be had.
    """

    movies: list[int]
    stored: str | None
    status: Mapping[str, FeatureStatus]
    event_timestamps: Mapping[str, float | None]
    degraded: bool
    rung: Rung


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What was decided: the list, how many movies of the history the model knows, and why."""

    picked: Picked
    left_out: list[int]
    known: int
    reason_codes: tuple[str, ...]


def serve_recommender(
    folder: Path,
    version: ModelVersion,
    policy: Policy,
    history: FeatureContract,
    project: str,
    metrics: ServiceMetrics,
) -> ServedRecommender:
    """Load, check and compile a bundle; raises ArtifactError if it does not fit service and policy."""
    bundle = load_recommender(
        folder,
        model_name=version.name,
        feature_service=policy.feature_service,
        expected_sha256=version.bundle_sha256,
    )
    _require_policy(policy, bundle)
    return ServedRecommender(
        version=version.version,
        bundle=bundle,
        reader=FeatureReader(history, project),
        vectors=VectorBuilder(history),
        engine=LabelEngine(policy, {}, lambda rule: metrics.rule_errors.at(rule).inc()),
    )


def _require_policy(policy: Policy, bundle: RecommenderBundle) -> None:
    """Raise PolicyError if the policy decides or reads something else than movies of this bundle."""
    require_fit(policy, bundle.contract)
    if policy.decisions != (SHOW, HIDE):
        raise PolicyError(f"policy {policy.name} decides {list(policy.decisions)}, not {[SHOW, HIDE]}")
    readable = {*MOVIE_FEATURES, VIEWER_FEATURE, *bundle.model.parameters.content_features[:-2]}
    if unknown := sorted(set(policy.inputs.features) - readable):
        raise PolicyError(f"policy {policy.name} reads what is not known of every movie: {unknown}")
    if policy.velocity:
        raise PolicyError(f"policy {policy.name} limits velocities, which are of requests, not of movies")


def history_of(case: Case, online: OnlineFeatures | None, model: ServedModel) -> History:
    """Return the stored history and, after it, the one in the request; a movie twice counts once."""
    given: Sequence[int] = case.request.get("history") or ()
    if online is None:  # nobody is asked for
        return History(list(given), None, {}, {}, False, Rung.ONLINE)
    status = dict(online.status)
    stored = model.vectors.build(online, {}).values[0]
    try:
        movies = parse_history(stored if isinstance(stored, str) else None)
    except ValueError:
        movies, stored, status = [], None, dict.fromkeys(status, FeatureStatus.INVALID)
    lost = {FeatureStatus.UNAVAILABLE, FeatureStatus.INVALID, FeatureStatus.STALE}
    return History(
        movies=list(dict.fromkeys([*movies, *given])),
        stored=stored if isinstance(stored, str) else None,
        status=status,
        event_timestamps=online.event_timestamps,
        degraded=online.source is not Source.ONLINE or bool(lost & set(status.values())),
        rung=Rung.DEFAULTS if online.unavailable else Rung(online.source),
    )


def recommend(case: Case, history: History, model: ServedRecommender, lists: EntityLists) -> Recommendation:
    """Rank for a history and let the policy look at each movie, best first, until the list is full."""
    request = Request(model.bundle.model, case.request, case.as_of)
    known = len(model.bundle.model.positions(history.movies))
    engine = model.engine
    viewer = {VIEWER_FEATURE: float(known)}
    names = engine.policy.inputs.lists

    def screen(movie: int, score: float, features: Mapping[str, float]) -> tuple[bool, tuple[str, ...]]:
        verdict = engine.decide(
            score=score,
            features={**features, **viewer},
            request={**case.entity_ids, **case.request_values, "movie_id": movie},
            status={},
            degraded=history.degraded,
            policy_inputs={
                "lists": lists.of({**case.entity_ids, "movie_id": movie}, names, case.requested_at)
            },
        )
        return verdict.decision == SHOW, verdict.rules_fired

    picked = request.pick(history.movies, screen)
    return Recommendation(picked, request.left_out, known, reasons(picked, known, history.degraded))


def reasons(picked: Picked, known: int, degraded: bool) -> tuple[str, ...]:
    """Return the reason codes of a list."""
    if not picked.movies:
        return ("NO_MOVIE_LEFT",)
    return ("VIEWER_HISTORY" if known else "NEW_VIEWER", *(("FEATURES_DEGRADED",) if degraded else ()))


class RecommenderService(DecisionService):
    """Recommends, finds and explains; everything about ids, records and bundles is that of decisions."""

    rolls_out = False
    _model: ServedRecommender | None

    async def _decide(self, case: Case, request_id: str, started: float) -> DecisionRecord:
        model = self._in_service(self._model)
        trace = current_trace()
        if trace is not None:
            trace.skip()
        online = None
        if case.entity_ids:
            online, _ = await self._ladder.read(model.reader, case.entity_ids, case.as_of)
        history = history_of(case, online, model)
        if trace is not None:
            trace.stage("features")
        outcome = recommend(case, history, model, self.lists)
        if trace is not None:
            trace.stage("score and policy")
        latency_ms = (time.perf_counter() - started) * 1000
        record = self._record_of(case, request_id, model, history, outcome, latency_ms)
        await self._log.append(record)
        if trace is not None:
            trace.decided(record)
        self._count_list(model, history, record)
        return record

    def _record_of(
        self,
        case: Case,
        request_id: str,
        model: ServedRecommender,
        history: History,
        outcome: Recommendation,
        latency_ms: float,
    ) -> DecisionRecord:
        movies = outcome.picked.movies
        policy = model.engine.policy
        return DecisionRecord(
            request_id=request_id,
            service=self.name,
            requested_at=rfc3339(case.requested_at),
            entity_ids=dict(case.entity_ids),
            request=dict(case.request),
            features={HISTORY_FEATURE: history.stored},
            feature_status={
                view: {
                    "status": status.value,
                    "event_timestamp": rfc3339(at)
                    if (at := history.event_timestamps[view]) is not None
                    else None,
                }
                for view, status in history.status.items()
            },
            model_name=model.bundle.manifest.model_name,
            model_version=model.version,
            bundle_sha256=model.bundle.sha256,
            policy_version=policy.version,
            policy_sha256=policy.sha256,
            score=movies[0][1] if movies else None,
            decision=RECOMMEND if movies else NONE,
            reason_codes=outcome.reason_codes,
            rules_fired=outcome.picked.rules_fired,
            degraded=history.degraded,
            latency_ms=round(latency_ms, 3),
            rung=history.rung.value,
            result={
                "movies": [{"movie_id": movie, "score": score} for movie, score in movies],
                "hidden": [
                    {"movie_id": one.movie_id, "rules": list(one.rules)} for one in outcome.picked.hidden
                ],
                "left_out": outcome.left_out,
                "viewer_rating_count": outcome.known,
            },
        )

    def _count_list(self, model: ServedRecommender, history: History, record: DecisionRecord) -> None:
        metrics = self._metrics
        metrics.decisions.count(record.decision, str(model.version), str(record.policy_version))
        metrics.rungs.count(record.rung)
        for view, status in history.status.items():
            metrics.feature_status.count(view, status)
        for rule in record.rules_fired:
            metrics.rule_hits.count(rule)

    def _explain(self, record: DecisionRecord, recorded_score: float) -> dict[str, Any]:
        model = self._recommender_of(record)
        recorded = record.result or {}
        as_of = datetime.fromisoformat(record.requested_at).timestamp()
        request = Request(model, record.request, as_of)
        stored = parse_history(record.features[HISTORY_FEATURE])
        history = list(dict.fromkeys([*stored, *(record.request.get("history") or ())]))
        picked = request.pick_again(history, (one["movie_id"] for one in recorded["hidden"]))
        wanted = [(int(one["movie_id"]), float(one["score"])) for one in recorded["movies"]]
        ids = [movie for movie, _ in picked.movies]
        parts = model.explain(history, ids, request.new_movies)
        return {
            "request_id": record.request_id,
            "decision": record.decision,
            "reason_codes": list(record.reason_codes),
            "recorded_score": recorded_score,
            "replayed_score": picked.movies[0][1] if picked.movies else None,
            "reproduced": ids == [movie for movie, _ in wanted]
            and not difference(
                ids, [score for _, score in wanted], ids, [score for _, score in picked.movies]
            ),
            "model": model_of(record),
            "unit": "score",
            "movies": [
                {
                    "movie_id": movie,
                    "score": score,
                    "genres": list(request.genres_of(movie)),
                    "history": part.history,
                    "content": part.content,
                    "popularity": part.popularity,
                    "because_of": [{"movie_id": near, "contribution": added} for near, added in part.because],
                }
                for (movie, score), part in zip(picked.movies, parts, strict=True)
            ],
        }

    def _recommender_of(self, record: DecisionRecord) -> Recommender:
        """Return the model of a list; the one in service, where it is the same, is only read."""
        model = self._model
        if model is not None and model.bundle.sha256 == record.bundle_sha256:
            return model.bundle.model
        folder = self._bundles.obtain_recorded(record.model_name, record.model_version, record.bundle_sha256)
        try:
            return load_recommender(
                folder,
                model_name=record.model_name,
                feature_service=self.policy.feature_service,
                expected_sha256=record.bundle_sha256,
            ).model
        except ArtifactError as error:
            raise BundleUnavailable(f"the bundle of this list cannot be used: {error}") from None


class RecommenderRuntime(Runtime):
    """The parts of a running service that recommends."""

    decides = RecommenderService

    def __init__(self, settings: RecommenderApiConfig, **given: Any) -> None:
        super().__init__(settings, **given)
        self.history = load_history_contract(settings.history_contract_file)

    def serve(self, folder: Path, version: ModelVersion) -> ServedModel:
        """Load, check and compile a bundle; raises ArtifactError if it does not fit service and policy."""
        return serve_recommender(
            folder, version, self.policy, self.history, self.settings.feast_project, self.metrics
        )

    def with_policy(self, model: ServedModel, policy: Policy) -> ServedModel:
        """Return the model under another policy; raises PolicyError if the two do not fit."""
        assert isinstance(model, ServedRecommender)
        _require_policy(policy, model.bundle)
        return super().with_policy(model, policy)


def load_history_contract(path: Path) -> FeatureContract:
    """Return the feature service of viewers' histories; raises ContractError for another kind of service."""
    try:
        contract = parse_contract(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ContractError(f"{path.name} cannot be read: {error}") from None
    keys = [entity.join_key for entity in contract.entities]
    if contract.feature_names != (HISTORY_FEATURE,) or keys != ["viewer_id"]:
        raise ContractError(f"contract {contract.name} is not that of a viewer's {HISTORY_FEATURE}")
    return contract
