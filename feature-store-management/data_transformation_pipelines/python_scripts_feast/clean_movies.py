"""Clean the movies and their ratings: the MovieLens files, checked against their schema, as typed columns.

`load_movies` calls these functions. A file with one wrong row is refused whole; the message names the file,
the row and what is wrong with it.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

DATA = Path(__file__).parents[2] / "data" / "movies"
DEFAULT_MOVIES = DATA / "movielens_latest_small_2016_movies.csv.gz"
DEFAULT_RATINGS = DATA / "movielens_latest_small_2016_ratings.parquet"

GENRES = (
    *("Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"
FIRST_FILM_YEAR = 1870
FIRST_RATING = int(datetime(1995, 1, 1, tzinfo=UTC).timestamp())  # the site did not exist before
END_OF_TIMES = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())

MOVIES_SCHEMA = {"movieId": pa.int64(), "title": pa.string(), "year": pa.int16(), "genres": pa.string()}
RATINGS_SCHEMA = {
    "userId": pa.int64(),
    "movieId": pa.int64(),
    "rating": pa.float64(),
    "timestamp": pa.int64(),
}


class DirtyMoviesError(Exception):
    """A file is not what its schema says; the message names file, row (from 1, no header) and reason."""


@dataclass(frozen=True)
class CleanMovies:
    """Grain: movie. `genres` is separated by a bar and empty where none is listed."""

    file: str
    sha256: str
    movie_id: list[int]
    title: list[str | None]
    year: list[int | None]
    genres: list[str]


@dataclass(frozen=True)
class CleanRatings:
    """Grain: viewer x movie. `rating` in stars (0.5 to 5 in halves), `rated_at` datetime64[us] in UTC."""

    file: str
    sha256: str
    viewer_id: NDArray[np.int64]
    movie_id: NDArray[np.int64]
    rating: NDArray[np.float64]
    rated_at: NDArray[np.datetime64]


def read_movies(path: Path) -> CleanMovies:
    """Return the movies of a CSV file; raises DirtyMoviesError or OSError."""
    content = path.read_bytes()
    options = pyarrow.csv.ConvertOptions(
        column_types=MOVIES_SCHEMA, null_values=["", "NA"], strings_can_be_null=True
    )
    source: pa.BufferReader | pa.CompressedInputStream = pa.BufferReader(content)
    if path.suffix == ".gz":
        source = pa.CompressedInputStream(source, "gzip")
    try:
        table = pyarrow.csv.read_csv(source, convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise DirtyMoviesError(f"{path.name}: {str(error).splitlines()[0]}") from None
    table = _with_columns(path.name, table, MOVIES_SCHEMA)
    ids, title, year, genres = (table[name] for name in MOVIES_SCHEMA)
    _refuse(path.name, pc.is_null(ids), "movieId is missing")
    _refuse(path.name, pc.less(ids, 1), "movieId is below 1")
    _refuse(path.name, _repeats(ids.to_numpy()), "movieId stands twice")
    _refuse(
        path.name,
        pc.not_equal(pc.is_null(title), pc.is_null(year)),
        "title and year are not missing together",
    )
    _refuse(path.name, pc.less(year, FIRST_FILM_YEAR), f"year is before {FIRST_FILM_YEAR}")
    _refuse(path.name, pc.is_null(genres), "genres are missing")
    listed = [[] if text == NO_GENRES else text.split("|") for text in genres.to_pylist()]
    unknown = [not set(names) <= set(GENRES) or len(set(names)) < len(names) for names in listed]
    _refuse(
        path.name, pa.array(unknown), f"genres are not {NO_GENRES} or different ones of {', '.join(GENRES)}"
    )
    return CleanMovies(
        path.name,
        hashlib.sha256(content).hexdigest(),
        ids.to_pylist(),
        title.to_pylist(),
        year.to_pylist(),
        ["|".join(names) for names in listed],
    )


def read_ratings(path: Path, movies: CleanMovies) -> CleanRatings:
    """Return the ratings of a Parquet file, all of them of `movies`; raises DirtyMoviesError or OSError."""
    content = path.read_bytes()
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise DirtyMoviesError(f"{path.name}: {str(error).splitlines()[0]}") from None
    table = _with_columns(path.name, table, RATINGS_SCHEMA)
    for name in RATINGS_SCHEMA:
        _refuse(path.name, pc.is_null(table[name], nan_is_null=True), f"{name} is missing")
    viewer, movie, rating, seconds = (table[name].to_numpy() for name in RATINGS_SCHEMA)
    _refuse(path.name, viewer < 1, "userId is below 1")
    _refuse(path.name, ~np.isin(movie, np.array(movies.movie_id)), f"movieId is not in {movies.file}")
    _refuse(path.name, ~np.isin(rating, np.arange(1, 11) / 2), "rating is not 0.5, 1, ... 5")
    outside = (seconds < FIRST_RATING) | (seconds >= END_OF_TIMES)
    _refuse(path.name, outside, "timestamp is no second of 1995 to 2099")
    pairs = np.stack([viewer, movie], axis=1)
    _refuse(path.name, _repeats(pairs), "userId has rated this movieId before")
    return CleanRatings(
        path.name,
        hashlib.sha256(content).hexdigest(),
        viewer,
        movie,
        rating,
        (seconds * 1_000_000).view("datetime64[us]"),
    )


def _with_columns(file: str, table: pa.Table, schema: dict[str, pa.DataType]) -> pa.Table:
    if sorted(table.schema.names) != sorted(schema):
        raise DirtyMoviesError(
            f"{file}: has the columns {', '.join(table.schema.names)}, not {', '.join(schema)}"
        )
    try:
        return table.select(list(schema)).cast(pa.schema(list(schema.items())))
    except pa.ArrowException as error:
        raise DirtyMoviesError(f"{file}: {str(error).splitlines()[0]}") from None


def _repeats(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of each row whether one before it is the same."""
    repeats = np.ones(len(values), dtype=bool)
    repeats[np.unique(values, axis=0, return_index=True)[1]] = False
    return repeats


def _refuse(file: str, wrong: pa.ChunkedArray | NDArray[np.bool_], reason: str) -> None:
    rows = np.flatnonzero(
        np.asarray(pc.fill_null(wrong, False) if not isinstance(wrong, np.ndarray) else wrong)
    )
    if len(rows):
        raise DirtyMoviesError(f"{file}: row {rows[0] + 1}: {reason} ({len(rows)} such rows)")
