"""Movies on the running stack: loaded, built, served; every value compared with one from raw ratings.

The tables have rows only where something changes. The oracle is dense: it filters the ratings at a midnight.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from common_test_utils import DAY, MICROSECOND, Rehearsal, Row
from feast import FeatureStore

from data_transformation_pipelines.python_scripts_feast import load_movies
from feature_contract import load_contract
from materialize import materialize

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CONTRACT = load_contract("movie_recommendation_v1")
MAIN = {
    **{name.lower(): name for name in ("Action", "Adventure", "Children", "Comedy", "Crime")},
    **{name.lower(): name for name in ("Drama", "Fantasy", "Romance", "Thriller")},
    "scifi": "Sci-Fi",
}
MOVIES: dict[int, tuple[int | None, list[str]]] = {
    1: (1995, ["Drama", "Crime"]),
    2: (1960, ["Comedy"]),
    3: (None, []),
    4: (2001, ["Sci-Fi", "Action", "War"]),
    5: (2010, ["Drama", "Comedy", "Romance"]),
    6: (2012, ["Documentary"]),  # never rated
    7: (None, ["Drama"]),  # never rated, of no known year
}
START = pd.Timestamp("2013-01-01", tz="UTC")


@dataclass(frozen=True)
class Rating:
    """One raw rating; `known_at` is later than `moment` for one that came late."""

    viewer_id: int
    movie_id: int
    half_stars: int
    moment: pd.Timestamp
    known_at: pd.Timestamp


def draw_ratings() -> list[Rating]:
    """Return ratings of all kinds: on one day, at both of its ends, years apart, known days late."""
    draw = random.Random(5)
    rows = []
    for viewer in range(1, 25):
        for movie in draw.sample(range(1, 6), draw.randrange(1, 6)):
            moment = (
                START
                + draw.randrange(900) * DAY
                + draw.choice([0, 1, 43_200, 86_399]) * 1_000_000 * MICROSECOND
            )
            # Nothing comes late of some movies: their training rows are the served vectors.
            late = draw.choice([0] * 8 + [3, 40]) * DAY if movie >= 4 else 0 * DAY
            rows.append(Rating(viewer, movie, draw.randrange(1, 11), moment, moment + late))
    return rows


RATINGS = draw_ratings()


def mean(half_stars: list[int]) -> float | None:
    return sum(half_stars) / 2 / len(half_stars) if half_stars else None


def totals(rows: list[Rating], midnight: pd.Timestamp, entity: str) -> Row | None:
    """Return what an entity's newest row as of a midnight must hold, by filtering; None without one."""
    before = [row for row in rows if row.moment < midnight]
    if not before:
        return None
    return {
        f"{entity}_rating_count": len(before),
        f"{entity}_rating_count_30d": sum(row.moment >= midnight - 30 * DAY for row in before),
        f"{entity}_rating_count_365d": sum(row.moment >= midnight - 365 * DAY for row in before),
        f"{entity}_rating_mean": mean([row.half_stars for row in before]),
    }


def taste(viewer: int, midnight: pd.Timestamp) -> Row | None:
    rows = [row for row in RATINGS if row.viewer_id == viewer]
    values = totals(rows, midnight, "viewer")
    if values is None:
        return None
    before = [row for row in rows if row.moment < midnight]
    for name, genre in MAIN.items():
        own = [row.half_stars for row in before if genre in MOVIES[row.movie_id][1]]
        values[f"viewer_rating_share_{name}"] = len(own) / len(before)
        values[f"viewer_rating_mean_{name}"] = mean(own)
    return values


def popularity(movie: int, midnight: pd.Timestamp) -> Row | None:
    rows = [row for row in RATINGS if row.movie_id == movie]
    values = totals(rows, midnight, "movie")
    if values is None:
        return None
    stars = sum(row.half_stars for row in rows if row.moment < midnight) / 2
    return values | {"movie_rating_mean_smoothed": (stars + 35) / (values["movie_rating_count"] + 10)}


def profile(movie: int) -> Row:
    year, genres = MOVIES[movie]
    flags = {f"movie_is_{name}": int(genre in genres) for name, genre in MAIN.items()}
    return {"movie_year": year, "movie_genre_count": len(genres), **flags}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    made = Rehearsal(tmp_path_factory.mktemp("movies"))
    try:
        with made.connection.cursor() as cursor:
            with cursor.copy(f"copy {made.table('raw.movies')} from stdin") as copy:
                for movie, (year, genres) in MOVIES.items():
                    copy.write_row(
                        (movie, None if year is None else f"Movie {movie}", year, "|".join(genres))
                    )
            with cursor.copy(f"copy {made.table('raw.ratings')} from stdin") as copy:
                for row in RATINGS:
                    copy.write_row(
                        (row.viewer_id, row.movie_id, row.half_stars / 2, row.moment, row.known_at)
                    )
        made.succeed("run_dbt_for_feast.sh")
        made.succeed("run_feast_apply.sh")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def store(rehearsal: Rehearsal) -> FeatureStore:
    return FeatureStore(fs_yaml_file=rehearsal.feature_store_yaml)


