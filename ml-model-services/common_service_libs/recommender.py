"""The hybrid recommender of a bundle, evaluated for one viewer. NumPy only.

score(viewer, movie) = w x collaborative + (1 - w) x prior, where
- w = (1 - content_share) x m / (m + viewer_strength) x n / (n + movie_strength), with m movies of the history
  that have a collaborative part and n ratings of the movie in training;
- collaborative = a mix of EASE and ALS, each standardised over the movies that have such a part;
- prior = prior_scale x (content, standardised over the catalogue, + popularity_scale x popularity).

Written from docs/recommendation.md of the model's root; the golden lists of a bundle hold both to the same.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from common_service_libs.errors import BundleError

PARAMETERS = "parameters"
GENRE_PREFIX = "movie_is_"
GENRE_COUNT, AGE = "movie_genre_count", "movie_age_years"
AGE_BANDS = np.array([0.0, 3.0, 8.0, 15.0, 25.0, 45.0])
"""Lower edges, in years, of the bands of a movie's age; younger than 0 counts as 0."""
FIRST_GENRE = 2
"""Columns of `content`: 1; no main genre; a flag a genre; genres / 5; a flag for each band of age."""
GENRES_PER_UNIT = 5
SMALLEST = np.float32(1e-9)


@dataclass(frozen=True)
class Arrays:
    """Everything that is learned; I movies in order of id, of which W have a collaborative part.

    movie_ids (I,) int64; support (I,) int32: ratings in training; content (I, D) float32; content_map (D, D)
    float64: taste -> content; warm (W,) int32: positions in movie_ids; ease_factors (W, R), ease_in (W,),
    ease_out (W,) float32: the weight of i for j is ease_in[i] x factors[i] . factors[j] x ease_out[j];
    als_factors (W, F) float32.
    """

    movie_ids: np.ndarray
    support: np.ndarray
    content: np.ndarray
    content_map: np.ndarray
    warm: np.ndarray
    ease_factors: np.ndarray
    ease_in: np.ndarray
    ease_out: np.ndarray
    als_factors: np.ndarray


@dataclass(frozen=True)
class Parameters:
    """The numbers beside the arrays; `content_features` are what content is made of, genres first."""

    als_share: float
    content_share: float
    viewer_strength: float
    movie_strength: float
    prior_scale: float
    popularity_scale: float
    als_regularization: float
    als_confidence: float
    content_features: tuple[str, ...]

    @property
    def genres(self) -> tuple[str, ...]:
        """The main genres, in the order of their flags."""
        return tuple(
            name.removeprefix(GENRE_PREFIX) for name in self.content_features if name.startswith(GENRE_PREFIX)
        )


@dataclass(frozen=True)
class NewMovies:
    """Movies without ratings: ids in the given order, and their content as `content_of` gives it."""

    movie_ids: np.ndarray
    content: np.ndarray


@dataclass(frozen=True)
class Parts:
    """What a score is made of; the three shares and nothing else add up to it.

    `because` holds the movies of the history that speak most for it, with what each adds to the score.
    """

    score: float
    history: float
    content: float
    popularity: float
    because: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Ranking:
    """All movies that may be recommended, best first."""

    movie_ids: np.ndarray
    scores: np.ndarray


