"""`POST /predict/batch`: many cases in one request, each decided and recorded as if it came alone.

Every case takes the way of `/predict`: the same model, policy, ladder, rollout and record. What is shared is
the waiting: one pipelined read for all cases and one sync for all records. A case that cannot be decided has
a problem in its place and leaves the others alone.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from common_service_libs.auth_utils import HEADER
from common_service_libs.decision_log import DecisionLog
from common_service_libs.decision_record import DecisionRecord, asks_the_same
from common_service_libs.decision_service import Case, DecisionService
from common_service_libs.error_handlers import PROBLEMS, TYPE_PREFIX, Problem
from common_service_libs.errors import (
    FieldError,
    InvalidRequest,
    MalformedRequest,
    OnlineStoreError,
    RequestIdReused,
    ServiceError,
)
from common_service_libs.monitoring_middleware import REQUEST_ID
from common_service_libs.redis_link import RedisLink
from common_service_libs.request_body import parse_body, read_body
from common_service_libs.resilience.ladder import FeatureLadder
from common_service_libs.runtime import Runtime
from common_service_libs.schemas import Reply
from common_service_libs.security.body_guard import guard_body
from common_service_libs.service_app import add_decision_route
from common_service_libs.telemetry import current_trace

M = TypeVar("M", bound=BaseModel)
AT_A_TIME = 50
"""How many cases are scored before other requests have a turn."""
LOOK_UPS = 8
"""How many ids that the client chose are looked up at a time."""
ENVELOPE_LEVELS = 2


class Outline(msgspec.Struct, forbid_unknown_fields=True):
    """The body; cases are parsed one by one, exactly as `/predict` does."""

    cases: list[msgspec.Raw]
    case_ids: list[str] | None = None


class BatchResult(Reply):
    """What became of one case: a decision, or the problem that `/predict` would have answered with."""

    status: int = Field(examples=[200], description="the status that `/predict` would have given")
    decision: dict[str, Any] | None = Field(default=None, description="the reply of `/predict`")
    problem: Problem | None = None


class BatchReply(Reply):
    """What became of each case, in the order of the request."""

    request_id: str
    decided: int = Field(ge=0)
    failed: int = Field(ge=0)
    results: list[BatchResult]


class Rendezvous:
    """Those who are expected wait for each other, and go on together."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._arrived = 0
        self._all = asyncio.Event()

    async def meet(self) -> None:
        """Wait until everybody has come or left."""
        self._arrived += 1
        self._check()
        await self._all.wait()

    def leave(self) -> None:
        """Be expected no longer."""
        self._expected -= 1
        self._check()

    def _check(self) -> None:
        if self._arrived >= self._expected:
            self._all.set()


