"""What lives as long as a service process: built from settings, opened and closed by the lifespan."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common_service_libs import __version__
from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.decision_log import DecisionLog, RecordStore
from common_service_libs.decision_service import DecisionService, ServedModel, serve
from common_service_libs.decision_store import DecisionStore
from common_service_libs.decision_topic import DecisionTopic
from common_service_libs.label_engine.policy import load_policy
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.model_registry import (
    BundleCache,
    LastGood,
    MlflowRegistry,
    ModelVersion,
    ModelWatcher,
    Registry,
)
from common_service_libs.redis_link import RedisLink
from common_service_libs.resilience.hot_snapshot import HotSnapshot, SnapshotFile
from common_service_libs.spool import Spool


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
    ) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics()
        self.policy = load_policy(settings.policy_file)
        self._registry = registry or MlflowRegistry(
            settings.mlflow_tracking_uri,
            deadline=settings.registry_deadline_seconds,
            download_deadline=settings.download_deadline_seconds,
        )
        self._sink = sink
        self._lookup = lookup

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
            lookup=self._lookup or DecisionStore(conninfo, deadline=settings.decision_store_deadline_seconds),
            metrics=self.metrics,
            sync=settings.spool_sync,
            rejected_file=folder / "rejected.jsonl",
            topic=DecisionTopic(settings.kafka_bootstrap_servers, settings.decisions_topic)
            if settings.kafka_bootstrap_servers
            else None,
        )
        await self.log.open()
        self.snapshot = HotSnapshot(settings.hot_snapshot_entities)
        self._snapshot_file = SnapshotFile(self.snapshot, folder / "hot_snapshot.bin")
        self._snapshot_file.open()
        bundles = BundleCache(settings.spool_dir / "bundles", self._registry)
        self.decisions = self.decides(
            settings.service_name,
            self.policy,
            link=self.link,
            log=self.log,
            bundles=bundles,
            metrics=self.metrics,
            snapshot=self.snapshot,
        )
        self.watcher = ModelWatcher(
            self._registry,
            bundles,
            LastGood(folder / "last_good.json"),
            name=settings.model_name,
            alias=settings.model_alias,
            poll_seconds=settings.model_poll_seconds,
            install=self._install,
            on_outcome=lambda outcome: self.metrics.swaps.at(outcome).inc(),
        )
        self.watcher.restore()
        await self.link.open()
        self.watcher.start()

    def _install(self, folder: Path, version: ModelVersion) -> None:
        self.decisions.swap(self.serve(folder, version))

    def serve(self, folder: Path, version: ModelVersion) -> ServedModel:
        """Load, check and compile a bundle; raises ArtifactError if it does not fit service and policy."""
        return serve(folder, version, self.policy, self.settings.feast_project, self.metrics)

    async def close(self) -> None:
        """Stop watching, drain the log, give up connections and spool."""
        await asyncio.to_thread(self.watcher.stop)
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
        }

    @property
    def version(self) -> str:
        """The version of the service."""
        return __version__
