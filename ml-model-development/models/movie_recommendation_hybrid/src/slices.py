"""The groups the recommender is reported and guarded on: viewers by history, movies by age and popularity."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common_ml_utils.slices import Slices

HISTORY_BANDS = (0, 30, 100, 300)
AGE_BANDS = (0, 5, 15, 30)
POPULARITY_BANDS = (0, 1, 10, 50)


def viewer_slices(history_lengths: np.ndarray) -> Slices:
    """Return masks over viewers by the number of movies they rated in training."""
    return _bands("history", history_lengths, HISTORY_BANDS, "movies")


def slices_of(frame: pd.DataFrame) -> Slices:
    """Return masks over rows by the movie's age at the time and its ratings in training.

    `frame` has `movie_age_years` and `movie_rating_count`; a movie of unknown age is in a slice of its own.
    """
    age = frame["movie_age_years"].to_numpy(dtype=np.float64, na_value=np.nan)
    known = ~np.isnan(age)
    ages = {
        name: mask & known
        for name, mask in _bands("movie age", np.maximum(np.nan_to_num(age), 0), AGE_BANDS, "years").items()
    }
    counts = frame["movie_rating_count"].to_numpy(dtype=np.float64)
    return {
        **ages,
        "movie age: unknown": ~known,
        **_bands("movie", counts, POPULARITY_BANDS, "ratings"),
    }


def _bands(name: str, values: np.ndarray, edges: tuple[int, ...], unit: str) -> dict[str, np.ndarray]:
    """Cut at the edges, the first of which is the lowest value there is."""
    upper = (*edges[1:], None)
    masks = {}
    for low, high in zip(edges, upper, strict=True):
        inside = values >= low if high is None else (values >= low) & (values < high)
        label = f"{low}+" if high is None else f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        masks[f"{name}: {label} {unit}"] = inside
    return masks
