"""A feature store in memory with made-up viewers of two tastes, and a registry that only remembers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from src.config import BlendGrid, CollaborativeParameters, RecommenderSettings, SplitShares
from src.train import RecommenderTrainer

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.test_doubles import ListRegistry, unreachable_places

GENRES = ("movie_is_comedy", "movie_is_thriller")
FEATURES = (*GENRES, "movie_genre_count", "movie_age_years")
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
AS_OF = datetime(2016, 10, 17, tzinfo=UTC)
VIEWERS, MOVIES = 80, 60


def make_movies() -> pd.DataFrame:
    """Return movies 101.. as the table `fct_movie_profile` has them: the first half are comedies."""
    number = np.arange(MOVIES)
    comedy = (number < MOVIES // 2).astype(int)
    return pd.DataFrame(
        {
            "movie_id": number + 101,
            "movie_year": 1960 + number % 50,
            "movie_is_comedy": comedy,
            "movie_is_thriller": 1 - comedy,
            "movie_genre_count": 1,
        }
    )


def make_ratings(seed: int = 5) -> pd.DataFrame:
    """Return ratings of viewers who like comedies (even ids) or thrillers, popular movies more often."""
    rng = np.random.default_rng(seed)
    rows = []
    popularity = np.tile(np.linspace(3, 0.5, MOVIES // 2), 2)
    for viewer in range(1, VIEWERS + 1):
        liked = np.arange(MOVIES) < MOVIES // 2 if viewer % 2 == 0 else np.arange(MOVIES) >= MOVIES // 2
        chance = popularity * np.where(liked, 1.0, 0.1)
        seen = rng.choice(MOVIES, size=int(rng.integers(8, 24)), replace=False, p=chance / chance.sum())
        start = pd.Timestamp("2010-01-01", tz="UTC") + pd.Timedelta(days=viewer)
        for place, movie in enumerate(seen):
            time = start + pd.Timedelta(hours=place)
            rows.append((viewer, int(movie) + 101, float(rng.integers(1, 11)) / 2, time, time))
    names = ["viewer_id", "movie_id", "rating", "event_timestamp", "label_known_at"]
    return pd.DataFrame(rows, columns=names)


class FakeFeatureStore(FeatureStoreClient):
    """Answers from frames what the feature store would answer."""

    def __init__(self, ratings: pd.DataFrame | None = None, movies: pd.DataFrame | None = None) -> None:
        self.ratings = make_ratings() if ratings is None else ratings
        self.movies = make_movies() if movies is None else movies
        self.published = PublishedContract.parse(json.dumps(CONTRACT))

    def contract(self, service_name: str) -> PublishedContract:
        assert service_name == "movie_recommendation_v1"
        return self.published

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        if "max(event_timestamp)" in statement:
            return [{"newest": self.ratings["event_timestamp"].max().to_pydatetime()}]
        if "labels.fct_movie_ratings" in statement:
            known, before = parameters
            frame = self.ratings
            kept = (frame["label_known_at"] <= known) & (frame["event_timestamp"] < before)
            return list(frame[kept].to_dict("records"))
        assert "features.fct_movie_profile" in statement
        return list(self.movies.to_dict("records"))


def make_settings(folder: Path) -> RecommenderSettings:
    """Return settings of no real place: nothing in a unit test may reach one."""
    return RecommenderSettings(
        **unreachable_places(folder),
        collaborative=CollaborativeParameters(ease_regularization=20.0, als_factors=4, als_iterations=5),
        blend=BlendGrid(als_shares=(0.0, 0.5), prior_scales=(0.25,), viewer_strengths=(5.0,)),
        split=SplitShares(bootstrap_resamples=100, cold_movies=0.3),
    )


@pytest.fixture(scope="session", autouse=True)
def _one_commit() -> Iterator[None]:
    """Name one commit for all trainings: files may change in the work tree while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_COMMIT", "0" * 40)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> RecommenderSettings:
    return make_settings(tmp_path)


@pytest.fixture
def ratings() -> pd.DataFrame:
    return make_ratings()


def run_training(
    settings: RecommenderSettings, store: FakeFeatureStore, registry: ListRegistry, as_of: datetime = AS_OF
) -> None:
    """Train as the command does, but register in the fake."""
    trainer = RecommenderTrainer(settings, store, as_of)
    trainer.registry = registry
    trainer.train()


@dataclass
class Trained:
    """One finished training: look, don't touch."""

    settings: RecommenderSettings
    store: FakeFeatureStore
    registry: ListRegistry


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    done = Trained(make_settings(tmp_path_factory.mktemp("trained")), FakeFeatureStore(), ListRegistry())
    run_training(done.settings, done.store, done.registry)
    return done
