"""Recommend movies to every viewer as of a day with the champion: `python -m src.predict_batch --date D`.

Each viewer with a rating known at the midnight that ends the day gets the best movies of that moment, movies
that are new since the training among them. Writes `scoring.batch_recommendations` of database `decisions`,
one row a viewer and rank, the day replaced in one transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pandas as pd
from psycopg import sql

from common_ml_utils.batch.command import batch_command
from common_ml_utils.batch.prediction import (
    BatchProject,
    Chunk,
    ChunkJob,
    DayPlan,
    cut,
    day_bounds,
)
from common_ml_utils.batch.scores import BATCH_RECOMMENDATIONS
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from common_ml_utils.hybrid_recommender import NOTHING
from common_ml_utils.mlflow_utils import RegisteredBundle
from src.config import IDENTITY, K, RecommenderSettings
from src.data_loader import check_movies, load_movies

KEY = "viewer_id"
RATINGS = ("labels", "fct_movie_ratings")


@dataclass(frozen=True)
class HistoryQuery(EntityQuery):
    """What viewers had rated at the end of [start, end); `keys` limits their ids. Grain: viewer x movie."""

    keys: tuple[int, int] | None = None

    def statement(self, start: datetime, end: datetime) -> str:
        """Return the SELECT; every row's `event_timestamp` is `end`."""
        moment = sql.SQL("timestamptz {}").format(sql.Literal(end.isoformat()))
        query = sql.SQL(
            "SELECT {columns}, {m} AS event_timestamp FROM {t} WHERE label_known_at <= {m} AND {e} < {m}"
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, self.columns)),
            m=moment,
            t=sql.Identifier(*self.table),
            e=sql.Identifier(self.timestamp),
        )
        if self.keys is not None:
            bounds = [sql.Literal(key) for key in self.keys]
            query += sql.SQL(" AND {} BETWEEN {} AND {}").format(sql.Identifier(KEY), *bounds)
        return query.as_string(None)


def histories(keys: tuple[int, int] | None = None) -> HistoryQuery:
    """Return the query of all histories, or of the viewers with ids from the first to the last given."""
    return HistoryQuery(table=RATINGS, columns=(KEY, "movie_id"), order_by=KEY, keys=keys)


def plan_day(client: FeatureStoreClient, contract: PublishedContract, day: date, chunk_rows: int) -> DayPlan:
    """Cut the viewers known at the end of the day by their ids."""
    start, end = day_bounds(day)
    known = histories().statement(start, end)
    viewers = client.query(f"SELECT DISTINCT {KEY} FROM ({known}) AS h ORDER BY 1")  # noqa: S608
    if not viewers:
        raise EmptyWindowError(
            f"{'.'.join(RATINGS)} has no rating known at the end of {day}: load the movies and build the"
            " feature tables"
        )
    ids = [row[KEY] for row in viewers]
    chunks = tuple(
        Chunk(number, histories((ids[first], ids[first + rows - 1])), start, end, rows)
        for number, (first, rows) in enumerate(cut([1] * len(ids), chunk_rows))
    )
    return DayPlan(histories(), start, end, chunks)


def recommend_chunk(
    client: FeatureStoreClient, champion: RegisteredBundle, job: ChunkJob, chunk: Chunk
) -> list[tuple[Any, ...]]:
    """Return the rows of `scoring.batch_recommendations` for a chunk's viewers, best first."""
    rated = pd.DataFrame(client.query(chunk.entities.statement(chunk.start, chunk.end)))
    seen = rated.groupby(KEY)["movie_id"].apply(np.array)
    movies = load_movies(client, champion.bundle.contract, chunk.end)
    lists = champion.bundle.recommend(seen.tolist(), K, exclude_seen=True, new_movies=movies)
    recommended_at = datetime.now(UTC)
    return [
        (
            champion.model_name,
            job.day,
            int(viewer),
            rank,
            int(movie),
            float(score),
            champion.version,
            champion.bundle.sha256,
            recommended_at,
        )
        for viewer, movie_ids, scores in zip(seen.index, lists.movie_ids, lists.scores, strict=True)
        for rank, (movie, score) in enumerate(zip(movie_ids, scores, strict=True), start=1)
        if movie != NOTHING
    ]


def project() -> BatchProject:
    """Return what batch prediction must know of this model."""
    return BatchProject(
        model_name=IDENTITY.model_name,
        settings=RecommenderSettings,
        key=KEY,
        rows_named="viewers",
        plan=plan_day,
        check=check_movies,
        table=BATCH_RECOMMENDATIONS,
        score=recommend_chunk,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return batch_command(project(), arguments)


if __name__ == "__main__":
    sys.exit(main())
