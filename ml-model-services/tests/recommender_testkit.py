"""A tiny recommender: random arrays of the real form, its bundle, and scores computed naively from them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from service_testkit import contract_document, write_bundle

from common_service_libs.recommender import Recommender, parse_model
from common_service_libs.recommender_bundle import new_movies_of

GENRES = (
    "action", "adventure", "children", "comedy", "crime", "drama", "fantasy", "romance", "scifi", "thriller"
)  # fmt: skip
FEATURES = (*(f"movie_is_{genre}" for genre in GENRES), "movie_genre_count", "movie_age_years")
BANDS = (0.0, 3.0, 8.0, 15.0, 25.0, 45.0)
BLEND = {
    "als_share": 0.3,
    "content_share": 0.2,
    "viewer_strength": 4.0,
    "movie_strength": 2.0,
    "prior_scale": 0.5,
    "popularity_scale": 1.5,
}
MOVIES = 60


def content_row(genres: tuple[str, ...] | None, age: float | None) -> list[float]:
    """Return what a movie is, written out by hand."""
    known = genres or ()
    flags = [float(genre in known) for genre in GENRES]
    bands = [0.0] * len(BANDS)
    if age is not None:
        bands[max(place for place, edge in enumerate(BANDS) if max(age, 0.0) >= edge)] = 1.0
    return [1.0, float(not any(flags)), *flags, len(known) / 5, *bands]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Return random arrays: 60 movies with odd ids, of which the last ten nobody has rated."""
    rng = np.random.default_rng(seed)
    support = rng.integers(1, 40, MOVIES).astype(np.int32)
    support[-10:] = 0
    warm = np.flatnonzero(support >= 3).astype(np.int32)
    rows = []
    for at in range(MOVIES):
        genres = tuple(rng.choice(GENRES, int(rng.integers(0, 4)), replace=False).tolist())
        rows.append(content_row(genres, None if at % 17 == 5 else float(rng.integers(-1, 60))))
    width = len(rows[0])
    return {
        "movie_ids": (np.arange(MOVIES) * 2 + 1).astype(np.int64),
        "support": support,
        "content": np.array(rows, dtype=np.float32),
        "content_map": rng.normal(size=(width, width)),
        "warm": warm,
        "ease_factors": rng.normal(size=(len(warm), 7)).astype(np.float32),
        "ease_in": rng.uniform(0.1, 1, len(warm)).astype(np.float32),
        "ease_out": rng.uniform(0.1, 1, len(warm)).astype(np.float32),
        "als_factors": rng.normal(size=(len(warm), 4)).astype(np.float32),
    }


def model_bytes(seed: int = 0, **blend: float) -> bytes:
    document = {
        "blend": BLEND | blend,
        "als_regularization": 3.0,
        "als_confidence": 5.0,
        "content_features": list(FEATURES),
    }
    text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays(seed), parameters=text)
    return buffer.getvalue()


def naive_scores(seed: int, history: list[int], **changes: float) -> dict[int, float]:
    """Return the score of every movie by the formula, in doubles, one movie after the other."""
    a, blend = arrays(seed), BLEND | changes
    ids = a["movie_ids"].tolist()
    known = sorted({ids.index(movie) for movie in history if movie in ids})
    content = a["content"].astype(float)
    taste = content[known].mean(axis=0) if known else np.eye(content.shape[1])[0]
    fit = [float(row @ a["content_map"].T @ taste) for row in content]
    counts = np.log1p(a["support"].astype(float))
    warm = a["warm"].tolist()
    mine = [warm.index(place) for place in known if place in warm]
    factors, als = a["ease_factors"].astype(float), a["als_factors"].astype(float)
    ease = [
        sum(float(a["ease_in"][i] * (factors[i] @ factors[j]) * a["ease_out"][j]) for i in mine if i != j)
        for j in range(len(warm))
    ]
    solved = np.linalg.solve(
        als.T @ als + 3.0 * np.eye(4) + 4.0 * als[mine].T @ als[mine], 5.0 * als[mine].sum(axis=0)
    )
    other = [float(solved @ als[j]) for j in range(len(warm))]
    trust = (1 - blend["content_share"]) * len(mine) / (len(mine) + blend["viewer_strength"])
    scores = {}
    for place, movie in enumerate(ids):
        popular = (counts[place] - counts.mean()) / counts.std()
        prior = blend["prior_scale"] * (
            (fit[place] - np.mean(fit)) / np.std(fit) + blend["popularity_scale"] * popular
        )
        scores[movie] = float(prior)
        if place in warm and mine:
            j, n = warm.index(place), float(a["support"][place])
            shared = (1 - blend["als_share"]) * (ease[j] - np.mean(ease)) / np.std(ease)
            shared += blend["als_share"] * (other[j] - np.mean(other)) / np.std(other)
            weight = trust * n / (n + blend["movie_strength"])
            scores[movie] = float(weight * shared + (1 - weight) * prior)
    return scores


def golden(model: Recommender) -> list[dict[str, Any]]:
    """Return lists for histories of all kinds, with new movies among them."""
    new = [
        {"movie_id": 1000, **dict.fromkeys(FEATURES, 0.0), "movie_is_drama": 1.0, "movie_genre_count": 1.0},
        {"movie_id": 1001, **dict.fromkeys(FEATURES)},
    ]
    lists = []
    for name, history, k, seen, movies in (
        ("nobody", [], 10, True, []),
        ("unknown movies", [2, 4], 10, True, []),
        ("some", [1, 5, 9, 33], 10, True, []),
        ("seen stay", [1, 5, 9, 33], 10, False, []),
        ("new ones", [1, 5, 9, 33], MOVIES + 2, True, new),
    ):
        found = model.rank(
            history, exclude_seen=seen, new_movies=new_movies_of(model, movies) if movies else None, limit=k
        )
        lists.append(
            {
                "name": name, "history": history, "movie_ids": found.movie_ids.tolist(),
                "scores": found.scores.tolist(), "k": k, "exclude_seen": seen, "new_movies": movies,
            }
        )  # fmt: skip
    return lists


def recommender_bundle(
    folder: Path,
    *,
    model_name: str = "movie-recommendation-model",
    seed: int = 0,
    tamper: dict[str, bytes] | None = None,
) -> str:
    """Write the bundle of a tiny recommender and return its identity; `tamper` replaces whole files."""
    model = model_bytes(seed)
    contents = {
        "model.npz": model,
        "feature_service.json": json.dumps(contract_document("movie_recommendation_v1")).encode(),
        "reference.json": b"{}",
        "golden.json": json.dumps(golden(parse_model(model))).encode(),
    } | (tamper or {})
    return write_bundle(folder, contents, model_name, "recommender", "model.npz", "movie_recommendation_v1")
