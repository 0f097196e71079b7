"""What a list of recommendations is worth: per viewer, with bootstrap intervals over viewers. Pure NumPy.

Relevance is binary. nDCG: Jarvelin and Kekalainen 2002, the ideal list has min(k, relevant) hits. Novelty:
mean of -log2(share of viewers that rated the movie in training), Vargas and Castells 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.hybrid_recommender import top_positions
from src.config import K


@dataclass(frozen=True)
class Lists:
    """Recommended positions, best first, shape (viewers, k), -1 for none, and what is relevant."""

    positions: np.ndarray
    relevant: csr_matrix


@dataclass(frozen=True)
class Interval:
    """A value and the central 95 % of its bootstrap resamples over viewers."""

    value: float
    lower: float
    upper: float


def hits_of(lists: Lists) -> np.ndarray:
    """Return which recommended movies are relevant, shape (viewers, k)."""
    dense = lists.relevant.toarray() > 0
    rows = np.arange(len(lists.positions))[:, None]
    return dense[rows, lists.positions] & (lists.positions >= 0)


def viewer_measures(lists: Lists, k: int = K) -> dict[str, np.ndarray]:
    """Return nDCG, precision and recall at k of each viewer; every viewer must have something relevant."""
    relevant = np.diff(lists.relevant.indptr)
    if not len(relevant):
        raise EmptyWindowError("there is nobody to measure on")
    if (relevant == 0).any():
        raise EmptyWindowError(f"{int((relevant == 0).sum())} viewers have nothing relevant to be found")
    hits = hits_of(lists)[:, :k]
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(relevant, k) - 1]
    return {
        f"ndcg_at_{k}": (hits * discount[: hits.shape[1]]).sum(axis=1) / ideal,
        f"precision_at_{k}": hits.sum(axis=1) / k,
        f"recall_at_{k}": hits.sum(axis=1) / relevant,
    }


def novelty_of(lists: Lists, support: np.ndarray, viewers: int) -> np.ndarray:
    """Return each viewer's mean self-information, in bits; a movie without ratings counts as one rating."""
    bits = -np.log2(np.maximum(support, 1) / viewers)
    known = lists.positions >= 0
    return (np.where(known, bits[lists.positions], 0)).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def coverage_of(positions: np.ndarray, movies: int) -> float:
    """Return the share of the movies that stand in somebody's list."""
    return len(np.unique(positions[positions >= 0])) / movies


def measures_with_intervals(
    lists: Lists, support: np.ndarray, viewers: int, *, candidates: int, resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """Return every measure of some lists; whole viewers are drawn with replacement.

    `support` are ratings of each movie in training, given by `viewers` viewers; `candidates` movies could
    have been recommended. Coverage of a resample is that of the distinct viewers in it, so its interval lies
    below the value.
    """
    values = {**viewer_measures(lists), "novelty": novelty_of(lists, support, viewers)}
    number = len(lists.positions)
    draws = np.random.default_rng(seed).integers(0, number, (resamples, number))
    result = {name: _interval(float(each.mean()), each[draws].mean(axis=1)) for name, each in values.items()}
    covered = [coverage_of(lists.positions[draw], candidates) for draw in draws[: min(resamples, 200)]]
    result["coverage"] = _interval(coverage_of(lists.positions, candidates), np.array(covered))
    return result


def paired_difference(ours: np.ndarray, theirs: np.ndarray, resamples: int, seed: int = 0) -> Interval:
    """Return the mean difference of two per-viewer measures with its interval, on the same draws."""
    difference = ours - theirs
    draws = np.random.default_rng(seed).integers(0, len(difference), (resamples, len(difference)))
    return _interval(float(difference.mean()), difference[draws].mean(axis=1))


def top_lists(scores: np.ndarray, seen: csr_matrix, k: int = K, only: np.ndarray | None = None) -> np.ndarray:
    """Return the k best unseen positions of each row of scores; with `only`, of these movies alone."""
    lists = np.full((len(scores), k), -1, dtype=np.int64)
    for row, line in enumerate(np.array(scores)):
        line[seen.indices[seen.indptr[row] : seen.indptr[row + 1]]] = -np.inf
        if only is not None:
            line[~only] = -np.inf
        top = top_positions(line, k)
        lists[row, : len(top)] = top
    return lists


def histories_of(seen: csr_matrix) -> Sequence[np.ndarray]:
    """Return the positions that each viewer has seen."""
    return np.split(seen.indices, seen.indptr[1:-1])


def _interval(value: float, sample: np.ndarray) -> Interval:
    lower, upper = np.quantile(sample, [0.025, 0.975])
    return Interval(value, float(lower), float(upper))
