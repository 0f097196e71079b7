from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from app.main import create_app
from app.schemas import ListExplanation, RecommendationReply
from conftest import HISTORY, VIEWER, Service
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recommender_testkit import GENRES, MOVIES, arrays, model_bytes
from service_testkit import CONTRACTS, KEY, NARROW_KEY, until

from common_service_libs.label_engine.lists import NO_LISTS, EntityLists
from common_service_libs.recommender import parse_model
from common_service_libs.schemas import DecisionDocument, ModelDocument, Readiness

pytestmark = pytest.mark.anyio
MODEL = parse_model(model_bytes())
IDS = arrays()["movie_ids"].tolist()
CONTENT = arrays()["content"]


def ids_of(reply: dict[str, Any]) -> list[int]:
    return [movie["movie_id"] for movie in reply["movies"]]


def genres_of(movie: int) -> set[str]:
    row = CONTENT[IDS.index(movie)]
    return {genre for genre, flag in zip(GENRES, row[2:12], strict=True) if flag}


# --- lists ----------------------------------------------------------------------------------------


async def test_a_known_viewer_gets_the_models_list_recorded_and_replayed_to_the_same_one(
    service: Service,
) -> None:
    response = await service.http.post("/recommend", json={"viewer_id": VIEWER})
    reply = RecommendationReply.model_validate_json(response.content, strict=True)
    wanted = MODEL.rank(HISTORY, limit=10)
    assert [movie.movie_id for movie in reply.movies] == wanted.movie_ids.tolist()
    assert [movie.score for movie in reply.movies] == pytest.approx(wanted.scores.tolist())
    assert reply.score == reply.movies[0].score
    assert (reply.decision, reply.reason_codes) == ("recommend", ["VIEWER_HISTORY"])
    assert (reply.degraded, reply.rung, reply.viewer_rating_count) == (False, "online", 4)
    assert reply.feature_status == {"viewer_history": "present"}

    recorded = await service.http.get(f"/decisions/{reply.request_id}")
    document = DecisionDocument.model_validate_json(recorded.content)
    assert document.entity_ids == {"viewer_id": VIEWER}
    assert document.features == {"viewer_rated_movie_ids": "1,5,9,33"}
    assert document.result is not None
    assert [one["movie_id"] for one in document.result["movies"]] == wanted.movie_ids.tolist()

    await until(lambda: reply.request_id in service.store.rows)
    explained = await service.http.post(f"/decisions/{reply.request_id}/explain")
    explanation = ListExplanation.model_validate_json(explained.content, strict=True)
    assert explanation.reproduced
    assert [movie.movie_id for movie in explanation.movies] == wanted.movie_ids.tolist()
    for movie in explanation.movies:
        assert movie.history + movie.content + movie.popularity == pytest.approx(movie.score, abs=1e-4)
        assert {near.movie_id for near in movie.because_of} <= set(HISTORY)
        assert set(movie.genres) == genres_of(movie.movie_id)
    assert any(movie.because_of for movie in explanation.movies)


async def test_a_list_that_was_altered_is_not_called_reproduced(service: Service) -> None:
    reply = await service.ask(viewer_id=VIEWER)
    record = await service.runtime.decisions.find(reply["request_id"])
    assert record.result is not None
    record.result["movies"][0]["score"] += 0.5
    explanation = service.runtime.decisions._explain(record, 1.0)
    assert explanation["reproduced"] is False
    record.result["movies"] = record.result["movies"][1:]
    assert service.runtime.decisions._explain(record, 1.0)["reproduced"] is False


async def test_the_history_of_the_request_comes_after_the_stored_one(service: Service) -> None:
    reply = await service.ask(viewer_id=VIEWER, history=[9, 41])
    assert ids_of(reply) == MODEL.rank([*HISTORY, 41], limit=10).movie_ids.tolist()
    assert reply["viewer_rating_count"] == 5
    alone = await service.ask(history=HISTORY)
    assert ids_of(alone) == MODEL.rank(HISTORY, limit=10).movie_ids.tolist()
    assert (alone["feature_status"], alone["degraded"]) == ({}, False)
    assert service.redis.reads == 1  # nobody was asked for the history that was given


