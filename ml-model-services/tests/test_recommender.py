from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recommender_testkit import (
    BLEND,
    FEATURES,
    MOVIES,
    arrays,
    content_row,
    golden,
    model_bytes,
    naive_scores,
    recommender_bundle,
)

from common_service_libs.errors import BundleError
from common_service_libs.recommender import NewMovies, parse_model
from common_service_libs.recommender_bundle import difference, load_recommender

MODEL = parse_model(model_bytes())
HISTORIES = st.lists(st.integers(0, 2 * MOVIES + 3), max_size=30)
IDENTITY = {"model_name": "movie-recommendation-model", "feature_service": "movie_recommendation_v1"}


@settings(max_examples=60, deadline=None)
@given(history=HISTORIES)
def test_scores_are_those_of_the_formula(history: list[int]) -> None:
    wanted = naive_scores(0, history)
    found = MODEL.rank(history, exclude_seen=False)
    assert sorted(found.movie_ids.tolist()) == sorted(wanted)
    for movie, score in zip(found.movie_ids.tolist(), found.scores.tolist(), strict=True):
        assert score == pytest.approx(wanted[movie], abs=2e-4)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize("blend", [{"als_share": 0.0}, {"als_share": 1.0}, {"content_share": 1.0}])
def test_every_share_of_the_mixture_counts(blend: dict[str, float]) -> None:
    history = [1, 5, 9, 33, 41]
    wanted = naive_scores(3, history, **blend)
    found = parse_model(model_bytes(3, **blend)).rank(history, exclude_seen=False)
    given_scores = dict(zip(found.movie_ids.tolist(), found.scores.tolist(), strict=True))
    assert given_scores == pytest.approx(wanted, abs=2e-4)
    assert wanted != pytest.approx(naive_scores(3, history), abs=0.05)


@settings(max_examples=60, deadline=None)
@given(history=HISTORIES, limit=st.integers(1, MOVIES + 5))
def test_a_list_is_the_beginning_of_the_whole_ranking_without_what_was_seen(
    history: list[int], limit: int
) -> None:
    whole, part = MODEL.rank(history), MODEL.rank(history, limit=limit)
    assert part.movie_ids.tolist() == whole.movie_ids.tolist()[:limit]
    assert not set(whole.movie_ids.tolist()) & set(history)


@settings(max_examples=40, deadline=None)
@given(history=HISTORIES)
def test_the_parts_of_a_score_add_up_to_it_and_name_movies_of_the_history(history: list[int]) -> None:
    found = MODEL.rank(history, limit=20)
    parts = MODEL.explain(history, found.movie_ids.tolist(), nearest=1000)
    for part, score in zip(parts, found.scores.tolist(), strict=True):
        assert part.history + part.content + part.popularity == pytest.approx(score, abs=1e-4)
        assert part.score == pytest.approx(score, abs=1e-4)
        assert {movie for movie, _ in part.because} <= set(history)
        assert [added for _, added in part.because] == sorted(
            (added for _, added in part.because), reverse=True
        )


