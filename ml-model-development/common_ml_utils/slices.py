"""Metrics of named groups of rows, each with its sample size and interval, and disparity to all other rows.

Pure: arrays in, numbers out. What can't be judged from so few rows is None, and a note says what is missing;
a ranking or a rate without an interval is never given. docs/model-card.md says how to read the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common_ml_utils.errors import EmptyWindowError, SchemaMismatchError
from common_ml_utils.evaluation_utils import (
    expected_calibration_error,
    group_draws,
    weighted_auc_roc,
    weighted_average_precision,
)

Slices = Mapping[str, np.ndarray]
"""Slice name -> boolean mask over a frame's rows; slices may overlap and need not cover all rows."""

ALL_ROWS = "all rows"
MINIMUM_ROWS = 100
"""Rows (for a false positive rate: negatives) below which a rate is not judged."""
MINIMUM_OF_A_CLASS = 20
"""Positives, and negatives, below which a ranking or a recall is not judged."""
EVEN = (0.8, 1.25)
"""Ratios of rates that count as even: the four-fifths rule, both ways."""


@dataclass(frozen=True)
class Estimate:
    """A value and the central 95 % of its bootstrap resamples."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Disparity:
    """Ratios of a slice's rates to those of all rows outside it; 1 is even, None can't be judged."""

    alert_rate: Estimate | None
    false_positive_rate: Estimate | None
    recall: Estimate | None

    @property
    def uneven(self) -> list[str]:
        """Names of the ratios whose whole interval lies outside of `EVEN`."""
        ratios = {
            "alert rate": self.alert_rate,
            "false positive rate": self.false_positive_rate,
            "recall": self.recall,
        }
        low, high = EVEN
        return [name for name, ratio in ratios.items() if ratio and (ratio.upper < low or ratio.lower > high)]


@dataclass(frozen=True)
class SliceMetrics:
    """What a score does on a slice; a figure is None where `note` says that there are too few rows to judge.

    `calibration_error` is the mean |observed - predicted| over bins of equally many rows, `calibration_bias`
    the mean score minus the observed rate. Rates are those of acting on scores at or above the threshold.
    """

    name: str
    rows: int
    positives: int
    base_rate: float | None
    auc_roc: Estimate | None
    average_precision: Estimate | None
    calibration_error: float | None
    calibration_bias: Estimate | None
    alert_rate: Estimate | None
    false_positive_rate: Estimate | None
    recall: Estimate | None
    disparity: Disparity
    note: str | None


def whole(rows: int) -> dict[str, np.ndarray]:
    """Return the one slice that holds every row: the figures of the whole, with intervals."""
    return {ALL_ROWS: np.ones(rows, dtype=bool)}


def check_slices(slices: Slices, rows: int) -> None:
    """Raise SchemaMismatchError for a mask that is not one boolean a row."""
    for name, mask in slices.items():
        if mask.shape != (rows,) or mask.dtype != np.bool_:
            raise SchemaMismatchError(
                f"slice {name!r}: {rows} booleans are needed, found {mask.dtype} of shape {mask.shape}"
            )


def slice_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    slices: Slices,
    threshold: float,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> list[SliceMetrics]:
    """Return the metrics of each slice, in the order given; raises EmptyWindowError without rows.

    Rows of one of `groups` (a card, a subscriber) are not independent: whole groups are drawn, and a slice
    and the rows outside it see the same draws.
    """
    if len(labels) == 0:
        raise EmptyWindowError("slices: there are no rows")
    check_slices(slices, len(labels))
    group_of_row, draws = group_draws(groups, resamples, seed)
    columns = _additive_columns(labels, scores, threshold)
    everything = whole(len(labels))[ALL_ROWS]
    per_group = [_by_group(columns, mask, group_of_row) for mask in [everything, *slices.values()]]
    positions = [np.flatnonzero(mask) for mask in slices.values()]
    measured = [_counts(labels, mask) for mask in slices.values()]
    totals: list[list[np.ndarray]] = [[part.sum(axis=0, keepdims=True)] for part in per_group]
    rankings: list[list[np.ndarray]] = [
        [_rankings(labels[rows], scores[rows], np.ones((1, len(rows))))] if counts.can_rank else []
        for rows, counts in zip(positions, measured, strict=True)
    ]
    for draw in draws:
        for sums, part in zip(totals, per_group, strict=True):
            sums.append(draw @ part)
        for parts, rows, counts in zip(rankings, positions, measured, strict=True):
            if counts.can_rank:
                parts.append(_rankings(labels[rows], scores[rows], draw[:, group_of_row[rows]]))
    all_totals = np.concatenate(totals[0])
    return [
        _metrics(
            name,
            counts,
            totals=np.concatenate(sums),
            all_totals=all_totals,
            rankings=np.concatenate(parts) if parts else None,
            calibration_error=expected_calibration_error(labels[rows], scores[rows])
            if counts.can_rate
            else None,
        )
        for (name, counts, sums, parts, rows) in zip(
            slices, measured, totals[1:], rankings, positions, strict=True
        )
    ]


@dataclass(frozen=True)
class _Counts:
    """How many rows there are, and so what may be judged."""

    rows: int
    positives: int

    @property
    def negatives(self) -> int:
        return self.rows - self.positives

    @property
    def can_rate(self) -> bool:
        return self.rows >= MINIMUM_ROWS

    @property
    def can_rate_negatives(self) -> bool:
        return self.negatives >= MINIMUM_ROWS

    @property
    def can_recall(self) -> bool:
        return self.positives >= MINIMUM_OF_A_CLASS

    @property
    def can_rank(self) -> bool:
        return min(self.positives, self.negatives) >= MINIMUM_OF_A_CLASS

    def note(self) -> str | None:
        """Return what is too few to judge."""
        lacking = []
        if not self.can_rate:
            lacking.append(f"{self.rows} rows of {MINIMUM_ROWS}")
        elif not self.can_rate_negatives:
            lacking.append(f"{self.negatives} negatives of {MINIMUM_ROWS}")
        if not self.can_recall:
            lacking.append(f"{self.positives} positives of {MINIMUM_OF_A_CLASS}")
        return f"too few to judge: {', '.join(lacking)}" if lacking else None


def _counts(labels: np.ndarray, mask: np.ndarray) -> _Counts:
    return _Counts(int(mask.sum()), int(labels[mask].sum()))


def _additive_columns(labels: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return per row what rates are sums of: row, positive, alert, true alert, score; shape (rows, 5)."""
    positive, alert = labels == 1, scores >= threshold
    return np.column_stack([np.ones(len(labels)), positive, alert, positive & alert, scores])


