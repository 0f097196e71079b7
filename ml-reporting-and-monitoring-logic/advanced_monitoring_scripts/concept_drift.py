"""How good the scores were, now that the labels are known, against what the holdout promised. Pure.

Both metrics follow their usual definitions (ties share a step); the interval is a bootstrap over whole groups
(customers), because the rows of one customer are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHUNK = 20  # resamples held at once: 20 x 70,000 rows of float64 are 11 MB


@dataclass(frozen=True)
class Quality:
    """A metric on matured labels with its bootstrap interval, and the holdout's value."""

    metric: str
    current: float
    lower: float
    upper: float
    holdout: float

    @property
    def loss(self) -> float:
        """Holdout minus current."""
        return self.holdout - self.current


def auc_roc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve under each row of `weights` (resamples x rows).

    NaN where a class is missing.

    >>> auc_roc(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1]), np.ones((1, 4))).tolist()
    [0.75]
    """
    hits, total = _cumulated(labels, scores, weights)
    misses = total - hits
    width = np.diff(misses, axis=1, prepend=0.0)
    height = hits - np.diff(hits, axis=1, prepend=0.0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: np.ndarray = (width * height).sum(axis=1) / (hits[:, -1] * misses[:, -1])
    return area


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision under each row of `weights`; NaN without positives.

    >>> scores = np.array([0.9, 0.8, 0.7, 0.1])
    >>> average_precision(np.array([1, 0, 1, 0]), scores, np.ones((1, 4))).round(4).tolist()
    [0.8333]
    """
    hits, total = _cumulated(labels, scores, weights)
    precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    gained = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: np.ndarray = (precision * gained).sum(axis=1) / hits[:, -1]
    return result


METRICS = {"auc_roc": auc_roc, "average_precision": average_precision}


def qualities(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    holdout: dict[str, float],
    confidence: float,
    *,
    resamples: int = 300,
    seed: int = 0,
) -> list[Quality]:
    """Measure every metric the holdout has, with the central `confidence` interval of its bootstrap."""
    _, group_of_row = np.unique(groups, return_inverse=True)
    number = int(group_of_row.max()) + 1
    rng = np.random.default_rng(seed)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in METRICS if name in holdout}
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        draws = rng.multinomial(number, np.full(number, 1 / number), size=size)
        weights = draws[:, group_of_row].astype(np.float64)
        for name, values in samples.items():
            values.append(METRICS[name](labels, scores, weights))
    tail = (1 - confidence) / 2
    result = []
    for name, values in samples.items():
        lower, upper = np.nanquantile(np.concatenate(values), [tail, 1 - tail])
        current = float(METRICS[name](labels, scores, np.ones((1, len(labels))))[0])
        result.append(Quality(name, current, float(lower), float(upper), holdout[name]))
    return result


def _cumulated(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulate positive and total weight from the highest score down, at the last row of each tie."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    ordered = weights[:, order]
    return np.cumsum(ordered * labels[order], axis=1)[:, last_of_tie], np.cumsum(ordered, axis=1)[
        :, last_of_tie
    ]