async def test_a_viewer_nobody_knows_gets_what_is_popular_and_is_labelled_new(service: Service) -> None:
    reply = await service.ask(viewer_id=7)
    assert reply["reason_codes"] == ["NEW_VIEWER"]
    assert reply["feature_status"] == {"viewer_history": "missing"}
    assert (reply["degraded"], reply["rung"], reply["viewer_rating_count"]) == (False, "online", 0)
    same = await service.ask(history=[])
    assert ids_of(same) == ids_of(reply)
    seldom = {movie for movie, n in zip(IDS, arrays()["support"], strict=True) if 0 < n < 3}
    assert seldom
    assert not seldom & set(ids_of(await service.ask(history=[], k=MOVIES)))


async def test_filters_shape_the_list(service: Service) -> None:
    whole = ids_of(await service.ask(viewer_id=VIEWER, k=MOVIES))
    assert len(ids_of(await service.ask(viewer_id=VIEWER, k=3))) == 3
    assert not set(whole) & set(HISTORY)
    seen = ids_of(await service.ask(viewer_id=VIEWER, k=MOVIES, exclude_seen=False))
    assert set(HISTORY) <= set(seen)
    assert ids_of(await service.ask(viewer_id=VIEWER, only=[*whole[3:6], 1, 9999])) == whole[3:6]
    assert ids_of(await service.ask(viewer_id=VIEWER, exclude=whole[:2], k=4)) == whole[2:6]
    dramas = ids_of(await service.ask(viewer_id=VIEWER, genres=["Drama", "Sci-Fi"], k=MOVIES))
    assert dramas == [movie for movie in whole if genres_of(movie) & {"drama", "scifi"}]
    mixed = ids_of(await service.ask(viewer_id=VIEWER, max_per_genre=1, k=MOVIES))
    counts = [genre for movie in mixed for genre in genres_of(movie)]
    assert len(counts) == len(set(counts)) > 5
    assert mixed[0] == whole[0]


async def test_nothing_left_is_a_reply_of_its_own(service: Service) -> None:
    reply = await service.ask(viewer_id=VIEWER, only=[9999])
    assert (reply["decision"], reply["movies"], reply["score"]) == ("none", [], None)
    assert reply["reason_codes"] == ["NO_MOVIE_LEFT"]
    refused = await service.http.post(f"/decisions/{reply['request_id']}/explain")
    assert refused.status_code == 409


async def test_what_the_policy_hides_is_recorded_and_stays_hidden_in_a_replay(service: Service) -> None:
    movies = [
        {"movie_id": 1000},
        {"movie_id": 1001, "genres": ["Drama"], "year": 2020},
        {"movie_id": 1002, "genres": [], "year": 2020},
    ]
    reply = await service.ask("recommend_new_movies", viewer_id=VIEWER, movies=movies)
    assert ids_of(reply) == [1001]
    assert "nothing-known-of-movie" in reply["rules_fired"]
    record = await service.runtime.decisions.find(reply["request_id"])
    assert record.result is not None
    hidden = {one["movie_id"] for one in record.result["hidden"]}
    assert hidden <= {1000, 1002}
    explanation = (await service.http.post(f"/decisions/{reply['request_id']}/explain")).json()
    assert explanation["reproduced"] is True
    assert [one["movie_id"] for one in explanation["movies"]] == [1001]
    assert explanation["movies"][0]["genres"] == ["drama"]


async def test_a_withdrawn_movie_is_hidden_and_the_next_one_takes_its_place(service: Service) -> None:
    whole = ids_of(await service.ask(viewer_id=VIEWER, k=MOVIES))
    service.runtime.decisions.lists = EntityLists({"withdrawn_movies": {f"movie_id:{whole[1]}": math.inf}})
    reply = await service.ask(viewer_id=VIEWER, k=4)
    assert ids_of(reply) == [whole[0], *whole[2:5]]
    assert reply["hidden_count"] == 1
    assert "withdrawn" in reply["rules_fired"]
    service.runtime.decisions.lists = NO_LISTS
    explanation = (await service.http.post(f"/decisions/{reply['request_id']}/explain")).json()
    assert explanation["reproduced"] is True


