"""The shadow: a challenger decides live traffic again, after the reply and for nobody but the record.

It works in the service's event loop, one case a turn of the loop, from a queue that drops what it cannot
hold: a thread would take the interpreter's lock for longer than that. Nothing here can fail a reply.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import msgspec

from common_service_libs.background import forever
from common_service_libs.decision_record import DecisionRecord
from common_service_libs.decision_service import Case, ServedModel, judge
from common_service_libs.errors import DecisionStoreUnavailable, ServiceError
from common_service_libs.feature_contract import FeatureContract
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.online_store import OnlineFeatures
from common_service_libs.redis_link import RedisLink
from common_service_libs.rollout.shadow_store import ShadowDecision
from common_service_libs.rollout.window import Agreement

logger = logging.getLogger(__name__)

QUEUED_CASES = 1000
UNWRITTEN_ROWS = 5000
BATCH_ROWS = 500
WRITE_SECONDS = 0.5
FORGET_SECONDS = 3600.0


class ShadowRows(Protocol):
    """Where shadow decisions end up; see ShadowStore."""

    async def insert(self, rows: list[ShadowDecision]) -> int:
        """Insert what is new and return its number."""

    async def forget(self, service: str, days: int) -> int:
        """Remove what is older than `days`."""

    async def close(self) -> None:
        """Give the connection up."""


def readable_with(wanted: FeatureContract, read: FeatureContract) -> bool:
    """Return whether all that `wanted` reads from the online store is in what was read for `read`."""
    there = {view.name: view for view in read.views}
    keys = {entity.name: entity.join_key for entity in read.entities}
    return all(
        (view := there.get(needed.name)) is not None
        and view.ttl_seconds == needed.ttl_seconds
        and set(needed.fields) <= set(view.fields)
        for needed in wanted.views
    ) and all(keys.get(entity.name) == entity.join_key for entity in wanted.entities)


def as_read_for(wanted: FeatureContract, read: FeatureContract, online: OnlineFeatures) -> OnlineFeatures:
    """Return what was read for one contract as another, that is readable with it, would have read it."""
    if wanted.views == read.views and wanted.entities == read.entities:
        return online
    return msgspec.structs.replace(online, partial=dict(online.values), complete=None, names=())


class _Offer(msgspec.Struct):
    case: Case
    online: OnlineFeatures
    record: DecisionRecord
    read_for: FeatureContract | None


class Shadow:
    """Scores offers with the challenger and writes what it would have decided, in batches."""

    def __init__(
        self,
        service: str,
        *,
        link: RedisLink,
        store: ShadowRows,
        metrics: ServiceMetrics,
        retention_days: int = 0,
    ) -> None:
        self._service = service
        self._link = link
        self._store = store
        self._outcomes = metrics.shadow
        self._counts: Callable[[], Agreement] = Agreement
        self._retention_days = retention_days
        self._queue: deque[_Offer] = deque()
        self._rows: deque[ShadowDecision] = deque()
        self._offered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.model: ServedModel | None = None

    def open(self, counts: Callable[[], Agreement]) -> None:
        """Begin to work, in the running loop; `counts` gives what the agreement is counted in now."""
        self._counts = counts
        self._tasks = [asyncio.create_task(forever(work)) for work in (self._score_all, self._write_all)]

    async def close(self) -> None:
        """Stop; what was scored and can be written at once is written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._rows:
            await self._write()
        await self._store.close()

    def offer(
        self, case: Case, online: OnlineFeatures, record: DecisionRecord, read_for: ServedModel | None
    ) -> None:
        """Take a decided case, or drop it; `read_for` is the model that `online` was read for, if known."""
        if len(self._queue) >= QUEUED_CASES:
            self._counts().dropped += 1
            self._outcomes.at("dropped").inc()
            return
        self._queue.append(_Offer(case, online, record, read_for.bundle.contract if read_for else None))
        self._offered.set()

    async def _score_all(self) -> None:
        while True:
            await self._offered.wait()
            self._offered.clear()
            while self._queue:
                offer = self._queue.popleft()
                try:
                    await self._score(offer)
                except ServiceError:  # such as features that the challenger cannot do without
                    self._counts().failed += 1
                    self._outcomes.at("failed").inc()
                except Exception:
                    self._counts().failed += 1
                    self._outcomes.at("failed").inc()
                    logger.exception("the shadow cannot score")
                await asyncio.sleep(0)  # replies first

    async def _score(self, offer: _Offer) -> None:
        model = self.model
        if model is None:
            return
        case, record, contract = offer.case, offer.record, model.bundle.contract
        if offer.read_for is not None and readable_with(contract, offer.read_for):
            online = as_read_for(contract, offer.read_for, offer.online)
        else:
            online = await model.reader.read(self._link, case.entity_ids, case.as_of)
        if online.unavailable or record.score is None:
            self._outcomes.at("skipped").inc()
            return
        outcome = judge(case, online, model, record.policy_inputs)
        if outcome.score is None:
            self._outcomes.at("skipped").inc()
            return
        counts = self._counts()
        counts.scored += 1
        counts.agreed += outcome.verdict.decision == record.decision
        counts.difference += abs(outcome.score - record.score)
        self._outcomes.at("scored").inc()
        self._keep(model, record.request_id, outcome.score, outcome.verdict.decision)

    def _keep(self, model: ServedModel, request_id: str, score: float, decision: str) -> None:
        if len(self._rows) >= UNWRITTEN_ROWS:
            self._rows.popleft()
            self._outcomes.at("lost").inc()
        self._rows.append(
            ShadowDecision(
                request_id=request_id,
                bundle_sha256=model.bundle.sha256,
                service=self._service,
                model_name=model.bundle.manifest.model_name,
                model_version=model.version,
                score=score,
                decision=decision,
                created_at=time.time(),
            )
        )

    async def _write_all(self) -> None:
        forget_at = 0.0
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            while self._rows and await self._write():
                await asyncio.sleep(0)
            if self._retention_days and self.model is not None and time.monotonic() >= forget_at:
                forget_at = time.monotonic() + FORGET_SECONDS
                try:
                    await self._store.forget(self._service, self._retention_days)
                except DecisionStoreUnavailable as error:
                    logger.warning("old shadow decisions stay", extra={"reason": str(error.__cause__)})

    async def _write(self) -> bool:
        """Write one batch, and return whether that worked."""
        batch = list(islice(self._rows, BATCH_ROWS))
        try:
            await self._store.insert(batch)
        except DecisionStoreUnavailable as error:
            logger.warning("shadow decisions wait", extra={"reason": str(error.__cause__ or error)})
            self._outcomes.at("write_failed").inc()
            return False
        for row in batch:
            if self._rows and self._rows[0] is row:  # others gave way to newer ones meanwhile
                self._rows.popleft()
        self._outcomes.at("written").inc(len(batch))
        return True