class GatheredLink:
    """What many ask of the online store at one moment goes out as one call."""

    def __init__(self, link: RedisLink, deadline: float) -> None:
        self._link = link
        self._deadline = deadline
        self._waiting: list[tuple[bytes, int, asyncio.Future[list[Any]]]] = []

    def call(
        self, payload: bytes, expected: int, *, deadline: float | None = None
    ) -> asyncio.Future[list[Any]]:
        """Return the future of the replies to these commands; `deadline` gives way to that of the batch."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        future: asyncio.Future[list[Any]] = loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may be gone
        self._waiting.append((payload, expected, future))
        return future

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            replies = self._link.call(
                b"".join([payload for payload, _, _ in waiting]),
                sum(expected for _, expected, _ in waiting),
                deadline=self._deadline,
            )
        except OnlineStoreError as error:
            _fail(waiting, error)
            return
        replies.add_done_callback(lambda done: self._hand_out(waiting, done))

    def _hand_out(
        self, waiting: list[tuple[bytes, int, asyncio.Future[list[Any]]]], done: asyncio.Future[list[Any]]
    ) -> None:
        if done.cancelled() or (error := done.exception()) is not None:
            _fail(waiting, OnlineStoreError("not answered") if done.cancelled() else error)
            return
        self._next(waiting, done.result(), 0)

    def _next(
        self, waiting: list[tuple[bytes, int, asyncio.Future[list[Any]]]], replies: list[Any], at: int
    ) -> None:
        for _, expected, future in waiting[:AT_A_TIME]:
            if not future.done():
                future.set_result(replies[at : at + expected])
            at += expected
        if len(waiting) > AT_A_TIME:
            asyncio.get_running_loop().call_soon(self._next, waiting[AT_A_TIME:], replies, at)


def _fail(waiting: list[tuple[bytes, int, asyncio.Future[list[Any]]]], error: BaseException | None) -> None:
    for _, _, future in waiting:
        if not future.done():
            future.set_exception(OnlineStoreError(str(error)))


class GatheredLog:
    """The decision log for one batch: records are appended together, so that one sync is enough."""

    def __init__(self, log: DecisionLog, together: Rendezvous) -> None:
        self._log = log
        self._together = together
        self.appending: set[str] = set()

    @property
    def full(self) -> bool:
        """Whether the next record would be refused."""
        return self._log.full

    async def append(self, record: DecisionRecord, *, alone: bool = False) -> None:
        """Make the record durable, with those of the other cases."""
        self.appending.add(record.request_id)
        await self._together.meet()
        await self._log.append(record, alone=alone)


class _Batch:
    """One batch: the service with gathered links, and the places where its cases wait for each other."""

    def __init__(self, service: DecisionService, size: int, deadline: float) -> None:
        self._service = service
        self._looked_up, self._decided = Rendezvous(size), Rendezvous(size)
        self._turn = asyncio.Semaphore(LOOK_UPS)  # they take turns: each has a short deadline of its own
        link = GatheredLink(service._ladder._link, deadline)
        self._one = one = copy.copy(service)  # one model for all cases, whatever is swapped meanwhile
        self._log = GatheredLog(service._log, self._decided)
        one._log = self._log  # type: ignore[assignment]
        one._ladder = FeatureLadder(link, service._ladder._snapshot)  # type: ignore[arg-type]

    async def decide(self, case: Case, request_id: str, *, id_sent: bool, started: float) -> DecisionRecord:
        """Decide one case as the only one who does; a recorded decision is returned as it is."""
        try:
            if id_sent:
                try:
                    async with self._turn:
                        record = await self._service._repeats.find_or_claim(request_id)
                except BaseException:
                    self._looked_up.leave()
                    raise
                if record is not None:
                    self._looked_up.leave()
                    self._service._metrics.repeats.inc()
                    return record
            await self._looked_up.meet()
            try:
                return await self._one._decide(case, request_id, started)
            except BaseException:
                if id_sent:
                    self._service._repeats.release(request_id)
                raise
        finally:
            if request_id not in self._log.appending:
                self._decided.leave()


async def decide_batch(
    service: DecisionService,
    cases: Sequence[Case | ServiceError],
    request_ids: Sequence[str],
    *,
    ids_sent: bool,
    started: float,
    deadline: float,
) -> list[DecisionRecord | ServiceError]:
    """Decide cases once each; return record or error of each, in order. An error among `cases` is passed on.

    `request_ids` are distinct. `deadline` (seconds) is that of the read of all features. An error that is no
    ServiceError is raised.
    """
    mine = [
        at
        for at, case in enumerate(cases)
        if isinstance(case, Case) and not (ids_sent and request_ids[at] in service._running)
    ]
    batch = _Batch(service, len(mine), deadline)
    deciding: dict[int, asyncio.Future[DecisionRecord]] = {}
    for at in mine:
        case, request_id = cases[at], request_ids[at]
        assert isinstance(case, Case)
        deciding[at] = asyncio.ensure_future(
            batch.decide(case, request_id, id_sent=ids_sent, started=started)
        )
        if ids_sent:
            service._running[request_id] = deciding[at]
            deciding[at].add_done_callback(functools.partial(service._forget, request_id))

    async def result(at: int) -> DecisionRecord | ServiceError:
        case = cases[at]
        if isinstance(case, ServiceError):
            return case
        running = deciding.get(at) or service._running.get(request_ids[at])
        try:
            if running is None:  # somebody else decided it in between
                return await service.decide(case, request_ids[at], id_sent=True, started=started)
            record = await asyncio.shield(running)
            if not asks_the_same(record.request, case.request):
                raise RequestIdReused(f"request id {request_ids[at]} was used for another body")
            return record
        except ServiceError as error:
            return error

    return list(await asyncio.gather(*[result(at) for at in range(len(cases))]))


class BatchRoute(Generic[M]):
    """The endpoint: `to_case` turns a checked body and its time of arrival into a case."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        scope: str,
        body: type[M],
        to_case: Callable[[M, float], Case],
        reply: Callable[[DecisionRecord, str], dict[str, Any]],
    ) -> None:
        self._runtime = runtime
        self._scope = scope
        self._body = body
        self._to_case = to_case
        self._reply = reply

    async def __call__(self, request: Request) -> Response:
        """Answer with what became of each case; 200 also if every one of them failed."""
        headers, state, settings = request.headers, request.state, self._runtime.settings
        await request.app.state.gate.admit(headers.get(HEADER), headers.get("Authorization"), self._scope)
        if not state.request_id_valid:
            raise InvalidRequest(f"X-Request-ID must match {REQUEST_ID.pattern}")
        raw = await read_body(
            request, max_bytes=settings.batch_max_body_bytes, deadline=settings.body_deadline_seconds
        )
        outline = _outline(raw, settings.max_nesting, settings.batch_max_cases)
        ids = _ids(outline, state.request_id)
        now = time.time()
        cases = [self._case(one, settings.max_nesting, now) for one in outline.cases]
        if (trace := current_trace()) is not None:
            trace.batch(len(cases))
        outcomes = await decide_batch(
            self._runtime.decisions, cases, ids,
            ids_sent=state.request_id_sent or outline.case_ids is not None,
            started=state.started, deadline=settings.batch_deadline_seconds,
        )  # fmt: skip
        results = [self._result(outcome, one) for outcome, one in zip(outcomes, ids, strict=True)]
        decided = sum(result["status"] == 200 for result in results)
        state.log = {"cases": len(results), "decided": decided}
        document = {
            "request_id": state.request_id,
            "decided": decided,
            "failed": len(results) - decided,
            "results": results,
        }
        return Response(msgspec.json.encode(document), media_type="application/json")

    def _case(self, raw: msgspec.Raw, max_nesting: int, requested_at: float) -> Case | ServiceError:
        try:
            return self._to_case(parse_body(bytes(raw), self._body, max_nesting=max_nesting), requested_at)
        except ServiceError as error:
            return error

    def _result(self, outcome: DecisionRecord | ServiceError, request_id: str) -> dict[str, Any]:
        if isinstance(outcome, DecisionRecord):
            return {"status": 200, "decision": self._reply(outcome, self._runtime.policy.name)}
        problem = problem_document(outcome, request_id)
        return {"status": problem["status"], "problem": problem}