@pytest.mark.parametrize(
    ("entity", "table"), [("viewer", "fct_viewer_taste"), ("movie", "fct_movie_popularity")]
)
def test_the_newest_row_holds_at_every_midnight_what_the_ratings_say(
    rehearsal: Rehearsal, entity: str, table: str
) -> None:
    """Dense against sparse, for 1,300 midnights: also long after the last rating, when windows are empty."""
    oracle = taste if entity == "viewer" else popularity
    rows = sorted(rehearsal.rows(f"features.{table}"), key=lambda row: row["event_timestamp"])
    keys = {getattr(row, f"{entity}_id") for row in RATINGS}
    assert {row[f"{entity}_id"] for row in rows} == keys
    compared = 0
    for key in keys:
        own = {row["event_timestamp"]: row for row in rows if row[f"{entity}_id"] == key}
        newest = None
        for day in range(1_300):
            midnight = START + day * DAY
            newest = own.get(midnight.to_pydatetime(), newest)
            expected = oracle(key, midnight)
            assert (newest is None) == (expected is None), (key, midnight)
            if expected and newest:
                assert {name: newest[name] for name in expected} == expected, (key, midnight)
                compared += 1
    assert compared > 1_000
    assert len({(row[f"{entity}_id"], row["event_timestamp"]) for row in rows}) == len(rows)


def test_a_row_is_known_a_microsecond_after_its_last_rating_and_not_before_it_is_true(
    rehearsal: Rehearsal,
) -> None:
    late = 0
    for row in rehearsal.rows("features.fct_viewer_taste"):
        used = [
            r.known_at
            for r in RATINGS
            if r.viewer_id == row["viewer_id"] and r.moment < row["event_timestamp"]
        ]
        assert row["created_timestamp"] == max(row["event_timestamp"], max(used) + MICROSECOND)
        late += row["created_timestamp"] > row["event_timestamp"]
    assert late > 0


def history(viewer: int, midnight: pd.Timestamp) -> str | None:
    """Return the movies rated before a midnight, most recent last; None without one."""
    rows = [row for row in RATINGS if row.viewer_id == viewer and row.moment < midnight]
    rows.sort(key=lambda row: (row.moment, row.movie_id))
    return ",".join(str(row.movie_id) for row in rows) or None


def test_a_history_holds_what_was_rated_before_each_midnight(rehearsal: Rehearsal) -> None:
    rows = rehearsal.rows("features.fct_viewer_history")
    midnights = {(r.viewer_id, r.moment.normalize() + DAY) for r in RATINGS}
    assert {(row["viewer_id"], row["event_timestamp"]) for row in rows} == midnights
    for row in rows:
        viewer, midnight = row["viewer_id"], row["event_timestamp"]
        known = max(r.known_at for r in RATINGS if r.viewer_id == viewer and r.moment < midnight)
        assert row["viewer_rated_movie_ids"] == history(viewer, midnight)
        assert row["created_timestamp"] == max(midnight, known + MICROSECOND)


def test_a_movie_is_listed_from_the_day_of_its_first_rating(rehearsal: Rehearsal) -> None:
    rows = {row.pop("movie_id"): row for row in rehearsal.rows("features.fct_movie_profile")}
    assert set(rows) == set(MOVIES) - {7}
    for movie, row in rows.items():
        own = [rating.moment.normalize() for rating in RATINGS if rating.movie_id == movie]
        listed = min(own) if own else pd.Timestamp(year=2012, month=1, day=1, tz="UTC")
        assert row == {"event_timestamp": listed, "created_timestamp": listed, **profile(movie)}


def asked(moments: list[tuple[int, int, pd.Timestamp]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "number": range(len(moments)),
            "viewer_id": [viewer for viewer, _, _ in moments],
            "movie_id": [movie for _, movie, _ in moments],
            "event_timestamp": [moment for _, _, moment in moments],
            "request_timestamp": [moment.timestamp() for _, _, moment in moments],
        }
    )


def expected_vector(viewer: int, movie: int, moment: pd.Timestamp) -> Row:
    """Return the vector from the raw ratings; values of views that are missing are None."""
    liked, famous, about = (
        taste(viewer, moment.normalize()),
        popularity(movie, moment.normalize()),
        profile(movie),
    )
    row = {**(liked or {}), **(famous or {}), **about}
    genres = [name for name in MAIN if about[f"movie_is_{name}"]]
    share = sum(row.get(f"viewer_rating_share_{name}") or 0.0 for name in genres)
    gaps = [row.get(f"viewer_rating_mean_{name}") for name in genres]
    liking = sum(gap - row["viewer_rating_mean"] for gap in gaps if gap is not None)
    year = about["movie_year"]
    row["movie_age_years"] = moment.timestamp() // 86_400 / 365.2425 + 1970 - year if year else None
    row["viewer_movie_genre_share"] = share / len(genres) if genres else 0.0
    row["viewer_movie_genre_liking"] = liking / len(genres) if genres else 0.0
    return {feature.name: row.get(feature.name) for feature in CONTRACT.features}


