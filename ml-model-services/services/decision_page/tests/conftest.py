"""The page's tests: services in process that answer as the real ones do, and the keys they know."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app.core.client import ServiceClient
from app.core.services import Services
from pydantic import SecretStr

KEY = "the-key-of-the-page-tests"
THRESHOLDS = {"decline": 0.5, "review": 0.1}
Handler = Callable[[httpx.Request], httpx.Response]


def reply(request_id: str = "one", **changes: Any) -> dict[str, Any]:
    """A decision as the fraud service gives it."""
    return {
        "request_id": request_id,
        "decision": "review",
        "score": 0.25,
        "reason_codes": ["ELEVATED_FRAUD_SCORE"],
        "rules_fired": ["score-review", "shadow:amount-far-above-habit"],
        "degraded": False,
        "feature_status": {"customer_daily": "present", "customer_today": "stale"},
        "model": {"name": "fraud-detection-model", "version": 3, "bundle_sha256": "b" * 64},
        "policy": {"name": "fraud_detection", "version": 2, "sha256": "c" * 64},
        "latency_ms": 1.25,
        "rung": "online",
        "variant": "champion",
    } | changes


def explanation(request_id: str = "one", **changes: Any) -> dict[str, Any]:
    """An explanation as the fraud service gives it."""
    return {
        "request_id": request_id,
        "decision": "review",
        "reason_codes": ["ELEVATED_FRAUD_SCORE"],
        "recorded_score": 0.25,
        "replayed_score": 0.25,
        "reproduced": True,
        "model": {"name": "fraud-detection-model", "version": 3, "bundle_sha256": "b" * 64},
        "unit": "log-odds",
        "base_value": -2.0,
        "contributions": [
            {
                "feature": "tx_amount",
                "value": 250.0,
                "contribution": 1.5,
                "reason_code": "TRANSACTION_AMOUNT",
            },
            {"feature": "tx_is_night", "value": 0.0, "contribution": -0.5, "reason_code": "UNUSUAL_TIME"},
        ],
    } | changes


def summary(request_id: str, **changes: Any) -> dict[str, Any]:
    """A decision as the list of them holds it."""
    return {
        "request_id": request_id,
        "requested_at": "2026-01-31T12:00:00.000000Z",
        "entity_ids": {"customer_id": 5},
        "request": {"customer_id": 5, "tx_amount": 20.0, "transaction_id": None, "defaulted": []},
        "model_version": 3,
        "policy_version": 2,
        "score": 0.25,
        "decision": "review",
        "reason_codes": ["ELEVATED_FRAUD_SCORE"],
        "rules_fired": ["score-review"],
        "degraded": False,
        "rung": "online",
        "variant": "champion",
        "latency_ms": 2.0,
    } | changes


class FakeService:
    """A service in process: answers by method and path, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.get((request.method, request.url.path))
        if answer is None:
            return httpx.Response(
                404, json={"type": "urn:x:not-found", "title": "No such resource", "status": 404}
            )
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, json=answer(request) if callable(answer) else answer)


def client_of(fake: Handler, label: str = "fraud") -> ServiceClient:
    return ServiceClient(label, "http://service", SecretStr(KEY), transport=httpx.MockTransport(fake))


@pytest.fixture
def fake() -> FakeService:
    """A fraud service that decides by amount."""
    service = FakeService()
    service.answers |= {
        ("GET", "/model"): {"thresholds": THRESHOLDS},
        ("POST", "/predict"): reply(),
        ("POST", "/decisions/one/explain"): explanation(),
    }
    return service


@pytest.fixture
def services(fake: FakeService) -> Iterator[Services]:
    found = Services(client_of(fake), client_of(fake, "churn"), client_of(fake, "recommendation"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def titles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of titles as MovieLens' is."""
    path = tmp_path_factory.mktemp("titles") / "movies.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("movieId,title,year,genres\n")
        file.write('2571,"Matrix, The",1999,Action|Sci-Fi|Thriller\n')
        file.write('6365,"Matrix Reloaded, The",2003,Action\n')
        file.write("1,Amélie,2001,Comedy|Romance\n")
        file.write("9,Untitled,,(no genres listed)\n")
    return path
