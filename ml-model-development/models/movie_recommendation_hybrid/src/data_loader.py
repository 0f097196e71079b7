"""The recommender's data: ratings known at a time, and the features of every movie as of then."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.hybrid_recommender import (
    AGE,
    GENRE_COUNT,
    GENRE_PREFIX,
    content_features,
    content_matrix,
)
from src.hybrid import Catalogue
from src.preprocessor import COLUMNS, check_ratings

DAYS_A_YEAR = 365.2425  # as the contract's movie_age_years counts


def load_ratings(client: FeatureStoreClient, as_of: datetime) -> pd.DataFrame:
    """Return the ratings that were known at `as_of`, checked, by viewer and time. Grain: viewer x movie."""
    rows = client.query(
        f"SELECT {', '.join(COLUMNS)} FROM labels.fct_movie_ratings"  # noqa: S608 (constants)
        " WHERE label_known_at <= %s AND event_timestamp < %s",
        [as_of, as_of],
    )
    if not rows:
        raise EmptyWindowError(f"labels.fct_movie_ratings has no rating known at {as_of.isoformat()}")
    frame = pd.DataFrame(rows)
    for name in ("event_timestamp", "label_known_at"):
        if name in frame:
            frame[name] = pd.to_datetime(frame[name], utc=True)
    return check_ratings(frame)


def load_movies(client: FeatureStoreClient, contract: PublishedContract, as_of: datetime) -> pd.DataFrame:
    """Return `movie_id` and the content features of every movie listed at `as_of`, ordered by id.

    The values are those of the feature service: view `movie_profile` as of `as_of`, read from its table (a
    plain comparison with both times is right, docs/architecture.md), and `movie_age_years` as the contract
    computes it. Feast gives the same values.
    """
    features = content_features(contract.service.feature_names)
    profile = [name for name in features if name != AGE]
    rows = client.query(
        f"SELECT DISTINCT ON (movie_id) movie_id, movie_year, {', '.join(profile)}"  # noqa: S608 (the contract's names)
        " FROM features.fct_movie_profile WHERE event_timestamp <= %s AND created_timestamp <= %s"
        " ORDER BY movie_id, event_timestamp DESC, created_timestamp DESC",
        [as_of, as_of],
    )
    if not rows:
        raise EmptyWindowError(f"features.fct_movie_profile lists no movie at {as_of.isoformat()}")
    frame = pd.DataFrame(rows)
    numbers = frame.drop(columns="movie_id").apply(pd.to_numeric).astype("float64")
    years = as_of.timestamp() // 86400 / DAYS_A_YEAR + 1970 - numbers["movie_year"]
    movies = numbers[profile].assign(**{AGE: years})
    movies.insert(0, "movie_id", frame["movie_id"].astype("int64"))
    return check_movies(movies)


def check_movies(movies: pd.DataFrame) -> pd.DataFrame:
    """Return the movies, or raise SchemaMismatchError for a value no movie can have; nulls pass."""
    problems = [
        f"{name} is neither 0 nor 1"
        for name in movies.columns
        if name.startswith(GENRE_PREFIX) and not movies[name].dropna().isin([0, 1]).all()
    ]
    if (movies[GENRE_COUNT].dropna() < 0).any():
        problems.append(f"{GENRE_COUNT} < 0")
    if movies["movie_id"].duplicated().any():
        problems.append("a movie stands twice")
    if problems:
        raise SchemaMismatchError(f"impossible movie features: {'; '.join(problems)}")
    return movies


def catalogue_of(movies: pd.DataFrame, contract: PublishedContract) -> Catalogue:
    """Return the movies as the model reads them."""
    features = content_features(contract.service.feature_names)
    return Catalogue(movies["movie_id"].to_numpy(), content_matrix(movies, features), features)
