"""A recommender's bundle is refused unless it is, byte for byte, what was released; its lists are exact."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import BundleError, DataError, SchemaMismatchError
from common_ml_utils.hybrid_recommender import (
    NOTHING,
    BlendWeights,
    HybridArrays,
    HybridParameters,
    HybridRecommender,
    content_features,
    content_matrix,
    top_positions,
)
from common_ml_utils.mlflow_utils import load_bundle
from common_ml_utils.recommender_bundle import (
    RecommenderBundle,
    RecommenderContents,
    golden_list,
    write_recommender_bundle,
)
from common_ml_utils.release_bundle import ReleaseBundle, TrainingInterval

FEATURES = ("movie_is_comedy", "movie_is_thriller", "movie_genre_count", "movie_age_years")
CONTRACT = {
    "name": "movie_recommendation_v1",
    "version": 1,
    "entities": [
        {"name": "viewer", "join_key": "viewer_id", "type": "int64"},
        {"name": "movie", "join_key": "movie_id", "type": "int64"},
    ],
    "request": [],
    "views": [],
    "features": [{"name": name, "source": "profile", "type": "float64"} for name in FEATURES],
}
MOVIES = 40
NEW = pd.DataFrame(
    [[5000, 1.0, 0.0, 1.0, 2.0], [5001, None, None, None, None]], columns=["movie_id", *FEATURES]
)


def make_model(seed: int = 0, **blend: float) -> HybridRecommender:
    """Return a model of random arrays: movies 10, 20, .. of which the first half have ratings enough."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "movie_is_comedy": rng.integers(0, 2, MOVIES),
            "movie_is_thriller": rng.integers(0, 2, MOVIES),
            "movie_genre_count": 1,
            "movie_age_years": rng.uniform(0, 60, MOVIES),
        }
    )
    content = content_matrix(frame, FEATURES)
    warm = MOVIES // 2
    arrays = HybridArrays(
        movie_ids=np.arange(1, MOVIES + 1) * 10,
        support=rng.integers(0, 50, MOVIES).astype(np.int32),
        content=content,
        content_map=rng.normal(size=(content.shape[1],) * 2),
        warm=np.arange(warm, dtype=np.int32),
        ease_factors=rng.normal(size=(warm, 6)).astype(np.float32),
        ease_in=rng.uniform(0.5, 1, warm).astype(np.float32),
        ease_out=rng.uniform(0.5, 1, warm).astype(np.float32),
        als_factors=rng.normal(size=(warm, 3)).astype(np.float32),
    )
    weights = {
        "als_share": 0.5,
        "content_share": 0.1,
        "viewer_strength": 5.0,
        "movie_strength": 3.0,
        "prior_scale": 0.5,
        "popularity_scale": 2.0,
        **blend,
    }
    return HybridRecommender(arrays, HybridParameters(BlendWeights(**weights), 1.0, 10.0, FEATURES))