# --- new movies -----------------------------------------------------------------------------------


async def test_new_movies_are_ranked_by_what_they_are(service: Service) -> None:
    movies = [
        {"movie_id": 2000 + at, "genres": [genre], "year": 2000}
        for at, genre in enumerate(("Drama", "Sci-Fi", "Comedy", "War"))
    ]
    reply = await service.ask("recommend_new_movies", viewer_id=VIEWER, movies=[*movies, {"movie_id": 1}])
    assert sorted(ids_of(reply)) == [2000, 2001, 2002, 2003]
    assert reply["left_out"] == [1]
    scores = [movie["score"] for movie in reply["movies"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


async def test_without_movies_those_that_nobody_rated_are_ranked(service: Service) -> None:
    reply = await service.ask("recommend_new_movies", viewer_id=VIEWER, k=100)
    unrated = {movie for movie, n in zip(IDS, arrays()["support"], strict=True) if n == 0}
    ranked = MODEL.rank(HISTORY).movie_ids.tolist()
    known = {movie for movie in unrated if CONTENT[IDS.index(movie)][12] > 0}  # it has genres
    assert ids_of(reply) == [movie for movie in ranked if movie in known]
    assert reply["hidden_count"] == len(unrated - known)


# --- while something is away ----------------------------------------------------------------------


async def test_while_the_store_is_silent_the_list_is_made_from_what_is_at_hand(service: Service) -> None:
    service.redis.mode = "silent"
    reply = await service.ask(viewer_id=7)
    assert (reply["degraded"], reply["rung"]) == (True, "defaults")
    assert reply["reason_codes"] == ["NEW_VIEWER", "FEATURES_DEGRADED"]
    assert reply["feature_status"] == {"viewer_history": "unavailable"}
    given_history = await service.ask(viewer_id=7, history=HISTORY)
    assert ids_of(given_history) == MODEL.rank(HISTORY, limit=10).movie_ids.tolist()
    assert given_history["degraded"] is True
    assert service.metric("decision_rung_total", rung="defaults") == 2
    service.redis.mode = "answer"
    await until(lambda: service.runtime.link.up)
    assert (await service.ask(viewer_id=VIEWER))["rung"] == "online"


async def test_a_history_that_was_read_before_outlives_the_silence_of_the_store(service: Service) -> None:
    before = await service.ask(viewer_id=VIEWER)
    service.redis.mode = "silent"
    reply = await service.ask(viewer_id=VIEWER)
    assert (reply["rung"], reply["degraded"]) == ("snapshot", True)
    assert ids_of(reply) == ids_of(before)
    assert reply["reason_codes"] == ["VIEWER_HISTORY", "FEATURES_DEGRADED"]


@pytest.mark.parametrize("text", ["1,two,3", "1;2", ",", "1,,2", "1.5"])
async def test_a_history_that_cannot_be_read_is_degraded_and_no_failure(service: Service, text: str) -> None:
    service.put_history(8, text)
    reply = await service.ask(viewer_id=8)
    assert reply["feature_status"] == {"viewer_history": "invalid"}
    assert reply["degraded"] is True
    assert reply["reason_codes"] == ["NEW_VIEWER", "FEATURES_DEGRADED"]
    explanation = await service.http.post(f"/decisions/{reply['request_id']}/explain")
    assert explanation.json()["reproduced"] is True


async def test_a_history_that_is_null_is_a_new_viewers(service: Service) -> None:
    service.put_history(8, None)
    reply = await service.ask(viewer_id=8)
    assert (reply["degraded"], reply["reason_codes"]) == (False, ["NEW_VIEWER"])


# --- the interface --------------------------------------------------------------------------------


async def test_the_same_request_id_gives_the_recorded_list_and_another_body_a_conflict(
    service: Service,
) -> None:
    headers = {"X-Request-ID": "again"}
    first = await service.ask(headers=headers, viewer_id=VIEWER)
    service.put_history(VIEWER, "3,7")
    assert await service.ask(headers=headers, viewer_id=VIEWER) == first
    for body in ({"viewer_id": VIEWER, "k": 3}, {"viewer_id": VIEWER + 1}):
        response = await service.http.post("/recommend", json=body, headers=headers)
        assert response.status_code == 409
    response = await service.http.post("/recommend_new_movies", json={"viewer_id": VIEWER}, headers=headers)
    assert response.status_code == 409


@pytest.mark.parametrize(
    ("route", "body", "pointer"),
    [
        ("recommend", {}, ""),
        ("recommend", {"viewer_id": "42"}, "/viewer_id"),
        ("recommend", {"viewer_id": 1, "k": 0}, "/k"),
        ("recommend", {"viewer_id": 1, "k": 101}, "/k"),
        ("recommend", {"viewer_id": 1, "genres": ["Noir"]}, "/genres/0"),
        ("recommend", {"viewer_id": 1, "movies": []}, "/movies"),
        ("recommend", {"history": [1.5]}, "/history/0"),
        ("recommend", {"history": [0] * 2501}, "/history"),
        ("recommend_new_movies", {"viewer_id": 1, "only": [1]}, "/only"),
        ("recommend_new_movies", {"viewer_id": 1, "movies": [{"movie_id": 1}, {"movie_id": 1}]}, ""),
        ("recommend_new_movies", {"viewer_id": 1, "movies": [{"movie_id": 1, "year": 1}]}, "/movies/0/year"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(
    service: Service, route: str, body: dict[str, Any], pointer: str
) -> None:
    response = await service.http.post(f"/{route}", json=body)
    assert response.status_code == 422
    assert pointer in [error["pointer"] for error in response.json()["errors"]]


async def test_a_route_wants_its_scope(service: Service) -> None:
    for key, status in (("", 401), ("wrong", 401), (NARROW_KEY, 403), (KEY, 200)):
        for route in ("recommend", "recommend_new_movies"):
            response = await service.http.post(
                f"/{route}", json={"viewer_id": VIEWER}, headers={"X-API-Key": key}
            )
            assert response.status_code == status


async def test_model_readiness_and_document_tell_what_is_served(service: Service) -> None:
    model = ModelDocument.model_validate_json((await service.http.get("/model")).content)
    assert (model.model_kind, model.feature_service) == ("recommender", "movie_recommendation_v1")
    ready = Readiness.model_validate_json((await service.http.get("/readyz")).content)
    assert ready.ready
    document = (await service.http.get("/openapi.json")).json()
    assert {"/recommend", "/recommend_new_movies", "/decisions/{request_id}/explain"} <= set(
        document["paths"]
    )
    assert "ListExplanation" in json.dumps(document["paths"]["/decisions/{request_id}/explain"])


async def test_no_body_whatsoever_is_a_server_error(service: Service) -> None:
    names = st.sampled_from(["viewer_id", "history", "k", "exclude", "genres", "movies", "max_per_genre"])
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.just("movie_id"), inner),
    )
    bodies: list[bytes] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, values).map(lambda value: json.dumps({"history": [1]} | value).encode()))
    def collect(body: bytes) -> None:
        bodies.append(body)

    await asyncio.to_thread(collect)
    for body in bodies:
        for route in ("recommend", "recommend_new_movies"):
            headers = {"Content-Type": "application/json"}
            response = await service.http.post(f"/{route}", content=body, headers=headers)
            assert response.status_code < 500, body


def test_the_copy_of_the_history_contract_is_the_published_one() -> None:
    own = Path(create_app.__code__.co_filename).parents[1] / "contracts" / "viewer_history_v1.yaml"
    published = CONTRACTS / "feature_services" / "viewer_history_v1.yaml"
    assert yaml.safe_load(own.read_text()) == yaml.safe_load(published.read_text())