class Recommender:
    """Scores and ranks the catalogue, and new movies, for a viewer given by a history of movie ids."""

    def __init__(self, arrays: Arrays, parameters: Parameters) -> None:
        _require_consistent(arrays, parameters)
        self.arrays, self.parameters = arrays, parameters
        self._place = {int(movie): at for at, movie in enumerate(arrays.movie_ids)}
        self._warm_of = np.full(len(arrays.movie_ids), -1, dtype=np.int64)
        self._warm_of[arrays.warm] = np.arange(len(arrays.warm))
        self._sources = arrays.ease_factors * arrays.ease_in[:, None]
        self._targets = np.ascontiguousarray((arrays.ease_factors * arrays.ease_out[:, None]).T)
        own = (arrays.ease_factors**2).sum(axis=1) * arrays.ease_in * arrays.ease_out
        self._own_weight = own.astype(np.float32)
        self._als = arrays.als_factors.astype(np.float64)
        self._als_targets = np.ascontiguousarray(arrays.als_factors.T)
        self._als_gram = self._als.T @ self._als + parameters.als_regularization * np.eye(self._als.shape[1])
        self._content_targets = np.ascontiguousarray(self._wanted(arrays.content).T)
        counts = np.log1p(arrays.support.astype(np.float64))
        self._count_mean = float(counts.mean()) if len(counts) else 0.0
        self._count_deviation = max(float(counts.std()) if len(counts) else 0.0, 1e-9)
        self._popularity = self._popularity_of(counts)
        ratings = arrays.support[arrays.warm]
        self._movie_trust = (ratings / np.maximum(ratings + parameters.movie_strength, 1e-9)).astype(
            np.float32
        )
        genres = slice(FIRST_GENRE, FIRST_GENRE + len(parameters.genres))
        self.genre_flags: np.ndarray = arrays.content[:, genres] > 0
        self.unrated: np.ndarray = arrays.movie_ids[arrays.support == 0]
        """The catalogue's movies that nobody had rated at training."""

    # --- what is known ----------------------------------------------------------------------------

    def positions(self, movie_ids: Sequence[int]) -> np.ndarray:
        """Return where movies stand in the catalogue, ascending and each once; unknown ones are left out."""
        found = {at for movie in movie_ids if (at := self._place.get(movie)) is not None}
        return np.array(sorted(found), dtype=np.int64)

    def knows(self, movie_id: int) -> bool:
        """Return whether the catalogue has the movie."""
        return movie_id in self._place

    def content_of(self, rows: Sequence[Sequence[float | None]]) -> np.ndarray:
        """Return what movies are as numbers; a row has the values of `content_features`, None is unknown."""
        width = len(self.parameters.content_features)
        values = np.array(
            [[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64
        ).reshape(len(rows), width)
        genres = np.nan_to_num(values[:, :-2])
        count, age = np.nan_to_num(values[:, -2]), values[:, -1]
        band = np.searchsorted(AGE_BANDS, np.maximum(np.nan_to_num(age), 0.0), side="right") - 1
        bands = (band[:, None] == np.arange(len(AGE_BANDS))) & ~np.isnan(age)[:, None]
        columns = [
            np.ones(len(rows)), genres.sum(axis=1) == 0, *genres.T, count / GENRES_PER_UNIT, *bands.T
        ]  # fmt: skip
        return np.column_stack(columns).astype(np.float32)

    # --- ranking ----------------------------------------------------------------------------------

    def rank(
        self,
        history: Sequence[int],
        *,
        exclude_seen: bool = True,
        new_movies: NewMovies | None = None,
        allowed: np.ndarray | None = None,
        limit: int | None = None,
    ) -> Ranking:
        """Return the best movies for a history, ties in the catalogue's order, then in that of the new ones.

        `allowed` is a mask over the catalogue, then the new movies; `limit` how many are wanted (all).
        """
        known = self.positions(history)
        scores = self._scores(known, None if new_movies is None else new_movies.content)
        ids = self.arrays.movie_ids
        if new_movies is not None:
            ids = np.concatenate([ids, new_movies.movie_ids])
        if allowed is not None:
            scores[~allowed] = -np.inf
        if exclude_seen:
            scores[known] = -np.inf
            if new_movies is not None:
                seen = np.isin(new_movies.movie_ids, np.fromiter(history, dtype=np.int64, count=len(history)))
                scores[len(self.arrays.movie_ids) :][seen] = -np.inf
        top = _top(scores, len(scores) if limit is None else limit)
        return Ranking(ids[top], scores[top])

    def _scores(self, known: np.ndarray, new_content: np.ndarray | None) -> np.ndarray:
        """Return the scores of the catalogue, then of new movies, float32."""
        parameters, arrays = self.parameters, self.arrays
        content, mean, deviation, taste = self._content(known)
        scores = (content - mean) / deviation
        scores += np.float32(parameters.popularity_scale) * self._popularity
        scores *= np.float32(parameters.prior_scale)
        warm = self._warm(known)
        if len(warm):
            part = scores[arrays.warm]
            part += self._trust(len(warm)) * (self._collaborative(warm) - part)
            scores[arrays.warm] = part
        if new_content is None:
            return scores
        new = (taste @ self._wanted(new_content).T - mean) / deviation
        new += np.float32(parameters.popularity_scale * self._popularity_of(np.zeros(1))[0])
        return np.concatenate([scores, new * np.float32(parameters.prior_scale)])

    def _warm(self, known: np.ndarray) -> np.ndarray:
        warm = self._warm_of[known]
        found: np.ndarray = warm[warm >= 0]
        return found

    def _trust(self, length: int) -> np.ndarray:
        parameters = self.parameters
        viewer = length / max(length + parameters.viewer_strength, 1e-9) * (1 - parameters.content_share)
        trust: np.ndarray = np.float32(viewer) * self._movie_trust
        return trust

    def _content(self, known: np.ndarray) -> tuple[np.ndarray, np.float32, np.float32, np.ndarray]:
        content = self.arrays.content
        if len(known):
            taste = content[known].mean(axis=0)
        else:  # of nobody only the constant column is known
            taste = np.zeros(content.shape[1], dtype=np.float32)
            taste[0] = 1
        scores = taste @ self._content_targets
        return scores, *_moments(scores), taste

    def _collaborative(self, warm: np.ndarray) -> np.ndarray:
        share = self.parameters.als_share
        mixed = np.zeros(len(self.arrays.warm), dtype=np.float32)
        if share < 1:
            mixed += np.float32(1 - share) * _standardised(self._ease(warm))
        if share > 0:
            mixed += np.float32(share) * _standardised(self._alternating(warm))
        return mixed

    def _ease(self, warm: np.ndarray) -> np.ndarray:
        scores: np.ndarray = self._sources[warm].sum(axis=0) @ self._targets
        scores[warm] -= self._own_weight[warm]  # the diagonal of EASE's weights is zero
        return scores

    def _als_left(self, warm: np.ndarray) -> np.ndarray:
        own = self._als[warm]
        left: np.ndarray = self._als_gram + (self.parameters.als_confidence - 1) * own.T @ own
        return left

    def _alternating(self, warm: np.ndarray) -> np.ndarray:
        right = self.parameters.als_confidence * self._als[warm].sum(axis=0)
        viewer = np.linalg.solve(self._als_left(warm), right)
        scores: np.ndarray = viewer.astype(np.float32) @ self._als_targets
        return scores

    def _wanted(self, content: np.ndarray) -> np.ndarray:
        wanted: np.ndarray = (content @ self.arrays.content_map.T).astype(np.float32)
        return wanted

    def _popularity_of(self, log_counts: np.ndarray) -> np.ndarray:
        standard: np.ndarray = ((log_counts - self._count_mean) / self._count_deviation).astype(np.float32)
        return standard

    # --- why --------------------------------------------------------------------------------------

    def explain(
        self,
        history: Sequence[int],
        movie_ids: Sequence[int],
        new_movies: NewMovies | None = None,
        *,
        nearest: int = 3,
    ) -> list[Parts]:
        """Return what the score of each of `movie_ids` is made of, in the units of the score.

        `nearest` is how many movies of the history are named. A movie's own part in the collaborative score
        is exact: EASE is a sum over the history, and ALS is one once its equation is solved.
        """
        known = self.positions(history)
        content, mean, deviation, taste = self._content(known)
        warm = self._warm(known)
        trust = self._trust(len(warm))
        collaborative = self._collaborative(warm) if len(warm) else np.zeros(0, dtype=np.float32)
        news = {} if new_movies is None else {int(m): at for at, m in enumerate(new_movies.movie_ids)}
        scale = self.parameters.prior_scale
        explained = []
        for movie in movie_ids:
            at = self._place.get(movie)
            if at is None:
                assert new_movies is not None
                raw = float(taste @ self._wanted(new_movies.content[news[movie]][None]).T[:, 0])
                popularity = float(self._popularity_of(np.zeros(1))[0])
            else:
                raw, popularity = float(content[at]), float(self._popularity[at])
            own = (raw - float(mean)) / float(deviation) * scale
            popular = self.parameters.popularity_scale * popularity * scale
            target = -1 if at is None else int(self._warm_of[at])
            because: tuple[tuple[int, float], ...] = ()
            shared = 0.0
            if target >= 0 and len(warm):
                weight = float(trust[target])
                shared, own, popular = (
                    weight * float(collaborative[target]), (1 - weight) * own, (1 - weight) * popular
                )  # fmt: skip
                because = self._because(warm, target, weight, nearest)
            explained.append(Parts(shared + own + popular, shared, own, popular, because))
        return explained

    def _because(
        self, warm: np.ndarray, target: int, weight: float, nearest: int
    ) -> tuple[tuple[int, float], ...]:
        """Return the movies of the history that add most to the collaborative score of `target`."""
        share = self.parameters.als_share
        added = np.zeros(len(warm))
        if share < 1:
            ease = self._sources[warm] @ self._targets[:, target]
            ease[warm == target] = 0.0
            added += (1 - share) * ease / float(_moments(self._ease(warm))[1])
        if share > 0:
            wanted = np.linalg.solve(self._als_left(warm).T, self._als[target])
            als = self.parameters.als_confidence * (self._als[warm] @ wanted)
            added += share * als / float(_moments(self._alternating(warm))[1])
        best = np.argsort(-added, kind="stable")[:nearest]
        ids = self.arrays.movie_ids[self.arrays.warm[warm[best]]]
        return tuple(
            (int(movie), weight * float(part))
            for movie, part in zip(ids, added[best], strict=True)
            if part > 0
        )


def parse_model(content: bytes) -> Recommender:
    """Return the model in the bytes of `model.npz`; raises BundleError for all else, a pickle included."""
    names = [field.name for field in fields(Arrays)]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if sorted(archive.files) != sorted([*names, PARAMETERS]):
                raise BundleError(f"the model holds {sorted(archive.files)}, not the arrays of a recommender")
            arrays = Arrays(**{name: archive[name] for name in names})
            document = json.loads(archive[PARAMETERS].tobytes())
        return Recommender(arrays, _parameters(document))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"the model cannot be read as npz: {error}") from None


def _parameters(document: dict[str, Any]) -> Parameters:
    return Parameters(
        **{name: float(value) for name, value in document["blend"].items()},
        als_regularization=float(document["als_regularization"]),
        als_confidence=float(document["als_confidence"]),
        content_features=tuple(document["content_features"]),
    )


def _require_consistent(arrays: Arrays, parameters: Parameters) -> None:
    features = parameters.content_features
    if features[-2:] != (GENRE_COUNT, AGE) or len(parameters.genres) != len(features) - 2:
        raise BundleError("the recommender's content features are not genres, their number and the age")
    movies, warm = len(arrays.movie_ids), len(arrays.warm)
    columns = FIRST_GENRE + len(parameters.genres) + 1 + len(AGE_BANDS)
    wanted: dict[str, tuple[int, ...]] = {
        "movie_ids": (movies,),
        "support": (movies,),
        "content": (movies, columns),
        "content_map": (columns, columns),
        "warm": (warm,),
        "ease_factors": (warm, arrays.ease_factors.shape[-1]),
        "ease_in": (warm,),
        "ease_out": (warm,),
        "als_factors": (warm, arrays.als_factors.shape[-1]),
    }
    if wrong := sorted(name for name, shape in wanted.items() if getattr(arrays, name).shape != shape):
        raise BundleError(f"arrays of the recommender have the wrong shape: {wrong}")
    if arrays.movie_ids.dtype.kind != "i" or (np.diff(arrays.movie_ids) <= 0).any():
        raise BundleError("the recommender's movie ids are not whole numbers in ascending order")
    if arrays.warm.dtype.kind != "i" or (warm and not 0 <= arrays.warm.min() <= arrays.warm.max() < movies):
        raise BundleError("the recommender's movies with ratings are not in its catalogue")
    if any(not np.isfinite(getattr(arrays, name)).all() for name in wanted):
        raise BundleError("the recommender holds values that are not numbers")


def _moments(scores: np.ndarray) -> tuple[np.float32, np.float32]:
    return scores.mean(), max(scores.std(), SMALLEST)


def _standardised(scores: np.ndarray) -> np.ndarray:
    mean, deviation = _moments(scores)
    standard: np.ndarray = (scores - mean) / deviation
    return standard


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the greatest scores, best first, ties by position; -inf is left out.

    >>> _top(np.array([1.0, 3.0, 3.0, -np.inf]), 3).tolist()
    [1, 2, 0]
    """
    if count < len(scores):
        cut = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero((scores >= cut) & (scores > -np.inf))
    else:
        candidates = np.flatnonzero(scores > -np.inf)
    top: np.ndarray = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
    return top
