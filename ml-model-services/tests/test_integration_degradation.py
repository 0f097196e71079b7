"""The small versions of the faults in `faults/`: the online store away and lying, overload, and an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from faults import drain, online_store, overload, store_proxy
from faults.fraud_service import BODIES, ENTITIES, FraudService, fraud_service
from faults.load import percentile

pytestmark = pytest.mark.integration


def assert_met(results: list[dict[str, Any]]) -> None:
    assert [line for line in results if not line["met"]] == []


@pytest.fixture(scope="module")
def service() -> Iterator[FraudService]:
    with fraud_service(drain_seconds=drain.DRAIN_SECONDS) as service:
        yield service


def test_the_store_killed_paused_and_cut_off_is_answered_for_and_found_again(service: FraudService) -> None:
    assert_met(online_store.results_of(service, online_store.SCALES["small"]))


def test_five_times_the_peak_costs_the_requests_that_are_refused_not_those_that_are_served(
    service: FraudService,
) -> None:
    assert_met(overload.results_of(service, overload.SCALES["small"]))


def test_an_end_under_load_fails_no_request(service: FraudService) -> None:
    assert_met(drain.results_of(service, "small"))


def test_a_service_that_starts_while_the_store_is_away_knows_what_the_last_one_read(
    service: FraudService,
) -> None:
    """Runs after the service was ended."""
    service.store.kill()
    service.process.start()
    service.process.wait("/livez")

    def asked(body: str) -> dict[str, Any]:
        reply = service.process.http.post(
            "/predict", content=body, headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 200, reply.text
        document: dict[str, Any] = reply.json()
        return document

    known, stranger = asked(BODIES[0]), asked(BODIES[ENTITIES])
    assert (known["rung"], known["degraded"]) == ("snapshot", True)
    assert set(known["feature_status"].values()) == {"snapshot"}
    assert (stranger["rung"], stranger["degraded"]) == ("defaults", True)
    assert "unavailable" in stranger["feature_status"].values()


def test_a_proxy_that_mixes_replies_up_never_gives_another_entitys_features() -> None:
    assert_met(store_proxy.run("small")["results"])


def test_the_percentile_of_the_figures_is_that_of_the_values() -> None:
    assert percentile([0.3, 0.1, 0.2], 0.99) == 0.3
    assert percentile([float(n) for n in range(100)], 0.5) == 50
