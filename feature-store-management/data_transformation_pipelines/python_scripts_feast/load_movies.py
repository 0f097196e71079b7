"""Load the movies and their ratings (MovieLens) into the raw tables `movies` and `ratings`.

`python -m data_transformation_pipelines.python_scripts_feast.load_movies [--movies FILE] [--ratings FILE]`

The two files are a snapshot of all movies and all ratings. Both tables are replaced in one transaction; a
rerun with files whose content is loaded already changes nothing. A rating is known once it was given.

Exit 0: loaded, or loaded before; 1: a file was refused or the database failed; 2: bad options or settings.
The report is `REPORTS_DIR/load_movies.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from data_source_connectors.binary_copy import Column
from data_source_connectors.database_connector import (
    Connection,
    DatabaseSettings,
    DatabaseUnavailableError,
    copy_columns,
    copy_rows,
)
from data_source_connectors.settings import SettingsError, read_settings

from .clean_movies import (
    DEFAULT_MOVIES,
    DEFAULT_RATINGS,
    CleanMovies,
    CleanRatings,
    DirtyMoviesError,
    read_movies,
    read_ratings,
)
from .command_line import BAD_USAGE, OneLineParser, ReportSettings, write_report
from .raw_tables import LoadRunningError, RawSettings, open_raw_tables

COMMAND = "load_movies"
ROLES = ("movies", "ratings")


def is_loaded(connection: Connection, movies: CleanMovies, ratings: CleanRatings) -> bool:
    """Tell whether the tables hold exactly these files' content."""
    rows = connection.execute(
        "select file_name, sha256 from loaded_snapshot where file_name = any(%s)", (list(ROLES),)
    ).fetchall()
    return dict(rows) == {"movies": movies.sha256, "ratings": ratings.sha256}


def replace_tables(connection: Connection, movies: CleanMovies, ratings: CleanRatings) -> None:
    """Replace all movies and ratings in one transaction."""
    with connection.transaction():
        connection.execute("truncate movies, ratings")
        connection.execute("delete from loaded_snapshot where file_name = any(%s)", (list(ROLES),))
        copy_rows(
            connection,
            "movies",
            ["movie_id", "title", "year", "genres"],
            zip(movies.movie_id, movies.title, movies.year, movies.genres, strict=True),
        )
        copy_columns(
            connection,
            "ratings",
            [
                Column("viewer_id", "bigint", ratings.viewer_id),
                Column("movie_id", "bigint", ratings.movie_id),
                Column("rating", "double precision", ratings.rating),
                Column("rated_at", "timestamptz", ratings.rated_at),
                Column("known_at", "timestamptz", ratings.rated_at),
            ],
        )
        copy_rows(
            connection,
            "loaded_snapshot",
            ["file_name", "sha256", "rows"],
            [
                ("movies", movies.sha256, len(movies.movie_id)),
                ("ratings", ratings.sha256, len(ratings.rating)),
            ],
        )
    connection.execute("analyze movies, ratings")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with exit 2 and one line where they are wrong."""
    parser = OneLineParser(prog=COMMAND, description="Load the movies and their ratings into PostgreSQL.")
    parser.add_argument(
        "--movies", type=Path, default=DEFAULT_MOVIES, metavar="FILE", help="the movies, CSV (.gz)"
    )
    parser.add_argument(
        "--ratings", type=Path, default=DEFAULT_RATINGS, metavar="FILE", help="the ratings, Parquet"
    )
    parser.add_argument("--reload", action="store_true", help="load even what is loaded already")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    started = time.monotonic()
    try:
        database, raw = read_settings(DatabaseSettings), read_settings(RawSettings)
        reports_dir = read_settings(ReportSettings).reports_dir
        movies = read_movies(arguments.movies)
        ratings = read_ratings(arguments.ratings, movies)
        with open_raw_tables(database, raw, application_name=COMMAND) as connection:
            unchanged = is_loaded(connection, movies, ratings) and not arguments.reload
            if not unchanged:
                replace_tables(connection, movies, ratings)
        report = {
            "command": COMMAND,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "sources": [str(path.resolve()) for path in (arguments.movies, arguments.ratings)],
            "movies": len(movies.movie_id),
            "ratings": len(ratings.rating),
            "viewers": len(set(ratings.viewer_id.tolist())),
            "unchanged": unchanged,
            "seconds": round(time.monotonic() - started, 3),
        }
        path = write_report(reports_dir, f"{COMMAND}.json", report)
    except SettingsError as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (DirtyMoviesError, DatabaseUnavailableError, LoadRunningError, psycopg.Error, OSError) as error:
        print(f"{COMMAND}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(
        f"{report['movies']:,} movies, {report['ratings']:,} ratings by {report['viewers']:,} viewers"
        f" {'were loaded before' if unchanged else 'loaded'}; {report['seconds']:.1f} s; report {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
