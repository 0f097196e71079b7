from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from app.core.config import FraudApiConfig
from app.main import create_app
from app.schemas import FraudReply
from conftest import TRANSACTION, Service
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_testkit import (
    CUSTOMER,
    KEY,
    NARROW_KEY,
    TERMINAL,
    FakeRedis,
    FakeRegistry,
    FakeStore,
    client_of,
    fraud_bundle,
    settings_for,
    until,
)

from common_service_libs.json_logs import hashed
from common_service_libs.recent_decisions import DecisionPage
from common_service_libs.runtime import Runtime
from common_service_libs.schemas import DecisionDocument, Explanation, ModelDocument, Readiness

pytestmark = pytest.mark.anyio
PROBLEM = "application/problem+json"


def assert_problem(response, status: int, slug: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    document = response.json()
    assert document["status"] == status
    assert document["type"].endswith(":" + slug)
    assert document["request_id"] == response.headers["x-request-id"]
    return document


# --- deciding -------------------------------------------------------------------------------------


async def test_a_transaction_is_decided_recorded_and_replayed_to_the_same_score(service: Service) -> None:
    response = await service.predict()
    reply = FraudReply.model_validate_json(response.content, strict=True)
    assert response.status_code == 200
    assert reply.degraded is False
    assert set(reply.feature_status.values()) == {"present"}
    assert reply.model.bundle_sha256 == service.registry.versions[1][1]
    assert reply.policy.sha256 == service.runtime.policy.sha256

    recorded = await service.http.get(f"/decisions/{reply.request_id}")
    document = DecisionDocument.model_validate_json(recorded.content)
    assert document.score == reply.score
    assert document.entity_ids == {"customer_id": CUSTOMER, "terminal_id": TERMINAL}
    assert document.features["customer_tx_count_7d"] == 7.0  # 3 full days' + 3 today + this one
    assert (
        document.features["terminal_tx_count_1d"] == 6.0
    )  # the day's total is yesterday's and counts as zero

    explained = await service.http.post(f"/decisions/{reply.request_id}/explain")
    explanation = Explanation.model_validate_json(explained.content)
    assert explanation.reproduced
    assert explanation.replayed_score == reply.score
    assert len(explanation.contributions) == 18
    sizes = [abs(part.contribution) for part in explanation.contributions]
    assert sizes == sorted(sizes, reverse=True)

    await until(lambda: reply.request_id in service.store.rows)


async def test_a_high_amount_is_sent_to_an_analyst_with_the_reason(service: Service) -> None:
    reply = (await service.predict(tx_amount=500.0)).json()
    assert reply["decision"] in {"review", "decline"}
    assert "AMOUNT_OVER_LIMIT" in reply["reason_codes"]
    assert "amount-over-limit" in reply["rules_fired"]
    assert service.metric("rule_hits_total", rule="amount-over-limit") == 1


async def test_an_unknown_customer_takes_the_documented_fallback(service: Service) -> None:
    reply = (await service.predict(customer_id=1, terminal_id=2)).json()
    assert reply["feature_status"] == dict.fromkeys(reply["feature_status"], "missing")
    assert reply["degraded"] is False
    assert service.metric("feature_fallbacks_total", feature="terminal_fraud_risk_7d") == 1
    assert service.metric("feature_status_total", view="customer_daily", status="missing") == 1
    count = "feature_value_status_total"
    assert service.metric(count, feature="terminal_fraud_risk_7d", status="defaulted") == 1
    assert service.metric(count, feature="customer_tx_count_7d", status="missing") == 1


async def test_a_daily_view_out_of_date_is_a_degraded_decision(service: Service) -> None:
    reply = (await service.predict(tx_datetime="2026-02-03T12:00:00Z")).json()
    assert reply["degraded"] is True
    assert reply["decision"] == "review"
    assert "FEATURES_DEGRADED" in reply["reason_codes"]
    assert reply["feature_status"]["terminal_daily"] == "stale"


async def test_yesterdays_running_total_alone_is_no_degradation(service: Service) -> None:
    reply = (await service.predict(tx_datetime="2026-01-31T23:00:00Z")).json()
    assert reply["feature_status"]["terminal_today"] == "stale"
    assert reply["degraded"] is False


async def test_the_time_of_arrival_stands_in_for_a_time_not_given(service: Service) -> None:
    body = {key: value for key, value in TRANSACTION.items() if key != "tx_datetime"}
    response = await service.http.post("/predict", json=body)
    record = await service.runtime.decisions.find(response.json()["request_id"])
    assert record.request["tx_datetime"] == record.requested_at


# --- the same request again -----------------------------------------------------------------------


async def test_the_same_request_id_gives_the_recorded_reply(service: Service) -> None:
    headers = {"X-Request-ID": "order-17"}
    first = await service.predict(headers)
    assert first.json()["request_id"] == "order-17"
    reads = service.redis.reads
    assert (await service.predict(headers)).json() == first.json()
    await until(lambda: "order-17" in service.store.rows)
    service.runtime.log._recent.clear()  # long ago: only the database knows
    await until(lambda: service.runtime.log.pending == 0)
    assert (await service.predict(headers)).json() == first.json()
    assert service.redis.reads == reads
    assert service.metric("decision_repeats_total") == 2


async def test_the_same_request_id_with_another_body_is_a_conflict(service: Service) -> None:
    headers = {"X-Request-ID": "order-18"}
    await service.predict(headers)
    assert_problem(await service.predict(headers, tx_amount=1.0), 409, "request-id-reused")


async def test_recorded_decisions_are_listed_newest_first_and_page_by_page(service: Service) -> None:
    ids = [(await service.predict(tx_amount=float(amount))).json()["request_id"] for amount in range(5)]
    await until(lambda: len(service.store.rows) == 5)
    first = DecisionPage.model_validate((await service.http.get("/decisions", params={"limit": 3})).json())
    assert [decision.request_id for decision in first.decisions] == ids[:1:-1]
    assert first.decisions[0].request["tx_amount"] == 4.0
    second = (await service.http.get("/decisions", params={"limit": 3, "before": first.next})).json()
    assert [decision["request_id"] for decision in second["decisions"]] == ids[1::-1]
    assert second["next"] is None
    none = (await service.http.get("/decisions", params={"before": "2000-01-01T00:00:00Z"})).json()
    assert none == {"decisions": [], "next": None}
    for wrong in ({"limit": 0}, {"limit": 201}, {"before": "yesterday"}, {"before": "2026-13-01T00:00:00Z"}):
        assert_problem(await service.http.get("/decisions", params=wrong), 422, "invalid-request")
    service.store.silent = True
    assert_problem(await service.http.get("/decisions"), 503, "decision-store-unavailable")


async def test_concurrent_requests_with_one_id_make_one_decision(service: Service) -> None:
    replies = await asyncio.gather(*(service.predict({"X-Request-ID": "order-19"}) for _ in range(20)))
    assert {response.content for response in replies} == {replies[0].content}
    await until(lambda: "order-19" in service.store.rows)
    assert service.redis.reads == 2


async def test_a_request_that_failed_may_be_sent_again_under_its_id(service: Service) -> None:
    service.registry.silent = True
    model, service.runtime.decisions._model = service.runtime.decisions.model, None
    assert_problem(await service.predict({"X-Request-ID": "order-20"}), 503, "model-unavailable")
    service.runtime.decisions._model = model
    assert (await service.predict({"X-Request-ID": "order-20"})).status_code == 200


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ("", 400, "malformed-request"),
        ("{", 400, "malformed-request"),
        ("\x00", 400, "malformed-request"),
        ('{"customer_id": 1, "terminal_id": 2, "tx_amount": 1} x', 400, "malformed-request"),
        ("[" * 8000, 400, "body-too-deep"),
        ('{"a":' * 2000 + "1" + "}" * 2000, 400, "body-too-deep"),
        ('{"customer_id": 1, "customer_id": 2}', 400, "duplicate-key"),
        ("[]", 422, "invalid-request"),
        ("null", 422, "invalid-request"),
        ("{}", 422, "invalid-request"),
    ],
)
async def test_a_body_that_is_not_the_request_is_a_problem(
    service: Service, body: str, status: int, slug: str
) -> None:
    response = await service.http.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, status, slug)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ('"tx_amount": NaN', "/tx_amount"),
        ('"tx_amount": Infinity', "/tx_amount"),
        ('"tx_amount": 1e999', "/tx_amount"),
        ('"tx_amount": -0.01', "/tx_amount"),
        ('"tx_amount": 1e10', "/tx_amount"),
        ('"tx_amount": "57.16"', "/tx_amount"),
        ('"tx_amount": true', "/tx_amount"),
        ('"tx_amount": null', "/tx_amount"),
        ('"tx_amount": [1]', "/tx_amount"),
        ('"customer_id": "596"', "/customer_id"),
        ('"customer_id": true', "/customer_id"),
        ('"customer_id": 596.0', "/customer_id"),
        ('"customer_id": -1', "/customer_id"),
        ('"customer_id": 9223372036854775808', "/customer_id"),
        ('"customer_id": 1' + "0" * 4000, "/customer_id"),
        ('"tx_datetime": 1769860800', "/tx_datetime"),
        ('"tx_datetime": "2026-01-31T12:00:00"', "/tx_datetime"),
        ('"transaction_id": 1.5', "/transaction_id"),
        ('"transaction_id": "a\\u0000b"', "/transaction_id"),
        ('"amount": 1', "/amount"),
        ('"a/b~c": 1', "/a~1b~0c"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_coerced(
    service: Service, change: str, pointer: str
) -> None:
    name = change.split('"')[1]
    rest = {key: value for key, value in TRANSACTION.items() if key != name}
    body = "{" + change + "," + json.dumps(rest)[1:]
    response = await service.http.post("/predict", content=body, headers={"Content-Type": "application/json"})
    problem = assert_problem(response, 422, "invalid-request")
    assert problem["errors"][0]["pointer"].startswith(pointer)
    assert service.store.rows == {}


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"]
)
async def test_another_content_type_is_refused(service: Service, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = await service.http.post("/predict", content=json.dumps(TRANSACTION), headers=headers)
    assert_problem(response, 415, "unsupported-media-type")


async def test_an_oversized_body_is_refused_by_its_declared_and_by_its_real_length(service: Service) -> None:
    headers = {"Content-Type": "application/json"}
    big = b'{"x": "' + b"a" * 20_000 + b'"}'
    assert_problem(await service.http.post("/predict", content=big, headers=headers), 413, "body-too-large")

    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(10_000):
            sent += 1
            yield b" " * 1000

    response = await service.http.post("/predict", content=endless(), headers=headers)
    assert_problem(response, 413, "body-too-large")


async def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, service: Service) -> None:
    object.__setattr__(service.runtime.settings, "body_deadline_seconds", 0.05)

    async def slow():
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    response = await service.http.post(
        "/predict", content=slow(), headers={"Content-Type": "application/json"}
    )
    assert_problem(response, 408, "body-timeout")


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "-first", "é", "a\tb"])
async def test_a_request_id_of_another_form_is_refused(service: Service, request_id: str) -> None:
    response = await service.predict({"X-Request-ID": request_id.encode("latin-1")})
    assert_problem(response, 422, "invalid-request")
    assert response.headers["x-request-id"] != request_id


