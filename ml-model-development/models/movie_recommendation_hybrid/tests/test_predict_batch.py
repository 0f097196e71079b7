"""Batch recommendation: which viewers a day has, in which chunks, and the rows it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from src import predict_batch
from src.config import K, RecommenderSettings

from common_ml_utils.batch.command import predict_day
from common_ml_utils.batch.prediction import ChunkJob
from common_ml_utils.batch.scores import BATCH_RECOMMENDATIONS
from common_ml_utils.errors import EmptyWindowError, RegistryError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.hybrid_recommender import NOTHING, Recommendations
from common_ml_utils.mlflow_utils import RegisteredBundle
from common_ml_utils.test_doubles import unreachable_places

DAY = date(2016, 9, 1)
END = "timestamptz '2016-09-02T00:00:00+00:00'"


class Ratings(FeatureStoreClient):
    """Answers which viewers there are, and what they rated."""

    def __init__(self, ratings: dict[int, list[int]]) -> None:
        self.ratings = ratings
        self.statements: list[str] = []

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        self.statements.append(statement)
        if statement.startswith("SELECT DISTINCT viewer_id"):
            return [{"viewer_id": viewer} for viewer in sorted(self.ratings)]
        first, last = (int(word) for word in statement.split(" BETWEEN ")[1].split(" AND "))
        return [
            {"viewer_id": viewer, "movie_id": movie}
            for viewer, movies in self.ratings.items()
            if first <= viewer <= last
            for movie in movies
        ]


@dataclass
class OneListForAll:
    """A bundle that recommends the movies 1, 2, 3 ... that were not seen; it has three of them."""

    sha256: str = "b" * 64
    contract: None = None
    asked: list[tuple[list[int], int, int]] = field(default_factory=list)

    def recommend(
        self, histories: list[np.ndarray], k: int, exclude_seen: bool, new_movies: pd.DataFrame
    ) -> Recommendations:
        assert exclude_seen
        best, scores = np.full((len(histories), k), NOTHING), np.full((len(histories), k), np.nan)
        for row, history in enumerate(histories):
            self.asked.append((history.tolist(), k, len(new_movies)))
            unseen = [movie for movie in (1, 2, 3) if movie not in history]
            best[row, : len(unseen)] = unseen
            scores[row, : len(unseen)] = [1.0 / movie for movie in unseen]
        return Recommendations(best, scores)


def test_every_viewer_is_in_one_chunk_with_what_was_known_at_the_end_of_the_day() -> None:
    store = Ratings({viewer: [1] for viewer in (3, 4, 9, 10, 50)})
    plan = predict_batch.plan_day(store, None, DAY, 2)
    assert [chunk.entities.keys for chunk in plan.chunks] == [(3, 4), (9, 10), (50, 50)]
    assert plan.rows == 5
    assert plan.end == datetime(2016, 9, 2, tzinfo=UTC)
    for statement in (store.statements[0], plan.chunks[0].entities.statement(plan.start, plan.end)):
        assert f"label_known_at <= {END}" in statement, "nothing that became known later"
        assert f'"event_timestamp" < {END}' in statement


def test_a_day_before_any_rating_is_refused() -> None:
    with pytest.raises(EmptyWindowError, match="no rating known at the end of 2016-09-01"):
        predict_batch.plan_day(Ratings({}), None, DAY, 2)


def test_each_viewer_gets_ranks_without_gaps_and_nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[datetime] = []

    def movies(client: FeatureStoreClient, contract: object, as_of: datetime) -> pd.DataFrame:
        moments.append(as_of)
        return pd.DataFrame({"movie_id": [1, 2, 3]})

    monkeypatch.setattr(predict_batch, "load_movies", movies)
    store = Ratings({3: [2], 4: [1, 2, 3], 9: [7, 1]})
    bundle = OneListForAll()
    champion = RegisteredBundle("movies-model", 5, bundle)
    plan = predict_batch.plan_day(store, None, DAY, 10)
    job = ChunkJob(predict_batch.project(), 5, bundle.sha256, DAY, 1)
    [chunk] = plan.chunks
    rows = [
        dict(zip(BATCH_RECOMMENDATIONS.columns, row, strict=True))
        for row in predict_batch.recommend_chunk(store, champion, job, chunk)
    ]
    assert [(row["viewer_id"], row["rank"], row["movie_id"]) for row in rows] == [
        (3, 1, 1),
        (3, 2, 3),
        (9, 1, 2),
        (9, 2, 3),
    ], "viewer 4 has seen all"
    assert rows[0]["score"] == 1.0
    assert {(row["model_name"], row["model_version"], row["bundle_sha256"]) for row in rows} == {
        ("movies-model", 5, bundle.sha256)
    }
    assert bundle.asked == [([2], K, 3), ([1, 2, 3], K, 3), ([7, 1], K, 3)]
    assert moments == [plan.end]


def test_an_unreachable_registry_is_one_clear_error(tmp_path: Path) -> None:
    settings = RecommenderSettings(**unreachable_places(tmp_path))
    with pytest.raises(RegistryError):
        predict_day(predict_batch.project(), settings, DAY)


def test_files_of_vectors_are_nothing_a_recommender_scores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict_batch.main(["--input", "vectors.parquet", "--out", "scores"])
    assert "scores no vectors: give a --date" in capsys.readouterr().err


@pytest.mark.integration
def test_on_the_stack_every_viewer_is_planned_once_with_the_past_alone() -> None:
    client = FeatureStoreClient(RecommenderSettings().feature_store_db)
    plan = predict_batch.plan_day(client, None, DAY, 100)
    rated = [
        (row["viewer_id"], row["movie_id"])
        for chunk in plan.chunks
        for row in client.query(chunk.entities.statement(chunk.start, chunk.end))
    ]
    expected = client.query("SELECT viewer_id, movie_id FROM raw.ratings WHERE rated_at < %s", [plan.end])
    assert sorted(rated) == sorted((row["viewer_id"], row["movie_id"]) for row in expected)
    assert plan.rows == len({viewer for viewer, _ in rated}) > len(plan.chunks) > 1