def make_contents(model: HybridRecommender) -> RecommenderContents:
    rng = np.random.default_rng(1)
    histories = [sorted(rng.choice(MOVIES, size, replace=False) * 10 + 10) for size in range(1, 19)]
    golden = [golden_list(model, f"viewer {number}", history) for number, history in enumerate(histories)]
    golden += [
        golden_list(model, "new viewer", []),
        golden_list(model, "unknown movies", [1, 2, 3]),
        golden_list(model, "new movies", histories[3], 60, new_movies=NEW),
        golden_list(model, "seen movies stay", histories[3], exclude_seen=False),
    ]
    time = datetime(2016, 1, 1, tzinfo=UTC)
    return RecommenderContents(
        model_name="test-recommender",
        model=model,
        contract=PublishedContract.parse(json.dumps(CONTRACT)),
        reference={"score": {"edges": [0.0], "counts": [1, 2], "null_count": 0}},
        golden=golden,
        training=TrainingInterval(
            start=time, end=time, holdout_start=time, holdout_end=time, rows=9, positives=9
        ),
        label_policy_version="known when given",
        git_commit="abc",
        data_version="def",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recommender_bundle(make_contents(make_model()), tmp_path / "bundle")
    return tmp_path / "bundle"


def seal(folder: Path) -> None:
    """Make the manifest agree with files that were changed, as someone would who forges a bundle."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_recommender_bundle(make_contents(make_model()), tmp_path / "one")
    second = write_recommender_bundle(make_contents(make_model()), tmp_path / "two")
    assert first == second
    assert write_recommender_bundle(make_contents(make_model(7)), tmp_path / "three") != first


def test_a_bundle_loads_as_the_class_of_its_kind(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert isinstance(bundle, RecommenderBundle)
    assert bundle.packaging().input_example["movie_ids"].tolist() == [g.history for g in bundle.golden[:3]]
    with pytest.raises(BundleError, match="not one of a classifier"):
        ReleaseBundle.load(folder)


def test_one_flipped_byte_anywhere_is_found_before_anything_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(content: bytes) -> HybridRecommender:
        pytest.fail("an altered file was parsed")

    monkeypatch.setattr(HybridRecommender, "from_bytes", parsed)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(bytes([*whole[:-3], whole[-3] ^ 1, *whole[-2:]]))
        with pytest.raises(BundleError):
            RecommenderBundle.load(
                folder, hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
            )
        path.write_bytes(whole)


def test_a_half_uploaded_bundle_and_another_identity_are_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="the registry says"):
        RecommenderBundle.load(folder, "0" * 64)
    (folder / "model.npz").unlink()
    with pytest.raises(BundleError, match=r"model.npz can't be read"):
        RecommenderBundle.load(folder)


def pickled(content: bytes) -> bytes:
    return pickle.dumps({"movie_ids": [1, 2, 3]})


def object_array(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with np.load(io.BytesIO(content)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(buffer, **{**arrays, "movie_ids": np.array([{}, []], dtype=object)})
    return buffer.getvalue()


def without_support(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with np.load(io.BytesIO(content)) as archive:
        np.savez(buffer, **{name: archive[name] for name in archive.files if name != "support"})
    return buffer.getvalue()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("forge", [pickled, object_array, without_support, cut], ids=lambda f: f.__name__)
def test_a_forged_model_file_is_refused_though_its_hash_is_right(
    folder: Path, forge: Callable[[bytes], bytes]
) -> None:
    path = folder / "model.npz"
    path.write_bytes(forge(path.read_bytes()))
    seal(folder)
    with pytest.raises(BundleError, match=r"the model (can't be read as npz|holds|file is no recommender)"):
        RecommenderBundle.load(folder)


def test_a_model_that_answers_otherwise_than_its_golden_lists_is_refused(folder: Path) -> None:
    (folder / "model.npz").write_bytes(make_model(3).to_bytes())
    seal(folder)
    with pytest.raises(BundleError, match="golden list 'viewer 0'"):
        RecommenderBundle.load(folder)


def test_a_golden_list_of_new_movies_is_checked_too(folder: Path) -> None:
    golden = json.loads((folder / "golden.json").read_text())
    [new] = [row for row in golden if row["name"] == "new movies"]
    new["new_movies"][0]["movie_is_thriller"] = 1.0
    (folder / "golden.json").write_text(json.dumps(golden))
    seal(folder)
    with pytest.raises(BundleError, match="golden list 'new movies', one-viewer path"):
        RecommenderBundle.load(folder)


def test_too_few_golden_lists_and_features_unknown_to_the_service_are_refused(tmp_path: Path) -> None:
    contents = make_contents(make_model())
    with pytest.raises(BundleError, match="2 golden lists, at least 20"):
        write_recommender_bundle(replace(contents, golden=contents.golden[:2]), tmp_path / "few")
    other = {**CONTRACT, "features": CONTRACT["features"][1:]}  # type: ignore[index]
    contract = PublishedContract.parse(json.dumps(other))
    write_recommender_bundle(replace(contents, contract=contract), tmp_path / "other")
    with pytest.raises(BundleError, match="lacks: \\['movie_is_comedy'\\]"):
        RecommenderBundle.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"movie_ids": np.arange(MOVIES)[::-1]}, "not in ascending order"),
        ({"support": np.zeros(3, dtype=np.int32)}, "wrong shape: \\['support'\\]"),
        ({"ease_in": np.full(MOVIES // 2, np.nan, dtype=np.float32)}, "not numbers"),
    ],
)
def test_impossible_arrays_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    model = make_model()
    with pytest.raises(BundleError, match=message):
        HybridRecommender(replace(model.arrays, **change), model.parameters)


# --- lists ------------------------------------------------------------------------------------------------


def naive_scores(model: HybridRecommender, history: list[int]) -> np.ndarray:
    """Score one viewer as the module's first lines say it, movie by movie."""
    arrays, parameters, blend = model.arrays, model.parameters, model.parameters.blend
    ids = arrays.movie_ids.tolist()
    known = sorted({ids.index(movie) for movie in history if movie in ids})
    warm = [position for position in known if position in arrays.warm]
    size = len(arrays.warm)
    f, a = arrays.ease_factors.astype(float), arrays.als_factors.astype(float)
    ease = np.array(
        [
            sum(arrays.ease_in[i] * f[i] @ f[j] * arrays.ease_out[j] for i in warm if i != j)
            for j in range(size)
        ]
    )
    confidence = np.diag([parameters.als_confidence if j in warm else 1.0 for j in range(size)])
    wanted = np.array([1.0 if j in warm else 0.0 for j in range(size)])
    left = a.T @ confidence @ a + parameters.als_regularization * np.eye(a.shape[1])
    als = a @ np.linalg.solve(left, a.T @ confidence @ wanted)

    def standard(values: np.ndarray) -> np.ndarray:
        return (values - values.mean()) / max(values.std(), 1e-9)

    taste = arrays.content[known].mean(axis=0) if known else np.eye(arrays.content.shape[1])[0]
    popularity = standard(np.log1p(arrays.support.astype(float)))
    content = standard(taste @ arrays.content_map @ arrays.content.T)
    scores = blend.prior_scale * (content + blend.popularity_scale * popularity)
    if warm:
        collaborative = (1 - blend.als_share) * standard(ease) + blend.als_share * standard(als)
        for j in range(size):
            trust = 1 - blend.content_share
            trust *= len(warm) / (len(warm) + blend.viewer_strength)
            trust *= arrays.support[j] / max(arrays.support[j] + blend.movie_strength, 1e-9)
            scores[j] = trust * collaborative[j] + (1 - trust) * scores[j]
    return scores


HISTORIES = st.lists(st.integers(1, MOVIES + 3).map(lambda n: n * 10), max_size=15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), HISTORIES)
def test_scores_are_those_of_the_formula(seed: int, history: list[int]) -> None:
    model = make_model(seed)
    assert model.scores([history])[0] == pytest.approx(naive_scores(model, history), abs=2e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(HISTORIES, min_size=1, max_size=6), st.integers(1, MOVIES + 5))
