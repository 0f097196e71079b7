from __future__ import annotations

import logging

import httpx
import pytest
from app.core.client import ServiceClient, Trouble
from app.core.services import Services, decide_many, thresholds_of
from conftest import KEY, THRESHOLDS, FakeService, client_of, reply
from pydantic import SecretStr


def trouble_of(fake: FakeService, answer: object, path: str = "/predict") -> Trouble:
    fake.answers["POST", path] = answer
    with pytest.raises(Trouble) as caught:
        client_of(fake).post(path, {"tx_amount": 1})
    return caught.value


def problem(status: int, slug: str, headers: dict[str, str] | None = None, **more: object) -> httpx.Response:
    document = {"type": f"urn:decision-service:problem:{slug}", "title": "A title", "status": status, **more}
    return httpx.Response(status, json=document, headers=headers)


def test_the_key_goes_to_the_service_and_nowhere_else(
    fake: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client_of(fake).post("/predict", {})
    assert fake.asked[0].headers["X-API-Key"] == KEY
    assert KEY not in str(fake.asked[0].url)
    sentence = trouble_of(
        fake, problem(403, "forbidden", detail="the key lacks the scope fraud:predict")
    ).sentence
    assert "does not accept the key of this page (the key lacks the scope fraud:predict)." in sentence
    assert KEY not in sentence
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            httpx.ConnectError("[Errno 111] refused"),
            "The fraud service is away: nothing answers where it should.",
        ),
        (httpx.ReadTimeout("late"), "The fraud service did not answer within 5 seconds."),
        (problem(429, "rate-limited", {"Retry-After": "3"}), "for now. Try again in 3 seconds."),
        (problem(429, "rate-limited"), "for now. Try again in a moment."),
        (
            problem(503, "overloaded", {"Retry-After": "1"}, detail="too many requests are under way"),
            "cannot answer now: too many requests are under way. Try again in 1 second.",
        ),
        (httpx.Response(503), "The fraud service is overloaded or starting."),
        (
            problem(404, "decision-not-found", detail="no decision of fraud has the id x"),
            "The fraud service says: no decision of fraud has the id x.",
        ),
        (httpx.Response(500, text="<html>"), "The fraud service failed (HTTP 500). Its log says more."),
        (httpx.Response(200, text="<html>"), "The fraud service failed (HTTP 200). Its log says more."),
        (httpx.Response(200, json=[1]), "The fraud service failed (HTTP 200). Its log says more."),
    ],
)
def test_every_failure_is_a_plain_sentence(fake: FakeService, answer: object, expected: str) -> None:
    sentence = trouble_of(fake, answer).sentence
    assert expected in sentence
    assert "http://" not in sentence
    assert "Errno" not in sentence
    assert ".." not in sentence


def test_a_wrong_field_is_named_as_the_page_names_it(fake: FakeService) -> None:
    errors = [
        {"pointer": "/tx_amount", "detail": "Input should be greater than or equal to 0"},
        {"pointer": "/customer_id", "detail": "Field required"},
    ]
    found = trouble_of(fake, problem(422, "invalid-request", detail="2 fields are wrong", errors=errors))
    assert found.sentence == (
        "Please correct this. Amount: input should be greater than or equal to 0; Customer: field required."
    )
    assert found.slug == "invalid-request"


def test_a_service_that_is_not_ready_still_answers(fake: FakeService) -> None:
    fake.answers["GET", "/readyz"] = httpx.Response(503, json={"ready": False, "checks": {"model": False}})
    assert client_of(fake).get("/readyz")["ready"] is False


def test_one_service_that_is_away_leaves_the_others_answers(fake: FakeService, services: Services) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    services.churn = client_of(away, "churn")
    found = services.ask_all(lambda client: client.get("/model"))
    assert found["Fraud"] == {"thresholds": THRESHOLDS}
    assert isinstance(found["Churn"], Trouble)
    assert "churn" in found["Churn"].sentence


def test_thresholds_are_none_where_the_service_does_not_tell(fake: FakeService) -> None:
    fake.answers["GET", "/model"] = problem(403, "forbidden")
    assert thresholds_of(client_of(fake)) == {}


def test_many_cases_are_one_request_and_a_case_that_fails_is_a_gap(fake: FakeService) -> None:
    wrong = {
        "status": 422,
        "decision": None,
        "problem": {"title": "wrong", "detail": "the entity is unknown"},
    }
    good = {"status": 200, "decision": reply(), "problem": None}
    fake.answers["POST", "/predict/batch"] = {"results": [good, wrong]}
    assert decide_many(client_of(fake), [{}, {}]) == [reply(), None]
    assert len(fake.asked) == 1
    fake.answers["POST", "/predict/batch"] = {"results": [wrong, wrong]}
    with pytest.raises(Trouble, match="the entity is unknown"):
        decide_many(client_of(fake), [{}, {}])


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    client = ServiceClient("fraud", "http://127.0.0.1:9", SecretStr(KEY), timeout=1)
    assert client._http._mounts == {}
    client.close()