def test_what_a_movie_of_the_history_adds_is_what_is_missing_without_it() -> None:
    """EASE is a sum over the history, standardised: differences of raw scores are the contributions."""
    model = parse_model(model_bytes(0, als_share=0.0))
    history = [1, 5, 9, 33, 41]
    target = model.rank(history, limit=1).movie_ids.tolist()[0]
    [part] = model.explain(history, [target], nearest=1000)
    a = arrays()
    warm = (a["movie_ids"][a["warm"]]).tolist()
    j = warm.index(target)
    raw = {
        movie: float(a["ease_in"][i] * (a["ease_factors"][i] @ a["ease_factors"][j]) * a["ease_out"][j])
        for movie in history
        if movie in warm and (i := warm.index(movie)) != j
    }
    ranked = sorted((movie for movie, added in raw.items() if added > 0), key=lambda m: -raw[m])
    assert [movie for movie, _ in part.because] == ranked
    first, second = part.because[:2]
    assert first[1] / second[1] == pytest.approx(raw[first[0]] / raw[second[0]], rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_movie_of_the_history_is_no_reason_for_itself_in_ease(share: float) -> None:
    model = parse_model(model_bytes(0, als_share=share))
    history = [1, 5, 9, 33, 41]
    ranked = model.rank(history, exclude_seen=False)
    scores = dict(zip(ranked.movie_ids.tolist(), ranked.scores.tolist(), strict=True))
    for movie, part in zip(history, model.explain(history, history, nearest=1000), strict=True):
        assert part.score == pytest.approx(scores[movie], abs=1e-4)
        if share == 0.0:
            assert movie not in [near for near, _ in part.because]


def test_new_movies_are_ranked_by_content_and_by_the_popularity_of_nothing() -> None:
    rows = [[*[0.0] * 9, 1.0, 1.0, 5.0], [None] * len(FEATURES)]
    content = MODEL.content_of(rows)
    assert content.tolist() == [
        pytest.approx(content_row(("thriller",), 5.0)),
        pytest.approx(content_row(None, None)),
    ]
    new = NewMovies(np.array([1000, 1001]), content)
    found = MODEL.rank([1, 5, 9, 1001], new_movies=new)
    assert 1000 in found.movie_ids
    assert 1001 not in found.movie_ids  # it stands in the history
    [part] = MODEL.explain([1, 5, 9], [1000], new)
    place = found.movie_ids.tolist().index(1000)
    alone = MODEL.rank([1, 5, 9], new_movies=new)
    score = alone.scores.tolist()[alone.movie_ids.tolist().index(1000)]
    assert part.score == pytest.approx(score, abs=1e-4)
    assert (part.history, part.because) == (0.0, ())
    assert place >= 0


def test_an_empty_model_of_movies_without_ratings_still_ranks() -> None:
    a = arrays()
    none = {name: a[name][:0] for name in ("ease_factors", "ease_in", "ease_out", "als_factors", "warm")}
    buffer = io.BytesIO()
    text = np.frombuffer(
        json.dumps(
            {
                "blend": BLEND, "als_regularization": 3.0, "als_confidence": 5.0,
                "content_features": list(FEATURES),
            }
        ).encode(), dtype=np.uint8,
    )  # fmt: skip
    np.savez(buffer, **(a | none), parameters=text)
    assert len(parse_model(buffer.getvalue()).rank([1, 3]).movie_ids) == MOVIES - 2


def test_a_bundle_is_verified_and_reproduces_its_golden_lists(tmp_path: Path) -> None:
    sha256 = recommender_bundle(tmp_path / "bundle")
    bundle = load_recommender(tmp_path / "bundle", **IDENTITY, expected_sha256=sha256)
    assert bundle.sha256 == sha256
    assert bundle.contract.name == "movie_recommendation_v1"


def broken(**changes: object) -> bytes:
    lists = golden(MODEL)
    lists[2] = lists[2] | changes
    return json.dumps(lists).encode()


def npz(**changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(model_bytes())) as archive:
        held = {name: archive[name] for name in archive.files}
    buffer = io.BytesIO()
    np.savez(buffer, **(held | changes))
    return buffer.getvalue()


SCORES = golden(MODEL)[2]["scores"]
IDS = golden(MODEL)[2]["movie_ids"]
FAULTS = {
    "golden list 'some': place 1": {"golden.json": broken(scores=[SCORES[0] + 0.01, *SCORES[1:]])},
    "golden list 'some': movie 2": {"golden.json": broken(movie_ids=[2, *IDS[1:]])},
    "golden list 'some': expected 9 movies": {"golden.json": broken(movie_ids=IDS[:9], scores=SCORES[:9])},
    "holds no lists": {"golden.json": b"[]"},
    "cannot be read": {"golden.json": b"{"},
    "read as npz": {"model.npz": b"not an archive"},
    "not the arrays": {"model.npz": npz(more=np.zeros(1))},
    "wrong shape": {"model.npz": npz(ease_in=np.zeros(2, dtype=np.float32))},
    "ascending": {"model.npz": npz(movie_ids=np.zeros(MOVIES, dtype=np.int64))},
    "not in its catalogue": {"model.npz": npz(warm=np.full(len(arrays()["warm"]), 999))},
    "not numbers": {"model.npz": npz(content_map=np.full((19, 19), np.nan))},
    "as npz": {"model.npz": npz(support=np.array([object()] * MOVIES))},
}


@pytest.mark.parametrize(("said", "tamper"), FAULTS.items(), ids=FAULTS)
def test_a_bundle_with_a_fault_is_refused(tmp_path: Path, said: str, tamper: dict[str, bytes]) -> None:
    recommender_bundle(tmp_path / "bundle", tamper=tamper)
    with pytest.raises(BundleError, match=said):
        load_recommender(tmp_path / "bundle", **IDENTITY)


def test_a_changed_byte_another_model_or_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    recommender_bundle(folder)
    with pytest.raises(BundleError, match="not of other"):
        load_recommender(folder, model_name="other", feature_service="movie_recommendation_v1")
    with pytest.raises(BundleError, match="not on fraud"):
        load_recommender(folder, model_name=IDENTITY["model_name"], feature_service="fraud_detection_v1")
    with pytest.raises(BundleError, match="registered"):
        load_recommender(folder, **IDENTITY, expected_sha256="0" * 64)
    content = bytearray((folder / "model.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.npz").write_bytes(content)
    with pytest.raises(BundleError, match="hash"):
        load_recommender(folder, **IDENTITY)


def test_movies_may_change_places_only_where_scores_are_equal() -> None:
    assert difference([1, 2], [1.0, 1.0], [2, 1], [1.0, 1.0]) == ""
    assert difference([1, 2], [1.0, 0.5], [2, 1], [1.0, 0.5]) != ""
    assert (
        difference([1, 2], [1.0, 0.5], [1, 3], [1.0, 0.5]) == ""
    )  # the last place is tied with what follows
    assert "movie 1 is missing" in difference([1, 2], [1.0, 0.5], [3, 2], [1.0, 0.5])