def test_lists_are_sorted_unseen_and_the_same_alone_or_in_a_batch(histories: list[list[int]], k: int) -> None:
    model = make_model()
    batch = model.recommend(histories, k)
    for row, history in enumerate(histories):
        ids, scores = batch.movie_ids[row], batch.scores[row]
        kept = ids != NOTHING
        assert kept.sum() == min(k, MOVIES - len(set(history) & set(model.arrays.movie_ids.tolist())))
        assert not set(ids[kept]) & set(history)
        assert len(set(ids[kept])) == kept.sum()
        assert (np.diff(scores[kept]) <= 0).all()
        alone = model.recommend([history], k)
        assert alone.scores[0][kept] == pytest.approx(scores[kept], abs=1e-4)


def test_order_and_repetition_of_a_history_do_not_matter() -> None:
    model = make_model()
    lists = model.recommend([[30, 10, 20], [10, 20, 30], [10, 10, 20, 30, 999]])
    assert (lists.movie_ids == lists.movie_ids[0]).all()


def test_a_new_viewer_gets_what_content_and_popularity_say() -> None:
    model = make_model(popularity_scale=1000.0)
    popular = np.argsort(-model.arrays.support, kind="stable")[:5]
    assert set(model.recommend([[]], 5).movie_ids[0]) == set(model.arrays.movie_ids[popular])


