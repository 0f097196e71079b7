"""From a recorded request and a history to a list of movies: what is asked, ranked and screened. Pure.

Everything is read from the request as it is recorded, so that a replay takes the way of the decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common_service_libs.recommender import (
    AGE,
    FIRST_GENRE,
    GENRE_COUNT,
    GENRE_PREFIX,
    GENRES_PER_UNIT,
    NewMovies,
    Ranking,
    Recommender,
)

DAYS_A_YEAR = 365.2425
FIRST_YEAR = 1970
SECONDS_A_DAY = 86_400
SPARE = 50
"""How many candidates beyond the list's length are ranked at first; the rest only if these do not suffice."""
MOVIE_FEATURES = ("movie_rating_count", GENRE_COUNT)
VIEWER_FEATURE = "viewer_rating_count"


@dataclass(frozen=True, slots=True)
class Hidden:
    """A movie that was not shown, and the rules that said so."""

    movie_id: int
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picked:
    """A list, best first, what was hidden before its end, and all rules that fired, each once."""

    movies: tuple[tuple[int, float], ...]
    hidden: tuple[Hidden, ...]
    rules_fired: tuple[str, ...]


Screen = Callable[[int, float, Mapping[str, float]], tuple[bool, tuple[str, ...]]]
"""What the policy says of a movie, its score and its features: whether it is shown, which rules fired."""


def genre_flag(name: str) -> str:
    """Return the name of the feature that flags a genre, however the genre is written.

    >>> genre_flag("Sci-Fi")
    'movie_is_scifi'
    """
    return GENRE_PREFIX + "".join(letter for letter in name.lower() if letter.isalnum())


def parse_history(text: str | None) -> list[int]:
    """Return the movie ids of a stored history, oldest first; raises ValueError for other text.

    >>> parse_history("318,50")
    [318, 50]
    """
    return [int(movie) for movie in text.split(",")] if text else []