def same(found: Row, expected: Row) -> bool:
    """Tell whether two vectors are equal: bit for bit from tables, to 12 digits where terms were added up."""
    for name, value in expected.items():
        got = None if pd.isna(found[name]) else found[name]
        if name.startswith("viewer_movie_") and got is not None:
            got = value if abs(got - value) < 1e-12 else got
        if got != value:
            pytest.fail(f"{name}: {got} instead of {value}")
    return True


def test_training_rows_are_the_vectors_as_of_each_rating(store: FeatureStore) -> None:
    """Ratings of viewers and movies of which nothing came late: what a ranker trains on."""
    late = {(r.viewer_id, r.movie_id) for r in RATINGS if r.known_at > r.moment}
    viewers, movies = {viewer for viewer, _ in late}, {movie for _, movie in late}
    moments = [(r.viewer_id, r.movie_id, r.moment) for r in RATINGS if r.viewer_id not in viewers]
    moments = [m for m in moments if m[1] not in movies or m[2] > max(r.known_at for r in RATINGS) + DAY]
    last = START + 2_000 * DAY
    moments += [(viewer, movie, last) for viewer in (1, 2, 3, 999) for movie in (1, 2, 3, 4, 5, 6)]
    frame = store.get_historical_features(
        entity_df=asked(moments),
        features=store.get_feature_service(CONTRACT.name),
        filter_by_created_timestamp=True,
    ).to_df()
    found = {int(row["number"]): row.to_dict() for _, row in frame.iterrows()}
    assert len(found) == len(moments) > 30
    for number, (viewer, movie, moment) in enumerate(moments):
        assert same(found[number], expected_vector(viewer, movie, moment))


def test_served_vectors_are_those_of_now_however_old_the_rows_are(store: FeatureStore) -> None:
    """Ten years after the ratings every row is still the newest word, and no window counts anything."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    materialize(store, now, None)
    pairs = [(viewer, movie) for viewer in (1, 2, 3, 999) for movie in (1, 2, 3, 4, 5, 6)]
    moment = pd.Timestamp(now) + timedelta(seconds=5)
    response = store.get_online_features(
        features=store.get_feature_service(CONTRACT.name),
        entity_rows=[
            {"viewer_id": viewer, "movie_id": movie, "request_timestamp": moment.timestamp()}
            for viewer, movie in pairs
        ],
    ).to_dict()
    for index, (viewer, movie) in enumerate(pairs):
        found = {feature.name: response[feature.name][index] for feature in CONTRACT.features}
        assert same(found, expected_vector(viewer, movie, moment))
        assert found["viewer_rating_count_365d"] == (None if viewer == 999 else 0)
    served = store.get_online_features(
        features=store.get_feature_service("viewer_history_v1"),
        entity_rows=[{"viewer_id": viewer} for viewer in (1, 2, 3, 999)],
    ).to_dict()["viewer_rated_movie_ids"]
    assert served == [history(viewer, moment.normalize()) for viewer in (1, 2, 3, 999)]
    assert served[-1] is None


def test_the_loader_fills_the_raw_tables_once_and_replaces_them_whole(
    rehearsal: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last in this module: it replaces the ratings that the others were built from."""
    monkeypatch.setenv("FEATURE_STORE_RAW_SCHEMA", rehearsal.table("raw"))
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    table = rehearsal.table("raw.ratings")
    count = f"select count(*), count(distinct viewer_id), min(rated_at), sum(rating) from {table}"
    assert load_movies.main([]) == 0
    loaded = rehearsal.connection.execute(count).fetchone()
    assert loaded == (100_004, 671, datetime(1995, 1, 9, 11, 46, 49, tzinfo=UTC), 354_375.0)
    rehearsal.connection.execute(f"delete from {rehearsal.table('raw.ratings')} where viewer_id = 1")
    assert load_movies.main([]) == 0
    assert "were loaded before" in capsys.readouterr().out
    assert load_movies.main(["--reload"]) == 0
    assert rehearsal.connection.execute(count).fetchone() == loaded
    (tmp_path / "bad.csv").write_text("movieId,title,year,genres\n1,Heat,1995,Sitcom\n")
    assert load_movies.main(["--movies", str(tmp_path / "bad.csv")]) == 1
    assert "bad.csv: row 1: genres are not" in capsys.readouterr().err
    assert rehearsal.connection.execute(count).fetchone() == loaded
