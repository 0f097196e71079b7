"""A rollout as a service sees it: who takes part, who is given what, and when the canary is stopped.

Bundles come and go in the watcher's thread, each by the swap of one reference; decisions are made in the
event loop. While there is neither a canary nor a shadow, the decision service holds no rollout at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from common_service_libs.background import forever
from common_service_libs.decision_record import DecisionRecord, rfc3339
from common_service_libs.decision_service import CHAMPION, Case, DecisionService, Judged, ServedModel
from common_service_libs.errors import ModelUnavailable, RequestError
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.model_registry import ModelVersion
from common_service_libs.online_store import OnlineFeatures
from common_service_libs.rollout.choice import position, salt_of, share_in
from common_service_libs.rollout.notes import Notes, Part, Reference
from common_service_libs.rollout.shadow import Shadow
from common_service_libs.rollout.verdict import DEFAULT_LIMITS, Limits, Report, Verdict, judge_canary
from common_service_libs.rollout.window import DEFAULT_EDGES, Agreement, Window, score_bins, summary

logger = logging.getLogger(__name__)

CANARY = "canary"
SHADOW = "shadow"
SHARE_TAG = "canary_share"


@dataclass(frozen=True)
class Canary:
    """A canary in service: `key` is the join key of the entity by which it is chosen."""

    model: ServedModel
    salt: bytes
    key: str
    reference: tuple[int, ...] | None
    edges: tuple[float, ...]


class Rollout:
    """Chooses the model of a case, watches what comes of it, and stops a canary that does harm."""

    def __init__(
        self,
        decisions: DecisionService,
        shadow: Shadow,
        notes: Notes,
        metrics: ServiceMetrics,
        *,
        default_share: float,
        window_seconds: float,
        check_seconds: float,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._decisions = decisions
        self._notes = notes
        self._metrics = metrics
        self._default_share = default_share
        self._window_seconds = window_seconds
        self._check_seconds = check_seconds
        self._limits = limits
        self._window = Window(window_seconds)
        self._taking_part: tuple[str | None, ...] = ()
        self._canary: Canary | None = None
        self._share = 0.0
        self._aborted = False
        self.report: Report | None = None
        self.shadow = shadow
        self._watch: asyncio.Task[None] | None = None

    # --- who takes part (called from the watcher's thread) ------------------------------------------

    def install_canary(self, folder: Path, model: ServedModel) -> None:
        """Put a canary beside the champion; it gets its share once `seen_canary` tells it."""
        bins = score_bins(_reference_of(folder))
        self._canary = Canary(
            model=model,
            salt=salt_of(model.bundle.sha256),
            key=model.bundle.contract.entities[0].join_key,
            reference=None if bins is None else bins[1],
            edges=DEFAULT_EDGES if bins is None else bins[0],
        )
        self.renew()

    def seen_canary(self, version: ModelVersion | None) -> None:
        """Take share and end of the canary from what its alias names now."""
        canary = self._canary
        if version is None:
            if canary is not None:
                logger.info("the canary's alias is gone: all get the champion")
                self._canary = None
                self.renew()
            return
        aborted = self._notes.aborted()
        if aborted is not None and aborted.version != version.version:
            self._notes.clear_abort()
            aborted = None
        if canary is None or canary.model.version != version.version:
            return  # it was refused: what was a canary before keeps its share
        share, stopped = self._share_of(version), aborted is not None
        if (share, stopped) != (self._share, self._aborted):
            logger.info(
                "share of the canary", extra={"share": share, "stopped": stopped, "version": version.version}
            )
            self._share, self._aborted = share, stopped
            self._tell()

    def _share_of(self, version: ModelVersion) -> float:
        text = version.tags.get(SHARE_TAG)
        if text is None:
            return self._default_share
        try:
            return share_in(text)
        except ValueError:
            logger.warning("the canary's share is no number from 0 to 1", extra={"tag": text[:40]})
            return self._share

    def install_shadow(self, model: ServedModel) -> None:
        """Let another challenger decide live traffic for the record."""
        self.shadow.model = model
        self.renew()

    def seen_shadow(self, version: ModelVersion | None) -> None:
        """End the shadow where its alias is gone."""
        if version is None and self.shadow.model is not None:
            self.shadow.model = None
            self.renew()

    def renew(self) -> None:
        """Begin a new window if anyone else takes part now, and tell the decision service."""
        taking_part = self._bundles()
        if taking_part != self._taking_part:
            self._taking_part = taking_part
            canary = self._canary
            self._window = Window(self._window_seconds, DEFAULT_EDGES if canary is None else canary.edges)
            self.report = None
            self._aborted = canary is not None and self._is_stopped(canary)
            if canary is None:
                self._share = 0.0
        self._decisions.rollout = self if self.active else None
        self._tell()

    def recompile(self, compiled: Callable[[ServedModel], ServedModel]) -> None:
        """Replace canary and shadow by what `compiled` makes of them, such as the same with a new policy.

        Raises what `compiled` raises, and then nothing changed.
        """
        canary, shadow = self._canary, self.shadow.model
        new_canary = None if canary is None else replace(canary, model=compiled(canary.model))
        new_shadow = None if shadow is None else compiled(shadow)
        self._canary, self.shadow.model = new_canary, new_shadow

    def _is_stopped(self, canary: Canary) -> bool:
        aborted = self._notes.aborted()
        return aborted is not None and aborted.version == canary.model.version

    def _bundles(self) -> tuple[str | None, ...]:
        models = (self._decisions.model, self._canary_model, self.shadow.model)
        return tuple(None if model is None else model.bundle.sha256 for model in models)

    def _tell(self) -> None:
        self._metrics.rollout_share.set(self.share)
        self._metrics.rollout_aborted.set(self._aborted)
        self._metrics.rollout.clear()
        for role, model in ((CANARY, self._canary_model), (SHADOW, self.shadow.model)):
            if model is not None:
                self._metrics.rollout.labels(role, str(model.version), model.bundle.sha256).set(1)

    @property
    def _canary_model(self) -> ServedModel | None:
        canary = self._canary
        return None if canary is None else canary.model

    @property
    def active(self) -> bool:
        """Whether there is a canary or a shadow."""
        return self._canary is not None or self.shadow.model is not None

    @property
    def share(self) -> float:
        """The share that the canary gets now."""
        return 0.0 if self._canary is None or self._aborted else self._share

    # --- decisions (called from the event loop) -----------------------------------------------------

    def choose(self, entity_ids: Mapping[str, int | str]) -> tuple[ServedModel, str]:
        """Return model and variant of a case: the same for an entity while share and canary stay."""
        champion, canary = self._decisions.model, self._canary
        if champion is None:
            raise ModelUnavailable("no release bundle is loaded yet")
        if canary is None or self._aborted or not self._share:
            return champion, CHAMPION
        if canary.model.bundle.sha256 == champion.bundle.sha256:  # it was promoted
            return champion, CHAMPION
        if position(canary.salt, entity_ids[canary.key]) < self._share:
            return canary.model, CANARY
        return champion, CHAMPION

    async def decided(
        self, case: Case, judged: Callable[[Case, ServedModel], Awaitable[Judged]]
    ) -> tuple[ServedModel, str, Judged]:
        """Return model and variant of a case, and what `judged` said with that model.

        A canary that fails where the champion does not costs nobody a decision: the champion gives it.
        """
        model, variant = self.choose(case.entity_ids)
        try:
            return model, variant, await judged(case, model)
        except Exception as error:
            champion = self._decisions.model
            if variant == CHAMPION or champion is None:
                if not isinstance(error, RequestError):
                    self._failed(variant)
                raise
            instead = await self._champion_instead(case, champion, judged)
            logger.warning(
                "the canary failed, the champion decided",
                extra={"version": model.version, "reason": f"{type(error).__name__}: {error}"[:300]},
            )
            return champion, CHAMPION, instead

    async def _champion_instead(
        self, case: Case, champion: ServedModel, judged: Callable[[Case, ServedModel], Awaitable[Judged]]
    ) -> Judged:
        try:
            instead = await judged(case, champion)
        except RequestError:
            raise  # it is the request's own fault
        except Exception:
            self._failed(CANARY)
            raise
        self._failed(CANARY)
        return instead

    def _failed(self, variant: str) -> None:
        self._window.failed(variant, time.time())
        self._metrics.rollout_errors.at(variant).inc()

    def after(self, case: Case, online: OnlineFeatures, record: DecisionRecord) -> None:
        """Count a decision, and offer it to the shadow."""
        if record.bundle_sha256 not in self._taking_part:
            return  # made by a model that was swapped meanwhile
        self._metrics.rollout_decisions.at(record.variant).inc()
        self._window.decided(
            record.variant,
            time.time(),
            decision=record.decision,
            score=record.score,
            latency_ms=record.latency_ms,
            degraded=record.degraded,
            incomplete=online.complete is None,
        )
        if (shadow := self.shadow.model) is not None and shadow.bundle.sha256 != record.bundle_sha256:
            self.shadow.offer(case, online, record, self._model_of(record))

    def _model_of(self, record: DecisionRecord) -> ServedModel | None:
        for model in (self._decisions.model, self._canary_model):
            if model is not None and model.bundle.sha256 == record.bundle_sha256:
                return model
        return None

    def _agreement(self) -> Agreement:
        return self._window.at(time.time()).shadow

    # --- the verdict --------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to work, in the running loop."""
        self.shadow.open(self._agreement)
        self._watch = asyncio.create_task(forever(self._look))

    async def _look(self) -> None:
        """Judge the canary from time to time, and stop it where it does harm."""
        while True:
            await asyncio.sleep(self._check_seconds)
            if self.active:
                await self.check()

    async def check(self) -> Report | None:
        """Come to a verdict on what all processes of the service saw, and carry it out if it is `abort`."""
        part = self.part()
        encoded = msgspec.json.encode(part)
        report = await asyncio.to_thread(self._exchange, encoded, part)
        if part.bundles != self._taking_part:
            return None  # someone else takes part by now
        self.report = report
        if report is None:
            return None
        self._metrics.rollout_verdicts.at(report.verdict.value).inc()
        if report.verdict is Verdict.ABORT and not self._aborted:
            await self._stop(report)
        return report

    async def _stop(self, report: Report) -> None:
        canary = self._canary
        if canary is None:
            return
        self._aborted = True
        self._metrics.rollout_aborts.inc()
        self._tell()
        version, sha256 = canary.model.version, canary.model.bundle.sha256
        logger.error("the canary is stopped", extra={"version": version, "reason": report.reason})
        try:
            await asyncio.to_thread(self._notes.abort, version, sha256, report.reason)
        except OSError as error:  # this process gives it nothing more; others come to their own verdict
            logger.error("the stop of the canary cannot be noted", extra={"reason": str(error)})

    def _exchange(self, encoded: bytes, part: Part) -> Report | None:
        """Write this process's part and return the verdict on all parts of the same rollout."""
        try:
            self._notes.write(encoded)
            parts = [
                one
                for one in self._notes.read(part.updated_at - self._window_seconds)
                if one.bundles == part.bundles
            ]
        except OSError as error:
            logger.warning("the windows cannot be exchanged", extra={"reason": str(error)})
            parts = [msgspec.json.decode(encoded, type=Part)]
        return verdict_on(parts, part.updated_at - self._window_seconds)

    def part(self) -> Part:
        """Return what this process would write down now."""
        canary = self._canary
        return Part(
            service=self._decisions.name,
            updated_at=time.time(),
            champion=_reference(self._decisions.model),
            canary=_reference(None if canary is None else canary.model),
            shadow=_reference(self.shadow.model),
            share=self.share,
            aborted=self._aborted,
            slices=self._window.slices,
            reference=None if canary is None else canary.reference,
            mildest=self._decisions.policy.decisions[0],
            limits=self._limits,
        )

    def document(self) -> dict[str, Any]:
        """Return what `GET /model` says of the rollout."""
        canary, shadow = self._canary, self.shadow.model
        aborted = self._notes.aborted() if self._aborted else None
        return {
            "canary": None
            if canary is None
            else {
                **msgspec.to_builtins(_reference(canary.model)),
                "share": self.share,
                "state": "aborted" if self._aborted else "serving" if self._share else "waiting",
                "reason": None if aborted is None else aborted.reason,
                "loaded_at": rfc3339(canary.model.loaded_at),
            },
            "shadow": None
            if shadow is None
            else {
                **msgspec.to_builtins(_reference(shadow)),
                "loaded_at": rfc3339(shadow.loaded_at),
            },
            "verdict": None if self.report is None else msgspec.to_builtins(self.report),
        }

    async def close(self) -> None:
        """End the work; what this process saw stays for the others, and for its successor."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.shadow.close()
        if self.active:
            encoded = msgspec.json.encode(self.part())
            try:
                await asyncio.to_thread(self._notes.write, encoded)
            except OSError as error:
                logger.warning("the last window cannot be kept", extra={"reason": str(error)})


def verdict_on(parts: list[Part], since: float) -> Report | None:
    """Return the verdict on the windows of one rollout, None without a canary."""
    if not parts or parts[0].canary is None:
        return None
    first = parts[0]
    return judge_canary(
        summary((piece for part in parts for piece in part.slices), since),
        reference=first.reference,
        mildest=first.mildest,
        shadow_is_canary=first.shadow == first.canary,
        limits=first.limits,
    )


def _reference(model: ServedModel | None) -> Reference | None:
    return None if model is None else Reference(model.version, model.bundle.sha256)


def _reference_of(folder: Path) -> Mapping[str, Any]:
    """Return the reference statistics of a bundle that was verified; none where it has none."""
    try:
        document = json.loads((folder / "reference.json").read_bytes())
    except FileNotFoundError:
        return {}
    return document if isinstance(document, dict) else {}
