"""A whole training on made-up viewers: what it releases, what it refuses, and that nothing leaks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import AS_OF, FakeFeatureStore, ListRegistry, Trained, make_movies, make_ratings, run_training
from src import figures
from src.config import RecommenderSettings
from src.train import RecommenderTrainer, load_training_data, main

from common_ml_utils.errors import DataError, EmptyWindowError, RegistryError, SchemaMismatchError


@pytest.fixture(autouse=True)
def _undrawn(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the plots of the first training alone: drawing takes longer than all the rest."""
    monkeypatch.setattr(figures, "png", lambda figure: b"")


def test_the_recipe_registers_one_verified_bundle_with_its_card(trained: Trained) -> None:
    [(bundle, run, files)] = trained.registry.registered
    assert bundle.manifest.model_name == "movie-recommendation-model"
    assert bundle.manifest.model_kind == "recommender"
    assert set(files) == {
        "manifest.json",
        "model.npz",
        "feature_service.json",
        "reference.json",
        "golden.json",
    }
    assert len(run.figures) == 4
    assert all(image.startswith(b"\x89PNG") and len(image) > 5000 for image in run.figures.values())
    assert set(run.documents) == {f"model_card/model_card.{kind}" for kind in ("html", "md", "json")}
    assert run.metrics["ndcg_at_10"] > run.metrics["popularity_ndcg_at_10"]
    assert {"viewer_rating_count", "movie_rating_count", "score"} == set(bundle.reference)


def test_two_tastes_are_told_apart_also_for_new_movies(trained: Trained) -> None:
    [(bundle, _, _)] = trained.registry.registered
    comedies, thrillers = [101, 102, 103, 104], [131, 132, 133, 134]
    lists = bundle.recommend([comedies, thrillers], k=5).movie_ids
    assert (lists[0] < 131).all()
    assert (lists[1] >= 131).all()
    new = pd.DataFrame(
        {
            "movie_id": [900, 901],
            "movie_is_comedy": [1.0, 0.0],
            "movie_is_thriller": [0.0, 1.0],
            "movie_genre_count": [1.0, 1.0],
            "movie_age_years": [0.5, 0.5],
        }
    )
    ranked = bundle.recommend([comedies, thrillers], k=2, new_movies=new, only=[900, 901]).movie_ids
    assert ranked.tolist() == [[900, 901], [901, 900]]


def test_reports_say_what_was_measured(trained: Trained) -> None:
    folder = trained.settings.reports_dir / "recommendation"
    report = json.loads((folder / "train.json").read_text())
    assert report["metrics"] == trained.registry.registered[0][1].metrics
    assert report["blend"] == vars(trained.registry.registered[0][0].model.parameters.blend)
    for who in ("hybrid", "popularity", "SAR"):
        interval = report["known_viewers"][who]["ndcg_at_10"]
        assert interval["lower"] <= interval["value"] <= interval["upper"]
    assert report["new_movies"]["better_than_popularity"]["value"] > 0
    best = max(row["ndcg_at_10"] for row in report["blend_trials"] if row["audience"] == "known viewers")
    assert report["blend_trials"][-1]["ndcg_at_10"] <= best
    assert "<h1>movie-recommendation-model version 1" in (folder / "train.html").read_text()


def test_the_same_data_and_seed_give_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    registry = ListRegistry()
    settings = trained.settings.model_copy(update={"data_dir": tmp_path, "reports_dir": tmp_path})
    run_training(settings, FakeFeatureStore(), registry)
    assert registry.registered[0][2] == trained.registry.registered[0][2]


def test_ratings_of_the_future_change_nothing(trained: Trained, tmp_path: Path) -> None:
    ratings = make_ratings()
    later = ratings.head(40).assign(
        viewer_id=1000, movie_id=np.arange(40) + 101, rating=5.0, event_timestamp=pd.Timestamp(AS_OF)
    )
    later["label_known_at"] = later["event_timestamp"]
    late = ratings.tail(1).assign(viewer_id=1001, label_known_at=pd.Timestamp(AS_OF) + pd.Timedelta(days=1))
    store, registry = FakeFeatureStore(pd.concat([ratings, later, late])), ListRegistry()
    settings = trained.settings.model_copy(update={"data_dir": tmp_path, "reports_dir": tmp_path})
    run_training(settings, store, registry)
    assert registry.registered[0][2] == trained.registry.registered[0][2]


def test_a_viewers_own_future_changes_neither_model_nor_mixture(trained: Trained, tmp_path: Path) -> None:
    """Other movies in the holdout: other figures and another data version, but the same arrays."""
    ratings = make_ratings()
    last = ratings.groupby("viewer_id").tail(1).index
    free = set(range(101, 161))
    seen = ratings.groupby("viewer_id")["movie_id"].agg(set)
    ratings.loc[last, "movie_id"] = [min(free - seen[v]) for v in ratings.loc[last, "viewer_id"]]
    registry = ListRegistry()
    settings = trained.settings.model_copy(update={"data_dir": tmp_path, "reports_dir": tmp_path})
    run_training(settings, FakeFeatureStore(ratings), registry)
    ours, theirs = registry.registered[0], trained.registry.registered[0]
    assert ours[2]["model.npz"] == theirs[2]["model.npz"]
    assert ours[0].manifest.data_version != theirs[0].manifest.data_version
    assert ours[1].metrics["ndcg_at_10"] != theirs[1].metrics["ndcg_at_10"]


def test_nothing_is_registered_when_the_registry_is_down(settings: RecommenderSettings) -> None:
    trainer = RecommenderTrainer(settings, FakeFeatureStore(), AS_OF)
    with pytest.raises(RegistryError, match="does not answer"):
        trainer.train()
    assert not (settings.reports_dir / "recommendation").exists()


@pytest.mark.parametrize(
    ("store", "as_of", "error", "message"),
    [
        (FakeFeatureStore(), datetime(2009, 1, 1, tzinfo=UTC), EmptyWindowError, "no rating known at 2009"),
        (FakeFeatureStore(make_ratings().assign(rating=7.0)), AS_OF, SchemaMismatchError, "outside of 0.5"),
        (FakeFeatureStore(movies=make_movies().head(0)), AS_OF, EmptyWindowError, "lists no movie"),
        (FakeFeatureStore(movies=make_movies().head(20)), AS_OF, SchemaMismatchError, "are not listed"),
        (
            FakeFeatureStore(movies=make_movies().assign(movie_is_comedy=2)),
            AS_OF,
            SchemaMismatchError,
            "movie_is_comedy is neither 0 nor 1",
        ),
    ],
    ids=["empty window", "rating", "no movies", "unlisted movies", "feature"],
)
def test_bad_input_is_named_and_nothing_registered(
    settings: RecommenderSettings,
    store: FakeFeatureStore,
    as_of: datetime,
    error: type[DataError],
    message: str,
) -> None:
    registry = ListRegistry()
    with pytest.raises(error, match=message):
        run_training(settings, store, registry, as_of)
    assert registry.registered == []


def test_ages_are_as_of_the_training(
    settings: RecommenderSettings,
) -> None:
    data = load_training_data(FakeFeatureStore(), settings, AS_OF)
    first = data.movies.iloc[0]
    assert first["movie_age_years"] == pytest.approx(2016 + 290 / 366 - 1960, abs=0.01)


def test_the_command_names_missing_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEATURE_STORE_DB_HOST", raising=False)
    assert main(["--as-of", "2016-10-17"]) == 1
    assert "setting FEATURE_STORE_DB_HOST: Field required" in capsys.readouterr().err
