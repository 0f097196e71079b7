"""Reference statistics for drift: how features and scores were distributed in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from common_ml_utils.preprocessing import PreprocessedFeature, Preprocessing

SCORE = "score"
BINS = 20


def reference_statistics(
    frame: pd.DataFrame, preprocessing: Preprocessing, scores: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Return name -> statistics for every feature and for `score`, from the rows the model was trained on."""
    statistics = {
        feature.name: _of_feature(frame[feature.name], feature) for feature in preprocessing.features
    }
    statistics[SCORE] = numeric_reference(scores)
    return statistics


def numeric_reference(values: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Count values between interior edges at the quantiles; bin i holds edges[i-1] <= value < edges[i].

    >>> numeric_reference(np.array([0.0, 0.0, 1.0, np.nan]), bins=2)
    {'edges': [0.0], 'counts': [0, 3], 'null_count': 1}
    """
    known = values[~np.isnan(values)]
    quantiles = np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1], method="lower") if len(known) else []
    edges = np.unique(quantiles)
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    return {
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "null_count": int(np.isnan(values).sum()),
    }


def _of_feature(values: pd.Series, feature: PreprocessedFeature) -> dict[str, Any]:
    if feature.categories is None:
        return numeric_reference(values.to_numpy(dtype=np.float64, na_value=np.nan))
    counts = values.value_counts()
    return {
        "categories": list(feature.categories),
        "counts": [int(counts.get(category, 0)) for category in feature.categories],
        "null_count": int(values.isna().sum()),
    }
