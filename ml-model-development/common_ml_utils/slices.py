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
    Estimate,
    Ranking,
    estimate_of,
    expected_calibration_error,
    group_draws,
    sums_by_group,
)

Slices = Mapping[str, np.ndarray]
"""Slice name -> boolean mask over a frame's rows; slices may overlap and need not cover all rows."""

ALL_ROWS = "all rows"
MINIMUM_ROWS = 100
"""Rows (for a false positive rate: negatives) below which a rate is not judged."""
MINIMUM_OF_A_CLASS = 20
"""Positives, and negatives, below which a ranking or a recall is not judged."""
TOO_FEW = "too few to judge: "
EVEN = (0.8, 1.25)
"""Ratios of rates that count as even: the four-fifths rule, both ways."""


@dataclass(frozen=True)
class Disparity:
    """Ratios of a slice's rates to those of all rows outside it; 1 is even, None can't be judged."""

    alert_rate: Estimate | None
    false_positive_rate: Estimate | None
    recall: Estimate | None

    @property
    def uneven(self) -> dict[str, Estimate]:
        """Return the ratios whose whole interval lies outside of `EVEN`, by name."""
        ratios = {
            "alert rate": self.alert_rate,
            "false positive rate": self.false_positive_rate,
            "recall": self.recall,
        }
        low, high = EVEN
        return {
            name: ratio
            for name, ratio in ratios.items()
            if ratio and (ratio.upper < low or ratio.lower > high)
        }


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
    brier: Estimate | None
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
    number = int(group_of_row.max()) + 1
    columns = _additive_columns(labels, scores, threshold)
    everything = sums_by_group(columns, group_of_row, number)
    all_totals = [everything.sum(axis=0, keepdims=True)]
    parts = [_Part(name, labels, scores, np.flatnonzero(mask)) for name, mask in slices.items()]
    for part in parts:
        part.start(columns, group_of_row, number)
    for draw in draws:
        all_totals.append(draw @ everything)
        for part in parts:
            part.add(draw)
    return [_metrics(part, np.concatenate(all_totals)) for part in parts]


class _Part:
    """A slice while it is measured: its sums by group, and what each draw gives."""

    def __init__(self, name: str, labels: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        self.name, self.rows = name, rows
        self.counts = _Counts(len(rows), int(labels[rows].sum()))
        self.calibration_error = (
            expected_calibration_error(labels[rows], scores[rows]) if self.counts.can_rate else None
        )
        self._ranking = Ranking.of(labels[rows], scores[rows]) if self.counts.can_rank else None
        self.totals: list[np.ndarray] = []
        self.rankings: list[np.ndarray] = []

    def start(self, columns: np.ndarray, group_of_row: np.ndarray, groups: int) -> None:
        """Take the figures themselves, before any draw."""
        self._sums = sums_by_group(columns[self.rows], group_of_row[self.rows], groups)
        self.totals.append(self._sums.sum(axis=0, keepdims=True))
        if self._ranking is not None:
            self._ranking = self._ranking.by_group(group_of_row[self.rows], groups)
            self.rankings.append(self._ranking.measures(np.ones((1, groups))))

    def add(self, draw: np.ndarray) -> None:
        """Take the figures under a chunk of draws."""
        self.totals.append(draw @ self._sums)
        if self._ranking is not None:
            self.rankings.append(self._ranking.measures(draw))


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
        return f"{TOO_FEW}{', '.join(lacking)}" if lacking else None


def _additive_columns(labels: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return per row what rates are sums of: row, positive, alert, true alert, score, squared error."""
    positive, alert = labels == 1, scores >= threshold
    error = (scores - positive) ** 2
    return np.column_stack([np.ones(len(labels)), positive, alert, positive & alert, scores, error])


def _rates(totals: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rates, the calibration bias and the Brier score of each row of totals."""
    rows, positives, alerts, true_alerts, score, error = totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "alert_rate": alerts / rows,
            "false_positive_rate": (alerts - true_alerts) / (rows - positives),
            "recall": true_alerts / positives,
            "calibration_bias": (score - positives) / rows,
            "brier": error / rows,
        }


def _metrics(part: _Part, everything: np.ndarray) -> SliceMetrics:
    totals, counts = np.concatenate(part.totals), part.counts
    rates, rest = _rates(totals), _rates(everything - totals)
    all_rows, all_positives = (int(n) for n in everything[0, :2])
    others = _Counts(all_rows - counts.rows, all_positives - counts.positives)
    judged = {
        "alert_rate": (counts.can_rate, others.can_rate),
        "false_positive_rate": (counts.can_rate_negatives, others.can_rate_negatives),
        "recall": (counts.can_recall, others.can_recall),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {
            rate: estimate_of(rates[rate] / rest[rate]) if here and there else None
            for rate, (here, there) in judged.items()
        }
    rankings = np.concatenate(part.rankings) if part.rankings else None
    return SliceMetrics(
        name=part.name,
        rows=counts.rows,
        positives=counts.positives,
        base_rate=counts.positives / counts.rows if counts.rows else None,
        auc_roc=None if rankings is None else estimate_of(rankings[:, 0]),
        average_precision=None if rankings is None else estimate_of(rankings[:, 1]),
        brier=estimate_of(rates["brier"]) if counts.can_rate else None,
        calibration_error=part.calibration_error,
        calibration_bias=estimate_of(rates["calibration_bias"]) if counts.can_rate else None,
        **{rate: estimate_of(rates[rate]) if here else None for rate, (here, _) in judged.items()},
        disparity=Disparity(**ratios),
        note=counts.note(),
    )