async def test_unknown_routes_methods_and_ids_are_problems(service: Service) -> None:
    assert_problem(await service.http.get("/nowhere"), 404, "not-found")
    wrong_method = await service.http.get("/predict")
    assert_problem(wrong_method, 405, "method-not-allowed")
    assert wrong_method.headers["allow"] == "POST"
    assert_problem(await service.http.get("/decisions/unknown"), 404, "decision-not-found")
    assert_problem(await service.http.post("/decisions/unknown/explain"), 404, "decision-not-found")
    assert_problem(await service.http.get("/decisions/%00"), 422, "invalid-request")
    assert_problem(await service.http.get("/decisions/" + "x" * 200), 422, "invalid-request")


fields = st.sampled_from([*TRANSACTION, "transaction_id", "other"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**63, -(2**63), 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


async def test_no_body_whatsoever_is_a_server_error(service: Service) -> None:
    """Mutated bodies: fields replaced by anything, bytes flipped, cut and added."""
    headers = {"Content-Type": "application/json"}
    seen: set[int] = set()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(fields, values, max_size=4), st.randoms(use_true_random=False), st.booleans())
    def collect(changes: dict, random, broken: bool) -> None:
        body = bytearray(json.dumps(TRANSACTION | changes).encode())
        for _ in range(random.randint(1, 3) if broken else 0):
            at = random.randrange(len(body))
            body[at : at + random.randint(0, 2)] = random.randbytes(random.randint(0, 3))
            body = body or bytearray(b"{")
        bodies.append(bytes(body))

    bodies: list[bytes] = []
    await asyncio.to_thread(collect)
    for body in bodies:
        response = await service.http.post("/predict", content=body, headers=headers)
        seen.add(response.status_code)
        assert response.status_code in {200, 400, 413, 422}, (response.status_code, body)
        if response.status_code != 200:
            assert response.headers["content-type"] == PROBLEM
    assert {200, 400, 422} <= seen


# --- who may do what ------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/predict", "fraud:predict"),
    ("POST", "/predict/batch", "fraud:predict"),
    ("GET", "/decisions", "fraud:read"),
    ("GET", "/decisions/x", "fraud:read"),
    ("POST", "/decisions/x/explain", "fraud:read"),
    ("GET", "/model", "model:read"),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_a_route_wants_its_scope(service: Service, method: str, path: str, scope: str | None) -> None:
    statuses = {
        key: (await service.http.request(method, path, headers={"X-API-Key": key})).status_code
        for key in ("", "wrong", NARROW_KEY, KEY)
    }
    if scope is None:
        assert set(statuses.values()) == {200}
    else:
        assert statuses[""] == statuses["wrong"] == 401
        assert (statuses[NARROW_KEY] == 403) == (scope != "model:read")
        assert statuses[KEY] not in {401, 403}


async def test_the_table_of_routes_is_complete(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    documented = {
        (method.upper(), path.replace("{request_id}", "x"))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert documented == {(method, path) for method, path, _ in ROUTES if path != "/openapi.json"}


async def test_a_wrong_key_is_told_before_the_body_is_read(service: Service) -> None:
    response = await service.http.post("/predict", content=b"{", headers={"X-API-Key": "wrong"})
    assert_problem(response, 401, "unauthenticated")
    assert "ApiKey" in response.headers["www-authenticate"]


async def test_every_reply_carries_the_security_headers(service: Service) -> None:
    for response in (
        await service.predict(),
        await service.http.get("/nowhere"),
        await service.http.get("/livez"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_no_key_and_no_entity_id_is_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await service.predict(customer_id=987654321)
    await service.predict(tx_amount="987654321")
    text = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    decided = next(record for record in caplog.records if hasattr(record, "decision"))
    assert decided.entities == hashed({"customer_id": 987654321, "terminal_id": TERMINAL})
    assert decided.status == 200
    assert KEY not in text
    assert "987654321" not in text


# --- servers that fail ----------------------------------------------------------------------------


async def test_a_silent_online_store_gives_labelled_decisions_within_the_deadline(service: Service) -> None:
    service.redis.mode = "silent"
    loop = asyncio.get_running_loop()
    for _ in range(5):
        started = loop.time()
        reply = (await service.predict()).json()
        assert loop.time() - started < 0.3
        assert reply["degraded"] is True
        assert reply["decision"] == "review"
        assert set(reply["feature_status"].values()) == {"unavailable"}
        assert "FEATURES_DEGRADED" in reply["reason_codes"]
    ready = await service.http.get("/readyz")
    assert ready.status_code == 503
    assert Readiness.model_validate_json(ready.content).checks["online_store"] is False
    assert service.metric("decision_rung_total", rung="defaults") == 5

    service.redis.mode = "answer"
    await until(lambda: service.runtime.link.up)
    assert (await service.predict()).json()["degraded"] is False
    assert (await service.http.get("/readyz")).status_code == 200


async def test_a_silent_database_holds_up_no_decision(service: Service) -> None:
    service.store.silent = True
    reply = (await service.predict({"X-Request-ID": "during"})).json()
    assert (await service.http.get("/decisions/during")).json()["score"] == reply["score"]
    response = await service.http.get("/decisions/before")
    assert_problem(response, 503, "decision-store-unavailable")
    assert response.headers["retry-after"] == "1"
    assert service.metric("decision_repeats_unchecked_total") == 1
    service.store.silent = False
    await until(lambda: "during" in service.store.rows)


async def test_a_full_spool_refuses_decisions_until_it_is_drained(service: Service) -> None:
    service.store.silent = True
    service.runtime.log._spool._max_bytes = 1500
    statuses = [(await service.predict()).status_code for _ in range(5)]
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert_problem(await service.predict(), 503, "spool-unavailable")
    assert (await service.http.get("/readyz")).json()["checks"]["decision_log"] is False
    service.store.silent = False
    await until(lambda: not service.runtime.log.full)
    assert (await service.predict()).status_code == 200
    await until(lambda: len(service.store.rows) == statuses.count(200) + 1)


async def test_without_a_model_nothing_is_ready_and_nothing_decided(
    tmp_path: Path, redis_server: FakeRedis, bundle: tuple[Path, str]
) -> None:
    registry, store = FakeRegistry(), FakeStore()
    settings = FraudApiConfig(**settings_for(tmp_path, redis_server, redis_password="secret"))
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        assert (await http.get("/livez")).status_code == 200
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["model"]) == (503, None)
        response = await http.post("/predict", json=TRANSACTION)
        assert_problem(response, 503, "model-unavailable")
        assert int(response.headers["retry-after"]) > 0
        assert_problem(await http.get("/model"), 503, "model-unavailable")
        registry.add("fraud-detection-model", 1, *bundle)
        await until(lambda: runtime.decisions.model is not None)
        assert (await http.post("/predict", json=TRANSACTION)).status_code == 200


# --- models come and go ---------------------------------------------------------------------------


async def test_a_new_champion_is_swapped_in_and_old_decisions_stay_explainable(service: Service) -> None:
    before = (await service.predict()).json()
    folder = service.folder / "b2"
    service.registry.add("fraud-detection-model", 2, folder, fraud_bundle(folder, seed=3))
    await until(lambda: service.runtime.decisions.model.version == 2)
    after = (await service.predict()).json()
    assert after["model"]["version"] == 2
    assert after["score"] != before["score"]
    explanation = (await service.http.post(f"/decisions/{before['request_id']}/explain")).json()
    assert explanation["reproduced"] is True
    assert explanation["model"]["version"] == 1
    document = ModelDocument.model_validate_json((await service.http.get("/model")).content)
    assert document.model.version == 2


async def test_a_corrupt_champion_leaves_the_old_one_in_service(service: Service) -> None:
    folder = service.folder / "b2"
    sha256 = fraud_bundle(folder, seed=3)
    (folder / "thresholds.json").write_text('{"review": 0.0, "decline": 0.0}')
    service.registry.add("fraud-detection-model", 2, folder, sha256)
    await until(lambda: service.metric("model_swaps_total", outcome="refused") == 1)
    reply = (await service.predict()).json()
    assert reply["model"]["version"] == 1


async def test_a_champion_that_the_policy_does_not_fit_is_refused(service: Service) -> None:
    folder = service.folder / "b2"
    sha256 = fraud_bundle(folder, thresholds={"review": 0.5})
    service.registry.add("fraud-detection-model", 2, folder, sha256)
    await until(lambda: service.metric("model_swaps_total", outcome="refused") == 1)
    assert service.runtime.decisions.model.version == 1


async def test_no_request_fails_while_models_are_swapped(service: Service) -> None:
    folders = [service.folder / f"swap{i}" for i in range(2)]
    identities = [fraud_bundle(folder, seed=10 + i) for i, folder in enumerate(folders)]
    served: set[int] = set()

    async def swap() -> None:
        for version in range(2, 12):
            service.registry.add(
                "fraud-detection-model", version, folders[version % 2], identities[version % 2]
            )
            await until(lambda v=version: service.runtime.decisions.model.version == v)

    swapping = asyncio.create_task(swap())
    while not swapping.done():
        response = await service.predict()
        assert response.status_code == 200
        served.add(response.json()["model"]["version"])
    await swapping
    assert len(served) > 3


async def test_a_restart_without_registry_and_database_serves_what_was_last_in_service(
    tmp_path: Path, redis_server: FakeRedis, bundle: tuple[Path, str]
) -> None:
    registry, store = FakeRegistry(), FakeStore()
    registry.add("fraud-detection-model", 1, *bundle)
    settings = FraudApiConfig(**settings_for(tmp_path, redis_server, redis_password="secret"))
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    store.silent = True
    async with client_of(create_app(settings, runtime)) as http:
        await until(lambda: runtime.decisions.model is not None)
        headers = {"X-Request-ID": "before-the-restart"}
        first = (await http.post("/predict", json=TRANSACTION, headers=headers)).json()
    assert store.rows == {}
    registry.silent = True
    runtime = Runtime(settings, registry=registry, sink=store, lookup=store)
    async with client_of(create_app(settings, runtime)) as http:
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post("/predict", json=TRANSACTION, headers=headers)).json() == first
        store.silent = False
        await until(lambda: "before-the-restart" in store.rows)
    assert len(store.rows) == 1


# --- the document ---------------------------------------------------------------------------------


async def test_the_openapi_document_has_examples_problems_and_the_key(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    predict = document["paths"]["/predict"]["post"]
    schema = predict["requestBody"]["content"]["application/json"]["schema"]
    for example in schema["examples"]:
        assert (await service.http.post("/predict", json=example)).status_code == 200
    assert set(predict["responses"]) >= {"200", "400", "401", "403", "408", "409", "413", "415", "422", "503"}
    assert predict["security"]
    assert PROBLEM in predict["responses"]["409"]["content"]
    references = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in references or name == "Problem"
