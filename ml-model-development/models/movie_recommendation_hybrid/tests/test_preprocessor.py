"""What is refused, and that nobody's future is in anybody's past."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import make_ratings
from hypothesis import given, settings
from hypothesis import strategies as st
from src.config import SplitShares
from src.preprocessor import check_ratings, cold_movies, interactions, split_by_time

from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError

SHARES = SplitShares()


def test_good_ratings_come_back_in_order_of_viewer_and_time(ratings: pd.DataFrame) -> None:
    shuffled = check_ratings(ratings.sample(frac=1, random_state=0))
    assert len(shuffled) == len(ratings)
    assert shuffled["viewer_id"].is_monotonic_increasing
    assert shuffled.groupby("viewer_id")["event_timestamp"].is_monotonic_increasing.all()


@pytest.mark.parametrize("value", [0.0, 0.4, 5.5, -1.0, 10.0, float("inf")])
def test_a_rating_outside_the_stars_is_refused_by_name(ratings: pd.DataFrame, value: float) -> None:
    ratings.loc[7, "rating"] = value
    row = ratings.loc[7]
    with pytest.raises(
        SchemaMismatchError, match=rf"1 outside of 0.5 to 5.0 .* by viewer {row['viewer_id']}"
    ):
        check_ratings(ratings)


def test_other_columns_are_refused(ratings: pd.DataFrame) -> None:
    with pytest.raises(
        SchemaMismatchError, match=r"missing columns \['rating'\], unexpected columns \['stars'\]"
    ):
        check_ratings(ratings.rename(columns={"rating": "stars"}))
    with pytest.raises(SchemaMismatchError, match=r"unexpected columns \['comment'\]"):
        check_ratings(ratings.assign(comment="good"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("viewer_id", "one", "viewer_id is object, not whole numbers"),
        ("movie_id", 1.5, "movie_id is float64, not whole numbers"),
        ("rating", "good", "rating is object, not a number"),
        ("event_timestamp", pd.Timestamp("2016-01-01"), "event_timestamp is .*, not a time with a zone"),
        ("rating", None, r"nulls in \['rating'\]"),
    ],
)
def test_wrong_types_and_nulls_are_refused(
    ratings: pd.DataFrame, column: str, value: object, message: str
) -> None:
    with pytest.raises(SchemaMismatchError, match=message):
        check_ratings(ratings.assign(**{column: value}))


def test_no_ratings_and_ratings_given_twice_are_refused(ratings: pd.DataFrame) -> None:
    with pytest.raises(EmptyWindowError, match="no ratings"):
        check_ratings(ratings.head(0))
    with pytest.raises(SchemaMismatchError, match="1 of a movie that the viewer rated already"):
        check_ratings(pd.concat([ratings, ratings.head(1)]))


def test_each_viewers_parts_follow_each_other_in_time(ratings: pd.DataFrame) -> None:
    split = split_by_time(check_ratings(ratings), SHARES)
    parts = [split.fit, split.validation, split.holdout]
    assert sum(len(part) for part in parts) == len(ratings)
    for earlier, later in ((parts[0], parts[1]), (parts[1], parts[2])):
        last = earlier.groupby("viewer_id")["event_timestamp"].max()
        first = later.groupby("viewer_id")["event_timestamp"].min()
        both = last.to_frame("last").join(first.to_frame("first"), how="inner")
        assert len(both) == ratings["viewer_id"].nunique()
        assert (both["last"] < both["first"]).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3000))
def test_what_an_older_training_was_fitted_on_is_never_a_newer_ones_holdout(hours: int) -> None:
    ratings = check_ratings(make_ratings())
    cut = ratings["event_timestamp"].min() + pd.Timedelta(hours=hours)
    older = ratings[ratings["event_timestamp"] < cut]
    if older["viewer_id"].value_counts().max() < 5:
        return
    keys = ["viewer_id", "movie_id"]
    before, after = split_by_time(older.reset_index(drop=True), SHARES), split_by_time(ratings, SHARES)
    assert before.training[keys].merge(after.holdout[keys], on=keys).empty


def test_viewers_of_one_movie_leave_nothing_to_measure(ratings: pd.DataFrame) -> None:
    first = ratings.groupby("viewer_id").head(1).reset_index(drop=True)
    with pytest.raises(EmptyWindowError, match="no viewer has enough ratings"):
        split_by_time(first, SHARES)


def test_the_matrix_has_a_one_for_each_rating_and_refuses_unlisted_movies(ratings: pd.DataFrame) -> None:
    viewers, movies = np.unique(ratings["viewer_id"]), np.unique(ratings["movie_id"])
    matrix = interactions(ratings, viewers, movies)
    assert matrix.sum() == len(ratings)
    row = ratings.iloc[11]
    at = (np.searchsorted(viewers, row["viewer_id"]), np.searchsorted(movies, row["movie_id"]))
    assert matrix[at] == 1
    with pytest.raises(SchemaMismatchError, match=f"1 movies that are not listed, the first is {movies[-1]}"):
        interactions(ratings, viewers, movies[:-1])


def test_a_movies_fate_does_not_hang_on_the_others() -> None:
    ids = np.arange(1, 2001)
    drawn = cold_movies(ids, 0.15, "salt")
    assert drawn.mean() == pytest.approx(0.15, abs=0.03)
    assert (cold_movies(ids[500:900], 0.15, "salt") == drawn[500:900]).all()
    assert (cold_movies(ids, 0.15, "other") != drawn).any()
