"""The recommendation service as a process, on the real stack."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from recommender_testkit import model_bytes, recommender_bundle
from service_testkit import NOON, PROJECT, Hash, put_view
from stack_testkit import (
    ServiceProcess,
    fill_online_store,
    forget,
    recorded,
    redis_client,
    register,
    unique,
    unregister,
)

from common_service_libs.recommender import parse_model

pytestmark = pytest.mark.integration
VIEWER, HISTORY = 42, [1, 5, 9, 33]


def test_a_list_through_the_real_stack(tmp_path: Path) -> None:
    name = unique("movie-recommendation-model")
    register(name, tmp_path / "bundle", recommender_bundle(tmp_path / "bundle", model_name=name))
    store: dict[bytes, Hash] = {}
    values = {"viewer_rated_movie_ids": ",".join(map(str, HISTORY))}
    put_view(store, "viewer_id", VIEWER, "viewer_history", values, NOON)
    fill_online_store(store)
    service = ServiceProcess("movie_recommendation_api", tmp_path, model_name=name, feast_project=PROJECT)
    request_id = unique("movies")
    try:
        service.wait()
        headers = {"X-Request-ID": request_id}
        reply = service.http.post("/recommend", json={"viewer_id": VIEWER}, headers=headers).json()
        wanted = parse_model(model_bytes()).rank(HISTORY, limit=10).movie_ids.tolist()
        assert [movie["movie_id"] for movie in reply["movies"]] == wanted
        assert reply["feature_status"] == {"viewer_history": "present"}
        again = service.http.post("/recommend", json={"viewer_id": VIEWER}, headers=headers).json()
        assert again == reply
        deadline = time.monotonic() + 10
        while request_id not in recorded([request_id]):
            assert time.monotonic() < deadline, service.log()
            time.sleep(0.05)
        document = service.http.get(f"/decisions/{request_id}").json()
        assert [movie["movie_id"] for movie in document["result"]["movies"]] == wanted
        service.kill()
        service.start()  # its own spool is empty now: what is explained comes from the database
        service.wait()
        explanation = service.http.post(f"/decisions/{request_id}/explain").json()
        assert explanation["reproduced"] is True
        new = service.http.post("/recommend", json={"viewer_id": 10**12}).json()
        assert new["reason_codes"] == ["NEW_VIEWER"]
    finally:
        service.close()
        unregister(name)
        redis_client().delete(*store)
        forget(request_id)