class Request:
    """A recorded request with the model that answers it: candidates, their features, the list."""

    def __init__(self, model: Recommender, recorded: Mapping[str, Any], as_of: float) -> None:
        self._model = model
        self._recorded = recorded
        given: Sequence[Mapping[str, Any]] | None = recorded.get("movies")
        self._only_new = recorded["route"] == "recommend_new_movies"
        self.left_out = [int(movie["movie_id"]) for movie in given or () if model.knows(movie["movie_id"])]
        fresh = [movie for movie in given or () if not model.knows(movie["movie_id"])]
        self.new_movies = None if not fresh else NewMovies(
            np.array([movie["movie_id"] for movie in fresh], dtype=np.int64),
            model.content_of([_content_row(model.parameters.content_features, m, as_of) for m in fresh]),
        )  # fmt: skip
        self._news = {int(m["movie_id"]): at for at, m in enumerate(fresh)}
        self._allowed = self._mask(given)

    def _mask(self, given: Sequence[Mapping[str, Any]] | None) -> np.ndarray | None:
        """Return which of the catalogue, then of the new movies, may be shown; None for all of them."""
        model, recorded = self._model, self._recorded
        only: Iterable[int] | None = recorded.get("only")
        if self._only_new:
            only = (int(m["movie_id"]) for m in given) if given is not None else model.unrated.tolist()
        exclude, genres = recorded.get("exclude"), recorded.get("genres")
        if only is None and not exclude and not genres:
            return None
        ids, flags = model.arrays.movie_ids, model.genre_flags
        if self.new_movies is not None:
            ids = np.concatenate([ids, self.new_movies.movie_ids])
            flags = np.concatenate([flags, self._flags_of(self.new_movies.content)])
        allowed = np.ones(len(ids), dtype=bool)
        if only is not None:
            allowed &= np.isin(ids, np.fromiter(only, dtype=np.int64))
        if self._only_new and given is not None:  # the catalogue's movies are not new
            allowed[: len(model.arrays.movie_ids)] = False
        if exclude:
            allowed &= ~np.isin(ids, np.array(exclude, dtype=np.int64))
        if genres:
            wanted = {genre_flag(name) for name in genres}
            columns = [GENRE_PREFIX + genre in wanted for genre in model.parameters.genres]
            allowed &= flags[:, columns].any(axis=1)
        return allowed

    def _flags_of(self, content: np.ndarray) -> np.ndarray:
        flags: np.ndarray = content[:, FIRST_GENRE : FIRST_GENRE + len(self._model.parameters.genres)] > 0
        return flags

    def ranking(self, history: Sequence[int], limit: int | None) -> Ranking:
        """Return what may be shown for a history, best first."""
        return self._model.rank(
            history,
            exclude_seen=self._recorded["exclude_seen"],
            new_movies=self.new_movies,
            allowed=self._allowed,
            limit=limit,
        )

    def genres_of(self, movie_id: int) -> tuple[str, ...]:
        """Return the main genres of a candidate."""
        content = self._content_of(movie_id)
        flags = content[FIRST_GENRE : FIRST_GENRE + len(self._model.parameters.genres)]
        return tuple(
            name for name, flag in zip(self._model.parameters.genres, flags, strict=True) if flag > 0
        )

    def _content_of(self, movie_id: int) -> np.ndarray:
        if (at := self._news.get(movie_id)) is not None:
            assert self.new_movies is not None
            new: np.ndarray = self.new_movies.content[at]
            return new
        known: np.ndarray = self._model.arrays.content[self._model.positions([movie_id])[0]]
        return known

    def features_of(self, movie_id: int) -> dict[str, float]:
        """Return what rules may read of a candidate: ratings in training, number of genres, main genres."""
        content = self._content_of(movie_id)
        count = 0.0
        if movie_id not in self._news:
            count = float(self._model.arrays.support[self._model.positions([movie_id])[0]])
        genres = self._model.parameters.genres
        features = {
            GENRE_PREFIX + name: float(flag)
            for name, flag in zip(genres, content[FIRST_GENRE : FIRST_GENRE + len(genres)], strict=True)
        }
        number = float(content[FIRST_GENRE + len(genres)]) * GENRES_PER_UNIT
        return features | {"movie_rating_count": count, GENRE_COUNT: round(number, 4)}

    def pick(self, history: Sequence[int], screen: Screen) -> Picked:
        """Return the list: the best movies that policy and request let through."""
        wanted: int = self._recorded["k"]
        ranking = self.ranking(history, wanted + SPARE)
        picked = self._screened(ranking, screen)
        if len(picked.movies) < wanted and len(ranking.movie_ids) == wanted + SPARE:
            picked = self._screened(self.ranking(history, None), screen)
        return picked

    def _screened(self, ranking: Ranking, screen: Screen) -> Picked:
        movies: list[tuple[int, float]] = []
        hidden: list[Hidden] = []
        fired: dict[str, None] = {}
        most: int | None = self._recorded.get("max_per_genre")
        taken: dict[str, int] = {}
        for movie, score in zip(ranking.movie_ids.tolist(), ranking.scores.tolist(), strict=True):
            if len(movies) == self._recorded["k"]:
                break
            genres = self.genres_of(movie) if most is not None else ()
            if most is not None and any(taken.get(genre, 0) >= most for genre in genres):
                continue
            shown, rules = screen(movie, score, self.features_of(movie))
            fired.update(dict.fromkeys(rules))
            if not shown:
                hidden.append(Hidden(movie, rules))
                continue
            movies.append((movie, score))
            for genre in genres:
                taken[genre] = taken.get(genre, 0) + 1
        return Picked(tuple(movies), tuple(hidden), tuple(fired))

    def pick_again(self, history: Sequence[int], hidden: Iterable[int]) -> Picked:
        """Return the list as it was decided, with the movies that the policy of that time had hidden."""
        gone = frozenset(hidden)
        return self.pick(history, lambda movie, score, features: (movie not in gone, ()))


def _content_row(names: Sequence[str], movie: Mapping[str, Any], as_of: float) -> list[float | None]:
    """Return the content features of a movie given by year and genres, as the feature service has them."""
    genres, year = movie.get("genres"), movie.get("year")
    flags = None if genres is None else {genre_flag(name) for name in genres}
    row: list[float | None] = []
    for name in names:
        if name == AGE:
            days = math.floor(as_of / SECONDS_A_DAY)
            row.append(None if year is None else days / DAYS_A_YEAR + FIRST_YEAR - year)
        elif flags is None:
            row.append(None)
        elif name == GENRE_COUNT:
            row.append(float(len(genres or ())))
        else:
            row.append(float(name in flags))
    return row
