"""What lives as long as a service process: built from settings, opened and closed by the lifespan."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from pathlib import Path

import psycopg

from common_service_libs import __version__
from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.decision_log import DecisionLog, RecordStore
from common_service_libs.decision_service import DecisionService, ServedModel, serve, with_policy
from common_service_libs.decision_store import DecisionStore
from common_service_libs.decision_topic import DecisionTopic
from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.lists import EntityLists
from common_service_libs.label_engine.policy import Policy
from common_service_libs.label_engine.policy_archive import policies_of
from common_service_libs.label_engine.policy_desk import PolicyDesk
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.model_registry import (
    AliasWatch,
    BundleCache,
    LastGood,
    MlflowRegistry,
    ModelVersion,
    ModelWatcher,
    Registry,
)
from common_service_libs.redis_link import FIRST_PROBE_SECONDS, RedisLink
from common_service_libs.resilience.admission import Admission
from common_service_libs.resilience.breaker import PROBE_SECONDS, STATE_CODES, CircuitBreaker
from common_service_libs.resilience.guarded_store import GuardedStore
from common_service_libs.resilience.hot_snapshot import HotSnapshot, SnapshotFile
from common_service_libs.resilience.server import Drain
from common_service_libs.rollout.notes import FOLDER, Notes
from common_service_libs.rollout.rollout import CANARY, SHADOW, Rollout
from common_service_libs.rollout.shadow import Shadow, ShadowRows
from common_service_libs.rollout.shadow_store import ShadowStore
from common_service_libs.rollout.trial import BundleTrial
from common_service_libs.rollout.verdict import Limits
from common_service_libs.spool import Spool

LOOKUP_FAILURES = 3

logger = logging.getLogger(__name__)


class Runtime:
    """The parts of a running service.

    `registry`, `sink` and `lookup` may be given in place of MLflow and PostgreSQL. A service whose model is
    of another kind names its own `decides` and `serve`.
    """

    decides: type[DecisionService] = DecisionService

    def __init__(
        self,
        settings: BaseApiConfig,
        *,
        registry: Registry | None = None,
        sink: RecordStore | None = None,
        lookup: RecordStore | None = None,
        shadow_rows: ShadowRows | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics()
        self._desk = PolicyDesk(
            settings.policy_file,
            settings.lists_file,
            folder=settings.spool_dir / settings.service_name,
            conninfo=None if sink else settings.decisions_conninfo(),
            poll_seconds=settings.policy_poll_seconds,
            metrics=self.metrics,
        )
        self.policy = self._desk.policy
        self._installing = threading.RLock()  # bundles and policies come from threads of their own
        self._registry = registry or MlflowRegistry(
            settings.mlflow_tracking_uri,
            deadline=settings.registry_deadline_seconds,
            download_deadline=settings.download_deadline_seconds,
            max_bytes=settings.bundle_max_bytes,
        )
        self.drain = Drain()
        self.admission = Admission(
            concurrent=settings.max_concurrent_requests,
            queued=settings.max_queued_requests,
            deadline=settings.request_deadline_seconds,
            on_refusal=lambda why: self.metrics.shed.at(why).inc(),
        )
        self.metrics.requests_running.set_function(lambda: self.admission.running)
        self.metrics.requests_waiting.set_function(lambda: self.admission.waiting)
        self._sink = sink
        self._lookup = lookup
        self._shadow_rows = shadow_rows
        self.rollout: Rollout | None = None
        self._trial = (
            BundleTrial(self.policy.feature_service, deadline=settings.bundle_trial_seconds)
            if settings.bundle_trial_seconds
            else None
        )

    async def open(self) -> None:
        """Claim the spool, connect, restore the last bundle and begin to watch; no server has to be up."""
        settings, conninfo = self.settings, self.settings.decisions_conninfo()
        folder = settings.spool_dir / settings.service_name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.link = RedisLink(
            settings.redis_host,
            settings.redis_port,
            settings.redis_password.get_secret_value() if settings.redis_password else None,
            deadline=settings.online_store_deadline_seconds,
            connect_deadline=settings.online_store_connect_seconds,
            on_state=self.metrics.online_store_up.set,
            breaker=self._breaker("online_store", first_probe_seconds=FIRST_PROBE_SECONDS),
        )
        self.log = DecisionLog(
            settings.service_name,
            Spool(folder / "decisions", max_bytes=settings.spool_max_bytes),
            sink=self._sink
            or DecisionStore(
                conninfo,
                deadline=settings.flush_deadline_seconds,
                keep_days=settings.decisions_retention_days,
            ),
            lookup=GuardedStore(
                self._lookup or DecisionStore(conninfo, deadline=settings.decision_store_deadline_seconds),
                self._breaker("decision_store", failures=LOOKUP_FAILURES),
            ),
            metrics=self.metrics,
            sync=settings.spool_sync,
            rejected_file=folder / "rejected.jsonl",
            topic=DecisionTopic(settings.kafka_bootstrap_servers, settings.decisions_topic)
            if settings.kafka_bootstrap_servers
            else None,
        )
        self.log.neighbours = settings.service_workers > 1
        await self.log.open()
        self.snapshot = HotSnapshot(settings.hot_snapshot_entities)
        self.metrics.snapshot_entities.set_function(lambda: len(self.snapshot))
        self._snapshot_file = SnapshotFile(self.snapshot, folder / "hot_snapshot.bin")
        self._snapshot_file.open()
        bundles = BundleCache(
            settings.spool_dir / "bundles", self._registry, max_bytes=settings.bundle_max_bytes
        )
        self.decisions = self.decides(
            settings.service_name,
            self.policy,
            link=self.link,
            log=self.log,
            bundles=bundles,
            metrics=self.metrics,
            snapshot=self.snapshot,
        )
        self.decisions.recorded_policy = self._recorded_policy
        self.watcher = ModelWatcher(
            self._registry,
            bundles,
            LastGood(folder / "last_good.json"),
            name=settings.model_name,
            alias=settings.model_alias,
            poll_seconds=settings.model_poll_seconds,
            install=self._install,
            on_outcome=self._on_outcome,
            trial=self._trial.run if self._trial else None,
            others=self._roll_out(folder, bundles, conninfo),
        )
        self.watcher.restore()
        self._desk.open(adopt=self._adopt, offer_lists=self._offer_lists)
        await self.link.open()
        self.watcher.start()
        if self.rollout is not None:
            self.rollout.open()

    def _breaker(
        self, dependency: str, *, failures: int = 1, first_probe_seconds: float = PROBE_SECONDS
    ) -> CircuitBreaker:
        gauge = self.metrics.breaker.labels(dependency)
        return CircuitBreaker(
            failures=failures,
            first_probe_seconds=first_probe_seconds,
            on_state=lambda state: gauge.set(STATE_CODES[state]),
        )

    def _recorded_policy(self, sha256: str) -> Policy | None:
        """Return a policy that was in service once, None if it cannot be had now."""
        settings = self.settings
        conninfo = None if self._sink else settings.decisions_conninfo()
        folders = [settings.spool_dir / settings.service_name / "policies"]
        try:
            return policies_of([sha256], conninfo=conninfo, folders=folders, files=[]).get(sha256)
        except (PolicyError, psycopg.Error, OSError) as error:
            logger.warning("a recorded policy cannot be read", extra={"reason": str(error)})
            return None

    def _install(self, folder: Path, version: ModelVersion) -> None:
        with self._installing:
            self.decisions.swap(self.serve(folder, version))
            if self.rollout is not None:
                self.rollout.renew()

    def _adopt(self, policy: Policy) -> None:
        """Put a policy in service with every bundle there; raises PolicyError, and then nothing changed."""
        with self._installing:
            model = self.decisions.model
            champion = None if model is None else self.with_policy(model, policy)
            if self.rollout is not None:
                for compiled in (self._check_fit, self.with_policy):
                    self.rollout.recompile(partial(compiled, policy=policy))
            self.policy = self.decisions.policy = policy
            if champion is not None:
                self.decisions.swap(champion)

    def _check_fit(self, model: ServedModel, policy: Policy) -> ServedModel:
        self.with_policy(model, policy)
        return model

    def with_policy(self, model: ServedModel, policy: Policy) -> ServedModel:
        """Return the model under another policy; raises PolicyError if the two do not fit."""
        return with_policy(model, policy, self.settings.feast_project, self.metrics)

    def _offer_lists(self, lists: EntityLists) -> None:
        self.decisions.lists = lists

    def _on_outcome(self, outcome: str) -> None:
        self.metrics.swaps.at(outcome).inc()

    def _roll_out(self, folder: Path, bundles: BundleCache, conninfo: str) -> list[AliasWatch]:
        """Prepare canary and shadow, and return the watches of their aliases."""
        if not self.decisions.rolls_out:
            return []
        settings = self.settings
        self.rollout = rollout = Rollout(
            self.decisions,
            Shadow(
                settings.service_name,
                link=self.link,
                store=self._shadow_rows or ShadowStore(conninfo, deadline=settings.flush_deadline_seconds),
                metrics=self.metrics,
                retention_days=settings.decisions_retention_days,
            ),
            Notes(folder / FOLDER),
            self.metrics,
            default_share=settings.canary_share,
            window_seconds=settings.rollout_window_seconds,
            check_seconds=settings.rollout_check_seconds,
            limits=Limits(minimum=settings.rollout_minimum_requests),
        )

        def install_canary(bundle: Path, version: ModelVersion) -> None:
            with self._installing:
                rollout.install_canary(bundle, self.serve(bundle, version))

        def install_shadow(bundle: Path, version: ModelVersion) -> None:
            with self._installing:
                rollout.install_shadow(self.serve(bundle, version))

        followed = (
            (settings.canary_alias, CANARY, install_canary, rollout.seen_canary),
            (settings.shadow_alias, SHADOW, install_shadow, rollout.seen_shadow),
        )
        return [
            AliasWatch(
                self._registry,
                bundles,
                LastGood(folder / FOLDER / f"last_{role}.json"),
                name=settings.model_name,
                alias=alias,
                install=install,
                on_outcome=self._on_outcome,
                trial=self._trial.run if self._trial else None,
                seen=seen,
            )
            for alias, role, install, seen in followed
            if alias
        ]

    def serve(self, folder: Path, version: ModelVersion) -> ServedModel:
        """Load, check and compile a bundle; raises ArtifactError if it does not fit service and policy."""
        return serve(folder, version, self.policy, self.settings.feast_project, self.metrics)

    async def close(self) -> None:
        """Stop watching, drain the log, give up connections and spool."""
        if self._trial is not None:
            self._trial.give_up()
        await asyncio.to_thread(self.watcher.stop)
        await asyncio.to_thread(self._desk.close)
        if self._trial is not None:
            self._trial.close()
        if self.rollout is not None:
            await self.rollout.close()
        self.decisions.close()
        await self.link.close()
        await self._snapshot_file.close()
        await self.log.close(self.settings.shutdown_seconds)

    async def checks(self) -> dict[str, bool]:
        """Return what readiness depends on, asked now."""
        return {
            "model": self.decisions.model is not None,
            "online_store": await self.link.ping(),
            "decision_log": not self.log.full,
            "accepting": not self.drain.begun,
        }

    @property
    def version(self) -> str:
        """The version of the service."""
        return __version__
