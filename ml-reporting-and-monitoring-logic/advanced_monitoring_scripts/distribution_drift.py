"""How far a sample lies from the reference it is compared with, on the reference's own bins. Pure.

The population stability index is PSI = sum((q - p) * ln(q / p)) over the bins' shares p (reference) and q
(current): zero for equal shares, never negative, the same both ways. Two samples of one distribution with n
and m rows give a PSI of about (1/n + 1/m) * chi-square with bins - 1 degrees of freedom (Yurdakul,
"Statistical Properties of Population Stability Index", 2018): what chance explains is stated beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtri

# As for a chi-square test: with fewer rows expected in a bin, its share says little.
MINIMUM_EXPECTED = 5.0
# An empty bin opposite a filled one counts half a row: its logarithm would be infinite.
EMPTY_BIN_ROWS = 0.5
UNKNOWN = "(unknown)"


@dataclass(frozen=True)
class NumericReference:
    """Counts between interior edges: bin i holds edges[i-1] <= value < edges[i]."""

    edges: np.ndarray
    counts: np.ndarray
    null_count: int

    def current_counts(self, values: np.ndarray) -> np.ndarray:
        """Count the values (float64, NaN is null and left out) in the same bins.

        >>> reference = NumericReference(np.array([1.0]), np.array([2.0, 2.0]), 0)
        >>> reference.current_counts(np.array([0.0, 1.0, np.nan]))
        array([1., 1.])
        """
        known = values[~np.isnan(values)]
        bins = np.searchsorted(self.edges, known, side="right")
        return np.bincount(bins, minlength=len(self.edges) + 1).astype(np.float64)

    def null_number(self, values: np.ndarray) -> int:
        """Count the nulls."""
        return int(np.isnan(values).sum())


@dataclass(frozen=True)
class CategoricalReference:
    """Counts of categories; a value that is none of them falls into a last bin of its own."""

    categories: tuple[str | float, ...]
    counts: np.ndarray
    null_count: int

    def current_counts(self, values: np.ndarray) -> np.ndarray:
        """Count the values (objects, None is null and left out) by category, the unknown ones last."""
        position = {category: i for i, category in enumerate(self.categories)}
        bins = [position.get(value, len(position)) for value in values if value is not None]
        return np.bincount(np.asarray(bins, dtype=np.intp), minlength=len(position) + 1).astype(np.float64)

    def null_number(self, values: np.ndarray) -> int:
        """Count the nulls."""
        return sum(value is None for value in values)


Reference = NumericReference | CategoricalReference


@dataclass(frozen=True)
class Distance:
    """How far two distributions lie apart, and what chance explains."""

    psi: float
    psi_by_chance: float
    jensen_shannon: float
    """In bits: 0 the same, 1 nothing in common."""
    ks: float
    """The greatest difference of the cumulated shares at a bin's edge."""
    bins: int


@dataclass(frozen=True)
class RateChange:
    """The share of nulls (or of unknown categories) then and now, and the difference that chance explains."""

    reference: float
    current: float
    by_chance: float

    @property
    def difference(self) -> float:
        """Current minus reference."""
        return self.current - self.reference


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Return the population stability index of two arrays of counts.

    >>> round(psi(np.array([50, 50]), np.array([75, 25])), 6)  # .25 ln 1.5 + -.25 ln .5
    0.274653
    """
    p, q = _shares(reference, current)
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: np.ndarray, current: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two arrays of counts, in bits.

    >>> jensen_shannon(np.array([10, 0]), np.array([0, 30]))
    1.0
    """
    p, q = reference / reference.sum(), current / current.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(share > 0, share * np.log2(share / middle), 0.0) for share in (p, q)]
    return float(np.clip((terms[0].sum() + terms[1].sum()) / 2, 0.0, 1.0))


def kolmogorov_smirnov(reference: np.ndarray, current: np.ndarray) -> float:
    """Return the greatest difference of the cumulated shares; the values within a bin can't be told apart.

    >>> kolmogorov_smirnov(np.array([1, 1, 2]), np.array([2, 1, 1]))
    0.25
    """
    return float(np.abs(np.cumsum(reference / reference.sum()) - np.cumsum(current / current.sum())).max())


def psi_by_chance(bins: int, reference_rows: float, current_rows: float, chance: float) -> float:
    """Return the PSI that two samples of one distribution exceed with probability `chance`.

    >>> round(psi_by_chance(10, 1e12, 1000, 0.05), 5)  # chi-square(9) at 5 % is 16.919
    0.01692
    """
    if bins < 2:
        return 0.0
    return float(chdtri(bins - 1, chance) * (1 / reference_rows + 1 / current_rows))


def distance(reference: Reference, counts: np.ndarray, chance: float) -> Distance:
    """Compare a sample's counts with the reference; needs at least one row on both sides."""
    expected, current = comparable_bins(reference, counts)
    return Distance(
        psi=psi(expected, current),
        psi_by_chance=psi_by_chance(len(expected), expected.sum(), current.sum(), chance),
        jensen_shannon=jensen_shannon(expected, current),
        ks=kolmogorov_smirnov(expected, current),
        bins=len(expected),
    )


def comparable_bins(reference: Reference, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join bins until at least five current rows are expected in each: neighbours, or the rarest categories.

    Unknown categories keep a bin of their own: there are none in the reference, so one is news.
    """
    rows = counts.sum()
    if isinstance(reference, NumericReference):
        return _joined(reference.counts, counts, rows)
    order = np.argsort(-reference.counts, kind="stable")
    expected, current = _joined(reference.counts[order], counts[:-1][order], rows)
    return np.append(expected, 0.0), np.append(current, counts[-1])


def rate_change(
    reference: float, reference_rows: float, current: float, current_rows: float, chance: float
) -> RateChange:
    """Compare two shares given as counts of rows; `by_chance` is that of a two-sided test of proportions.

    >>> change = rate_change(0, 1000, 50, 1000, 0.05)
    >>> round(change.difference, 3), round(change.by_chance, 4)  # 1.96 * sqrt(.025 * .975 * 2 / 1000)
    (0.05, 0.0137)
    """
    pooled = (reference + current) / (reference_rows + current_rows)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / reference_rows + 1 / current_rows))
    return RateChange(
        reference / reference_rows, current / current_rows, float(-ndtri(chance / 2) * deviation)
    )


def _shares(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of the bins that either side fills; a side that is empty there counts half a row."""
    filled = (reference > 0) | (current > 0)
    p = np.where(reference[filled] > 0, reference[filled], EMPTY_BIN_ROWS).astype(np.float64)
    q = np.where(current[filled] > 0, current[filled], EMPTY_BIN_ROWS).astype(np.float64)
    return p / p.sum(), q / q.sum()


def _joined(reference: np.ndarray, current: np.ndarray, rows: float) -> tuple[np.ndarray, np.ndarray]:
    expected = reference / max(reference.sum(), 1.0) * rows
    group = np.zeros(len(expected), dtype=np.intp)
    gathered, number = 0.0, 0
    for i, share in enumerate(expected):
        group[i] = number
        gathered += share
        if gathered >= MINIMUM_EXPECTED:
            gathered, number = 0.0, number + 1
    if gathered > 0 or (group == number).any():  # what is left over joins the last full bin
        group[group == number] = max(number - 1, 0)
    size = int(group.max(initial=0)) + 1
    return np.bincount(group, reference, size), np.bincount(group, current, size)