def _by_group(columns: np.ndarray, mask: np.ndarray, group_of_row: np.ndarray) -> np.ndarray:
    """Sum the masked rows' columns by group, shape (groups, columns)."""
    number = int(group_of_row.max()) + 1
    return np.stack(
        [np.bincount(group_of_row[mask], weights=column[mask], minlength=number) for column in columns.T],
        axis=1,
    )


def _rates(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return alert rate, false positive rate, recall and calibration bias of each row of totals."""
    rows, positives, alerts, true_alerts, score = totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "alert_rate": alerts / rows,
            "false_positive_rate": (alerts - true_alerts) / (rows - positives),
            "recall": true_alerts / positives,
            "calibration_bias": (score - positives) / rows,
        }


def _rankings(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return AUC ROC and average precision under each row of weights, shape (resamples, 2)."""
    return np.column_stack(
        [
            weighted_auc_roc(labels, scores, weights),
            weighted_average_precision(labels, scores, weights),
        ]
    )


def _metrics(
    name: str,
    counts: _Counts,
    *,
    totals: np.ndarray,
    all_totals: np.ndarray,
    rankings: np.ndarray | None,
    calibration_error: float | None,
) -> SliceMetrics:
    rates, rest = _rates(totals), _rates(all_totals - totals)
    all_rows, all_positives = (int(n) for n in all_totals[0, :2])
    others = _Counts(all_rows - counts.rows, all_positives - counts.positives)
    judged = {
        "alert_rate": (counts.can_rate, others.can_rate),
        "false_positive_rate": (counts.can_rate_negatives, others.can_rate_negatives),
        "recall": (counts.can_recall, others.can_recall),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            rate: _estimate(rates[rate] / rest[rate]) if here and there else None
            for rate, (here, there) in judged.items()
        }
    return SliceMetrics(
        name=name,
        rows=counts.rows,
        positives=counts.positives,
        base_rate=counts.positives / counts.rows if counts.rows else None,
        auc_roc=None if rankings is None else _estimate(rankings[:, 0]),
        average_precision=None if rankings is None else _estimate(rankings[:, 1]),
        calibration_error=calibration_error,
        calibration_bias=_estimate(rates["calibration_bias"]) if counts.can_rate else None,
        **{rate: _estimate(rates[rate]) if here else None for rate, (here, _) in judged.items()},
        disparity=Disparity(**ratios),
        note=counts.note(),
    )


def _estimate(values: np.ndarray) -> Estimate | None:
    """Return the first value, the point, with the interval of the others; None when it is not a number.

    A draw that measures nothing (no positive, a ratio to zero) is left out.
    """
    point, sample = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(point) or len(sample) == 0:
        return None
    lower, upper = np.quantile(sample, [0.025, 0.975])
    return Estimate(float(point), float(lower), float(upper))
