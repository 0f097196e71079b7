"""The smoke test: it sees services that are not ready, decide without features, or do not answer."""

from __future__ import annotations

import copy
import json
import re

import pytest

from server_tools import smoke

READY = {
    "ready": True,
    "checks": {"model": True, "online_store": True},
    "model": {"name": "m", "version": 1, "bundle_sha256": "ab"},
}
DECIDED = {
    "request_id": "r",
    "decision": "approve",
    "score": 0.25,
    "rung": "online",
    "model": {"bundle_sha256": "ab"},
    "policy": {"sha256": "cd"},
}
FRAUD = smoke.decided({"approve", "review", "decline"})


def test_a_healthy_service_passes():
    assert smoke.ready(200, READY) == []
    assert FRAUD(200, DECIDED) == []
    assert smoke.answers(200, None) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ready": False}, "ready is False"),
        ({"checks": {"model": True, "online_store": False}}, "online_store fails"),
        ({"model": None}, "no model"),
    ],
)
def test_a_service_that_is_not_ready_is_seen(change, complaint):
    assert complaint in "; ".join(smoke.ready(200, READY | change))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"decision": "maybe"}, "none of approve"),
        ({"decision": None}, "decision None"),
        ({"score": None}, "score None"),
        ({"score": 1.5}, "score 1.5"),
        ({"rung": "rules_only"}, "not from the online store"),
        ({"request_id": ""}, "no request id"),
        ({"model": {}}, "no model"),
        ({"policy": None}, "no policy"),
    ],
)
def test_a_decision_that_is_none_is_seen(change, complaint):
    assert complaint in "; ".join(FRAUD(200, copy.deepcopy(DECIDED) | change))


def test_refusals_and_replies_that_are_no_json_are_seen():
    assert FRAUD(503, {"title": "overloaded"}) == ["status 503: overloaded"]
    assert FRAUD(200, None) == ["status 200: None"]
    assert smoke.ready(503, None) == ["status 503, no JSON object"]
    assert smoke.ready(503, READY) == ["status 503, ready is True"]
    assert smoke.answers(502, None) == ["status 502"]


def test_a_list_of_movies_has_scores_beyond_one():
    assert (
        smoke.decided({"recommend"}, probability=False)(
            200, DECIDED | {"decision": "recommend", "score": 5.7}
        )
        == []
    )


def test_a_service_that_does_not_answer_is_seen():
    def refuse(*_arguments):
        raise ConnectionRefusedError("refused")

    assert smoke.failures(smoke.PROBES[0], "http://127.0.0.1:1", None, refuse) == ["no answer: refused"]


def test_every_api_is_asked_for_a_decision_with_the_key_and_others_never_see_it():
    given = {}

    def remember(address, body, headers):
        given[address] = headers.get("X-API-Key")
        return 200, None

    for probe in smoke.PROBES:
        smoke.failures(probe, f"{probe.service}:", "key", remember)
    assert {address for address, key in given.items() if key} == {
        "fraud-detection-api:/predict",
        "customer-churn-api:/predict",
        "movie-recommendation-api:/recommend",
    }
    assert {probe.server for probe in smoke.PROBES} == {"server1", "server2", "server3"}


def test_the_command_line_says_what_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/demo_api_key").write_text("the-key\n")
    (tmp_path / "servers.env").write_text("SERVER1_HOST=10.1.0.1\nAPI_BIND=0.0.0.0\nSERVER3_HOST=10.1.0.3\n")
    monkeypatch.setenv("MLOPS_SERVERS_DIR", str(tmp_path))
    asked = []

    def reply(address, body, headers):
        asked.append((address, headers.get("X-API-Key")))
        return (200, READY) if address.endswith("/readyz") else (200, DECIDED | {"rung": "defaults"})

    monkeypatch.setattr(smoke.failures, "__defaults__", (reply,))
    arguments = ["smoke", "--server", "server3", "--only", "fraud-detection-api", "--wait", "0"]
    assert smoke.main(arguments) == 1
    said = capsys.readouterr().out
    assert "ok    fraud-detection-api /readyz\n" in said
    assert "FAILS fraud-detection-api /predict decided from 'defaults'" in said
    assert asked == [("http://127.0.0.1:8001/readyz", None), ("http://127.0.0.1:8001/predict", "the-key")]
    assert "the-key" not in said


def test_a_service_that_nobody_has_is_an_error(capsys):
    assert smoke.main(["smoke", "--server", "server1", "--only", "fraud-detection-api"]) == 2


def test_requests_are_as_the_services_document_them():
    openapi = smoke.places.REPOSITORY / "ml-model-services/openapi"
    for probe in smoke.PROBES:
        if probe.body is None:
            continue
        name = probe.service.replace("-", "_")
        document = json.loads((openapi / f"{name}.v1.json").read_text())
        body = document["paths"][probe.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body.get("required", [])) <= set(probe.body) <= set(body["properties"]), probe


def test_services_are_asked_where_the_stacks_publish_them():
    published = {}
    for file in (smoke.places.SETUPS).glob("*/*.yml"):
        for variable, port in re.findall(r'"\$\{([A-Z0-9_]+)[^}]*\}:(\d+):\d+"', file.read_text()):
            published[int(port)] = variable
    known = {name: f"10.0.0.{number}" for number, name in enumerate(sorted(set(published.values())), start=1)}
    for probe in smoke.PROBES:
        assert smoke.base_address(probe, known) == f"http://{known[published[probe.port]]}:{probe.port}", (
            probe
        )