def test_a_new_movie_is_scored_by_its_content_and_can_be_seen() -> None:
    model = make_model(popularity_scale=0.0)
    twin = model.arrays.content[3]
    frame = pd.DataFrame(
        {
            "movie_id": [7],
            "movie_is_comedy": [twin[2]],
            "movie_is_thriller": [twin[3]],
            "movie_genre_count": [1],
            "movie_age_years": [[1.0, 5.0, 10.0, 20.0, 30.0, 50.0][int(np.argmax(twin[5:]))]],
        }
    )
    viewer: list[int] = []
    scores = model.scores([viewer], content_matrix(frame, FEATURES))[0]
    assert scores[-1] == pytest.approx(scores[3], abs=1e-5)
    assert 7 in model.recommend([viewer], MOVIES + 1, new_movies=frame).movie_ids
    assert 7 not in model.recommend([[7]], MOVIES + 1, new_movies=frame).movie_ids


def test_bad_requests_are_refused_by_name() -> None:
    model = make_model()
    with pytest.raises(DataError, match="k must be at least 1, not 0"):
        model.recommend([[10]], 0)
    with pytest.raises(DataError, match="whole numbers"):
        model.recommend([[1.5]], 3)  # type: ignore[list-item]
    with pytest.raises(DataError, match="whole numbers"):
        model.recommend([["Heat"]], 3)  # type: ignore[list-item]
    with pytest.raises(SchemaMismatchError, match="no column movie_id"):
        model.recommend([[10]], 3, new_movies=NEW.drop(columns="movie_id"))
    with pytest.raises(SchemaMismatchError, match=r"missing: \['movie_age_years'\]"):
        model.recommend([[10]], 3, new_movies=NEW.drop(columns="movie_age_years"))
    with pytest.raises(SchemaMismatchError, match="is not a number"):
        model.recommend([[10]], 3, new_movies=NEW.assign(movie_age_years="old"))
    with pytest.raises(SchemaMismatchError, match="the feature service lacks"):
        content_features(["movie_is_comedy", "movie_age_years"])


@given(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=1, max_size=20), st.integers(1, 25))
def test_the_best_are_those_of_a_full_sort(values: list[float], k: int) -> None:
    scores = np.array(values)
    order = np.argsort(-scores, kind="stable")
    wanted: list[Any] = [place for place in order.tolist() if scores[place] > -np.inf][:k]
    assert top_positions(scores, k).tolist() == wanted


def test_what_drift_is_measured_on_has_a_row_for_each_recommended_movie(folder: Path) -> None:
    bundle = RecommenderBundle.load(folder)
    histories = [[10, 20, 999], []]
    rows = bundle.features_of(histories, bundle.recommend(histories, 3, new_movies=NEW))
    assert rows.groupby("viewer")["viewer_rating_count"].first().tolist() == [2.0, 0.0]
    known = dict(
        zip(bundle.model.arrays.movie_ids.tolist(), bundle.model.arrays.support.tolist(), strict=True)
    )
    assert [known[movie] for movie in rows["movie_id"]] == rows["movie_rating_count"].tolist()
    assert not set(rows["movie_id"]) & {5000, 5001}