def problem_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return the problem that stands for an error; an error that no client can have caused is raised."""
    kind = next((PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS), None)
    if kind is None:
        raise error
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if isinstance(error, InvalidRequest) and error.errors:
        document["errors"] = [{"pointer": one.pointer, "detail": one.detail} for one in error.errors]
    return document


def _outline(raw: bytes, max_nesting: int, max_cases: int) -> Outline:
    """Return the body around the cases; raises a RequestError."""
    guard_body(raw, max_nesting=max_nesting + ENVELOPE_LEVELS)
    try:
        outline = msgspec.json.decode(raw, type=Outline)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body around the cases is wrong: {error}") from None
    except msgspec.DecodeError as error:
        raise MalformedRequest(str(error)) from None
    if not 1 <= len(outline.cases) <= max_cases:
        raise InvalidRequest(
            "1 field is wrong", [FieldError("/cases", f"1 to {max_cases} cases are decided")]
        )
    return outline


def _ids(outline: Outline, request_id: str) -> list[str]:
    """Return the request id of each case; raises InvalidRequest."""
    given = outline.case_ids
    ids = given if given is not None else [f"{request_id}:{at}" for at in range(len(outline.cases))]
    if len(ids) != len(outline.cases):
        raise InvalidRequest("1 field is wrong", [FieldError("/case_ids", "one id a case is needed")])
    if len(set(ids)) != len(ids):
        raise InvalidRequest("1 field is wrong", [FieldError("/case_ids", "an id stands there twice")])
    wrong = [at for at, one in enumerate(ids) if not REQUEST_ID.fullmatch(one)]
    if wrong:
        where = f"/case_ids/{wrong[0]}" if given is not None else ""
        raise InvalidRequest(
            "1 field is wrong", [FieldError(where, f"an id must match {REQUEST_ID.pattern}")]
        )
    return ids


def add_batch_route(
    app: FastAPI,
    runtime: Runtime,
    *,
    scope: str,
    body: type[M],
    to_case: Callable[[M, float], Case],
    reply: Callable[[DecisionRecord, str], dict[str, Any]],
) -> None:
    """Add `POST /predict/batch` for bodies of one kind; a key needs the scope of `/predict`."""
    most = runtime.settings.batch_max_cases
    ids = {"type": ["array", "null"], "items": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"}}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["cases"],
        "properties": {
            "cases": {
                "type": "array", "minItems": 1, "maxItems": most, "items": body.model_json_schema()
            },
            "case_ids": {
                **ids,
                "maxItems": most,
                "description": "one a case, each once: the id of its decision. Without them case n is "
                "`<X-Request-ID>:n`, counted from 0",
            },
        },
    }  # fmt: skip
    route = BatchRoute(runtime, scope=scope, body=body, to_case=to_case, reply=reply)
    add_decision_route(
        app, "/predict/batch", route.__call__, request_schema=schema, reply=BatchReply,
        summary="Decide many cases",
    )  # fmt: skip
