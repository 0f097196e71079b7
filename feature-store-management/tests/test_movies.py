"""Movies and ratings: the committed files cleaned, and what is refused of others."""

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from common_test_utils import DBT_DIR

from data_transformation_pipelines.python_scripts_feast.clean_movies import (
    DEFAULT_MOVIES,
    DEFAULT_RATINGS,
    GENRES,
    NO_GENRES,
    DirtyMoviesError,
    read_movies,
    read_ratings,
)

MOVIES = list(csv.DictReader(io.StringIO(gzip.decompress(DEFAULT_MOVIES.read_bytes()).decode())))
RATINGS: list[dict[str, Any]] = pq.read_table(DEFAULT_RATINGS).slice(0, 6).to_pylist()


def write_movies(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "movies.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_ratings(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "ratings.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_the_committed_files_are_kept_value_by_value() -> None:
    movies = read_movies(DEFAULT_MOVIES)
    ratings = read_ratings(DEFAULT_RATINGS, movies)
    assert (len(movies.movie_id), len(ratings.rating), len(set(ratings.viewer_id))) == (9_066, 100_004, 671)
    assert [
        {
            "movieId": str(movie),
            "title": title or "",
            "year": "" if year is None else str(year),
            "genres": genres or NO_GENRES,
        }
        for movie, title, year, genres in zip(
            movies.movie_id, movies.title, movies.year, movies.genres, strict=True
        )
    ] == MOVIES
    source = pq.read_table(DEFAULT_RATINGS)
    assert ratings.rating.tolist() == source["rating"].to_pylist()
    assert (ratings.rated_at.astype("datetime64[s]").astype(np.int64)).tolist() == source[
        "timestamp"
    ].to_pylist()


def test_the_main_genres_are_the_ten_with_the_most_ratings() -> None:
    movies = read_movies(DEFAULT_MOVIES)
    genres = dict(zip(movies.movie_id, movies.genres, strict=True))
    count = dict.fromkeys(GENRES, 0)
    for movie in read_ratings(DEFAULT_RATINGS, movies).movie_id.tolist():
        for genre in genres[movie].split("|") if genres[movie] else []:
            count[genre] += 1
    macro = (DBT_DIR / "macros" / "main_genres.sql").read_text()
    main = dict(re.findall(r"'(\w+)': '([\w-]+)'", macro))
    assert set(main.values()) == set(sorted(count, key=lambda genre: -count[genre])[:10])
    assert all(name == genre.lower().replace("-", "") for name, genre in main.items())


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("movieId", "", "row 3: movieId is missing"),
        ("movieId", "0", "row 3: movieId is below 1"),
        ("movieId", "1", "row 3: movieId stands twice"),
        ("movieId", "x", "conversion error"),
        ("title", "", "row 3: title and year are not missing together"),
        ("year", "", "row 3: title and year are not missing together"),
        ("year", "1869", "row 3: year is before 1870"),
        ("year", "nineteen", "conversion error"),
        ("genres", "", "row 3: genres are missing"),
        ("genres", "Drama|Sitcom", "row 3: genres are not"),
        ("genres", "Drama|Drama", "row 3: genres are not"),
        ("genres", "Drama|", "row 3: genres are not"),
    ],
)
def test_a_wrong_movie_is_refused_with_its_row(tmp_path: Path, column: str, value: str, reason: str) -> None:
    rows = [dict(row) for row in MOVIES[:4]]
    rows[2][column] = value
    with pytest.raises(DirtyMoviesError, match=rf"^movies\.csv: .*{reason}"):
        read_movies(write_movies(tmp_path, rows))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"userId": 0}, "row 3: userId is below 1"),
        ({"movieId": 10**9}, "row 3: movieId is not in movielens"),
        ({"rating": 0.0}, "row 3: rating is not 0.5"),
        ({"rating": 5.5}, "row 3: rating is not 0.5"),
        ({"rating": 3.25}, "row 3: rating is not 0.5"),
        ({"rating": None}, "row 3: rating is missing"),
        ({"timestamp": 0}, "row 3: timestamp is no second"),
        ({"timestamp": 5 * 10**12}, "row 3: timestamp is no second"),
        ({"movieId": RATINGS[1]["movieId"]}, "row 3: userId has rated this movieId before"),
    ],
)
def test_a_wrong_rating_is_refused_with_its_row(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    rows = [dict(row) for row in RATINGS]
    rows[2] |= changes
    with pytest.raises(DirtyMoviesError, match=rf"^ratings\.parquet: {reason}"):
        read_ratings(write_ratings(tmp_path, rows), read_movies(DEFAULT_MOVIES))


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    movies = read_movies(DEFAULT_MOVIES)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DirtyMoviesError, match=r"empty\.csv: "):
        read_movies(tmp_path / "empty.csv")
    (tmp_path / "text.csv.gz").write_text("no gzip")
    with pytest.raises(DirtyMoviesError, match=r"text\.csv\.gz: "):
        read_movies(tmp_path / "text.csv.gz")
    with pytest.raises(DirtyMoviesError, match=r"empty\.csv: "):
        read_ratings(tmp_path / "empty.csv", movies)
    columns = [{name: row[name] for name in ("userId", "movieId", "rating")} for row in RATINGS]
    with pytest.raises(DirtyMoviesError, match="has the columns userId, movieId, rating, not"):
        read_ratings(write_ratings(tmp_path, columns), movies)
