"""Which group a viewer or a movie belongs to."""

from __future__ import annotations

import numpy as np
import pandas as pd
from src.slices import slices_of, viewer_slices


def members(slices: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()}


def test_every_viewer_is_in_one_band_of_history() -> None:
    assert members(dict(viewer_slices(np.array([0, 29, 30, 99, 100, 300, 5000])))) == {
        "history: 0-29 movies": [0, 1],
        "history: 30-99 movies": [2, 3],
        "history: 100-299 movies": [4],
        "history: 300+ movies": [5, 6],
    }


def test_movies_are_told_apart_by_age_and_popularity() -> None:
    frame = pd.DataFrame({"movie_age_years": [-0.3, 5, 40, np.nan], "movie_rating_count": [0, 1, 9, 50]})
    assert members(dict(slices_of(frame))) == {
        "movie age: 0-4 years": [0],
        "movie age: 5-14 years": [1],
        "movie age: 15-29 years": [],
        "movie age: 30+ years": [2],
        "movie age: unknown": [3],
        "movie: 0 ratings": [0],
        "movie: 1-9 ratings": [1, 2],
        "movie: 10-49 ratings": [],
        "movie: 50+ ratings": [3],
    }
