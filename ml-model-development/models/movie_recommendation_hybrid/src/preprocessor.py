"""Ratings into interactions: what is refused, how each viewer's past and future are cut, and the matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError
from src.config import SplitShares

COLUMNS = ("viewer_id", "movie_id", "rating", "event_timestamp", "label_known_at")
STARS = (0.5, 5.0)


@dataclass(frozen=True)
class Split:
    """Ratings cut by time for each viewer: `fit` and `validation` together are the past of `holdout`."""

    fit: pd.DataFrame
    validation: pd.DataFrame
    holdout: pd.DataFrame

    @property
    def training(self) -> pd.DataFrame:
        """What the released model is fitted on."""
        return pd.concat([self.fit, self.validation], ignore_index=True)


def check_ratings(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return the ratings ordered by viewer and time, or raise the error that names what is wrong.

    Grain: viewer x movie. EmptyWindowError without rows; SchemaMismatchError for columns missing or
    unexpected, ids that are no whole numbers, nulls, ratings outside 0.5 to 5, or a movie rated twice.
    """
    missing, extra = sorted(set(COLUMNS) - set(ratings)), sorted(set(ratings) - set(COLUMNS))
    if missing or extra:
        raise SchemaMismatchError(f"ratings: missing columns {missing}, unexpected columns {extra}")
    if ratings.empty:
        raise EmptyWindowError("there are no ratings in the interval asked for")
    if nulls := [name for name in COLUMNS if ratings[name].isna().any()]:
        raise SchemaMismatchError(f"ratings: nulls in {nulls}")
    for name in ("viewer_id", "movie_id"):
        if ratings[name].dtype.kind not in "iu":
            raise SchemaMismatchError(f"ratings: {name} is {ratings[name].dtype}, not whole numbers")
    for name in ("event_timestamp", "label_known_at"):
        if not isinstance(ratings[name].dtype, pd.DatetimeTZDtype):
            raise SchemaMismatchError(f"ratings: {name} is {ratings[name].dtype}, not a time with a zone")
    if ratings["rating"].dtype.kind not in "fiu":
        raise SchemaMismatchError(f"ratings: rating is {ratings['rating'].dtype}, not a number of stars")
    outside = ratings[~ratings["rating"].between(*STARS)]
    if len(outside):
        first = outside.iloc[0]
        raise SchemaMismatchError(
            f"ratings: {len(outside)} outside of {STARS[0]} to {STARS[1]} stars, the first is"
            f" {first['rating']} of movie {first['movie_id']} by viewer {first['viewer_id']}"
        )
    if twice := int(ratings.duplicated(["viewer_id", "movie_id"]).sum()):
        raise SchemaMismatchError(f"ratings: {twice} of a movie that the viewer rated already")
    return ratings[list(COLUMNS)].sort_values(["viewer_id", "event_timestamp", "movie_id"], ignore_index=True)


def split_by_time(ratings: pd.DataFrame, shares: SplitShares) -> Split:
    """Cut each viewer's ratings, ordered by time (ties by movie): a share of the first fits, and so on.

    A viewer's part only grows when more becomes known, so an older model was never fitted on a newer one's
    holdout. Raises EmptyWindowError when nobody has enough ratings to be measured on.
    """
    by_viewer = ratings.groupby("viewer_id")["movie_id"]
    position, number = by_viewer.cumcount(), by_viewer.transform("size")
    fit = position < np.ceil(number * shares.fit)
    training = position < np.ceil(number * shares.training)
    parts = [ratings[mask].reset_index(drop=True) for mask in (fit, training & ~fit, ~training)]
    for name, part in zip(("fitting", "validation", "holdout"), parts, strict=True):
        if part.empty:
            raise EmptyWindowError(f"no viewer has enough ratings for {name}")
    return Split(*parts)


def interactions(ratings: pd.DataFrame, viewers: np.ndarray, movies: np.ndarray) -> csr_matrix:
    """Return who rated what, shape (viewers, movies), ones: a rating of any height shows interest.

    Raises SchemaMismatchError for a viewer or movie that is not in the (ascending) lists.
    """
    rows = _positions(ratings["viewer_id"].to_numpy(), viewers, "viewer")
    columns = _positions(ratings["movie_id"].to_numpy(), movies, "movie")
    ones = np.ones(len(ratings), dtype=np.float32)
    return csr_matrix((ones, (rows, columns)), shape=(len(viewers), len(movies)))


def cold_movies(movies: np.ndarray, share: float, salt: str) -> np.ndarray:
    """Draw movies to be kept apart, as a mask; a movie's fate hangs on a hash of its id and the salt."""
    digests = [hashlib.sha256(f"{salt}:{movie}".encode()).digest()[:8] for movie in movies.tolist()]
    drawn = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.float64)
    return drawn < share * 2.0**64


def _positions(values: np.ndarray, known: np.ndarray, kind: str) -> np.ndarray:
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    unknown = np.unique(values[known[at] != values])
    if len(unknown):
        raise SchemaMismatchError(
            f"ratings: {len(unknown)} {kind}s that are not listed, the first is {unknown[0]}"
        )
    return at
