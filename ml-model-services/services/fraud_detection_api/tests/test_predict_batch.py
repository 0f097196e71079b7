"""Many transactions in one request: the same decisions as alone, each recorded, none failing another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import TRANSACTION, Service
from service_testkit import CUSTOMER, KEY, NARROW_KEY, TERMINAL, until

from common_service_libs.predict_batch import BatchReply
from common_service_libs.redis_link import RedisLink

pytestmark = pytest.mark.anyio
CASES: list[dict[str, Any]] = [
    TRANSACTION,
    TRANSACTION | {"tx_amount": 500.0},
    TRANSACTION | {"customer_id": 1, "terminal_id": 2},
    TRANSACTION | {"terminal_id": 999, "tx_datetime": "2026-01-31T03:00:00Z"},
    TRANSACTION | {"tx_datetime": "2026-02-03T12:00:00Z"},
]
OWN = {"request_id", "latency_ms"}


async def batch(
    service: Service, cases: list[Any], headers: dict[str, str] | None = None, **more: Any
) -> Any:
    response = await service.http.post("/predict/batch", json={"cases": cases, **more}, headers=headers)
    assert response.status_code == 200, response.text
    BatchReply.model_validate_json(response.content, strict=True)
    return response.json()


def without_own(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name not in OWN}


async def test_a_batch_gives_what_each_case_gives_alone(service: Service) -> None:
    alone = [(await service.http.post("/predict", json=case)).json() for case in CASES]
    reply = await batch(service, CASES, {"X-Request-ID": "b1"})
    assert (reply["decided"], reply["failed"]) == (5, 0)
    together = [result["decision"] for result in reply["results"]]
    assert [without_own(one) for one in together] == [without_own(one) for one in alone]
    assert [one["request_id"] for one in together] == [f"b1:{at}" for at in range(5)]
    records = [await service.runtime.decisions.find(one["request_id"]) for one in (*alone, *together)]
    assert [r.features for r in records[:5]] == [r.features for r in records[5:]]
    explained = await service.http.post("/decisions/b1:1/explain")
    assert explained.json()["reproduced"] is True
    await until(lambda: {f"b1:{at}" for at in range(5)} <= set(service.store.rows))


async def test_one_read_and_one_sync_serve_all_cases(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = RedisLink.call

    def counted(self: RedisLink, payload: bytes, expected: int, **options: Any) -> Any:
        calls.append(expected)
        return real(self, payload, expected, **options)

    monkeypatch.setattr(RedisLink, "call", counted)
    syncs: list[int] = []
    spool = service.runtime.log._spool
    make = spool.syncer

    def syncer() -> Any:
        sync = make()
        return lambda: (syncs.append(1), sync())[1]

    monkeypatch.setattr(spool, "syncer", syncer)
    reply = await batch(service, CASES * 20)
    assert reply["decided"] == 100
    assert [expected for expected in calls if expected > 1] == [200]  # a customer and a terminal a case
    assert sum(syncs) == 1


async def test_a_case_that_cannot_be_decided_leaves_the_others_alone(service: Service) -> None:
    cases = [
        TRANSACTION,
        TRANSACTION | {"tx_amount": "57"},
        [],
        TRANSACTION | {"customer_id": CUSTOMER, "terminal_id": TERMINAL, "surprise": 1},
        None,
        TRANSACTION | {"tx_amount": 1.0},
    ]
    reply = await batch(service, cases, {"X-Request-ID": "mixed"})
    assert [result["status"] for result in reply["results"]] == [200, 422, 422, 422, 422, 200]
    assert (reply["decided"], reply["failed"]) == (2, 4)
    problem = reply["results"][1]["problem"]
    assert problem["type"].endswith(":invalid-request")
    assert problem["errors"][0]["pointer"] == "/tx_amount"
    assert problem["request_id"] == "mixed:1"


async def test_each_case_is_decided_once(service: Service) -> None:
    ids = ["one", "two", "three"]
    first = await batch(service, CASES[:3], case_ids=ids)
    assert [result["decision"]["request_id"] for result in first["results"]] == ids
    assert (await batch(service, CASES[:3], case_ids=ids))["results"] == first["results"]
    alone = await service.http.post("/predict", json=CASES[1], headers={"X-Request-ID": "two"})
    assert alone.json() == first["results"][1]["decision"]
    changed = await batch(service, [CASES[0], CASES[2], CASES[2]], case_ids=ids)
    assert [result["status"] for result in changed["results"]] == [200, 409, 200]
    more = await batch(service, [CASES[0], CASES[4]], case_ids=["one", "four"])
    assert more["results"][0] == first["results"][0]
    assert more["results"][1]["status"] == 200


async def test_batches_and_requests_at_the_same_time_decide_each_id_once(service: Service) -> None:
    forth, back = ["a", "b", "c"], ["c", "b", "a"]
    cases = dict(zip(forth, CASES, strict=False))
    answers = await asyncio.wait_for(
        asyncio.gather(
            batch(service, [cases[one] for one in forth], case_ids=forth),
            batch(service, [cases[one] for one in back], case_ids=back),
            service.http.post("/predict", json=cases["b"], headers={"X-Request-ID": "b"}),
        ),
        5,
    )
    of_first = {one["decision"]["request_id"]: one["decision"] for one in answers[0]["results"]}
    of_second = {one["decision"]["request_id"]: one["decision"] for one in answers[1]["results"]}
    assert of_first == of_second
    assert answers[2].json() == of_first["b"]
    assert service.metric("decisions_total", decision=of_first["a"]["decision"], model_version="1",
                          policy_version="1") <= 3  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"cases": []},
        {"cases": [TRANSACTION] * 501},
        {"cases": [TRANSACTION], "more": 1},
        {"cases": TRANSACTION},
        {"cases": [TRANSACTION], "case_ids": []},
        {"cases": [TRANSACTION] * 2, "case_ids": ["x", "x"]},
        {"cases": [TRANSACTION], "case_ids": ["no spaces"]},
        {"cases": [TRANSACTION], "case_ids": [1]},
    ],
    ids=["empty", "no-cases", "too-many", "unknown-field", "no-list", "no-ids", "twice", "bad-id", "number"],
)
async def test_a_batch_that_is_wrong_itself_is_refused_whole(service: Service, body: dict[str, Any]) -> None:
    response = await service.http.post("/predict/batch", json=body)
    assert response.status_code == 422
    assert response.json()["type"].endswith(":invalid-request")
    assert service.store.rows == {}


async def test_a_batch_has_its_own_limit_of_size(service: Service) -> None:
    long = TRANSACTION | {"transaction_id": "x" * 64}
    assert (await batch(service, [long] * 400))["decided"] == 400  # more than /predict would read
    headers = {"Content-Type": "application/json"}
    response = await service.http.post("/predict/batch", content=b" " * (1 << 20) + b"{}", headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"cases": [], "cases": []}', "twice"),
        (b'{"cases": [{"tx_amount": 1, "tx_amount": 2}]}', "twice"),
        (b'{"cases": [' + b"[" * 9 + b"]" * 9 + b"]}", "levels"),
        (b'{"cases": [', "truncated"),
    ],
)
async def test_a_body_that_is_ambiguous_too_deep_or_no_json_is_refused_whole(
    service: Service, content: bytes, said: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = await service.http.post("/predict/batch", content=content, headers=headers)
    assert response.status_code == 400
    assert said in response.json()["detail"]


async def test_a_batch_wants_the_scope_of_predict(service: Service) -> None:
    for key, status in (("", 401), (NARROW_KEY, 403), (KEY, 200)):
        response = await service.http.post(
            "/predict/batch", json={"cases": [TRANSACTION]}, headers={"X-API-Key": key}
        )
        assert response.status_code == status


async def test_while_the_store_is_silent_every_case_is_answered_and_labelled(service: Service) -> None:
    await batch(service, CASES[:1])
    service.redis.mode = "drop"
    reply = await batch(service, [TRANSACTION | {"customer_id": 77, "terminal_id": at} for at in range(30)])
    assert reply["decided"] == 30
    assert {result["decision"]["rung"] for result in reply["results"]} == {"defaults"}
    assert all(result["decision"]["degraded"] for result in reply["results"])
