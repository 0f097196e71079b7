"""What the gate knows of a candidate on the holdout, in the form that a paired bootstrap needs.

Pure: arrays in, numbers out. The gate draws whole units (cards, subscribers, viewers) with replacement; a
candidate says what its metrics are under such a draw. A project builds its evaluations with
`classifier_evaluation` or `mean_evaluation`, or gives functions of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix

from common_ml_utils.data_schemas.training_data_contract import require_both_classes
from common_ml_utils.errors import DataError, EmptyWindowError
from common_ml_utils.evaluation_utils import Ranking, ranking_and_calibration
from common_ml_utils.slices import Slices

Resampled = Callable[[np.ndarray], np.ndarray]
"""Weights of the units, shape (resamples, units) -> the metric under each resample; NaN where it has none."""

RANKING = ("auc_roc", "average_precision")
CALIBRATION = "calibration_error"
CALIBRATION_BINS = 10
SLICE = "slice: "
CHUNK = 100  # resamples held at once: 100 x 5,000 units of float64 are 4 MB


@dataclass(frozen=True)
class SliceEvaluation:
    """The main metric on a part of the holdout.

    `support` is what the figure rests on: the rarer class of a classifier, the viewers of a recommender.
    """

    rows: int
    support: int
    value: float
    resampled: Resampled


@dataclass(frozen=True)
class Evaluation:
    """One candidate on the holdout.

    `units` are the ids of what is drawn, in the order of the weights; candidates that are compared must have
    the same. `resampled` holds the main metric, and `calibration_error` where the score is a probability.
    """

    metrics: Mapping[str, float]
    units: np.ndarray
    rows: int
    support: int
    resampled: Mapping[str, Resampled]
    slices: Mapping[str, SliceEvaluation] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A metric of two candidates under the same draws; `lower` and `upper` bound the central 95 %.

    `probability_better` is the share of resamples with a difference above 0, `probability_not_worse` above
    `-margin`; for a metric whose lower values are better, signs are turned before.
    """

    champion: float
    challenger: float
    difference: float
    lower: float
    upper: float
    probability_better: float
    margin: float
    probability_not_worse: float
    resamples: int


@dataclass(frozen=True)
class SliceComparison:
    """The main metric of two candidates on a slice; None where it can't be measured there."""

    name: str
    rows: int
    support: int
    champion: float | None
    challenger: float | None
    difference: float | None
    lower: float | None
    upper: float | None


def classifier_evaluation(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    slices: Slices,
    metric: str,
    *,
    extra: Mapping[str, float] | None = None,
) -> Evaluation:
    """Evaluate scores of labelled rows; rows of one of `groups` are not independent and are drawn together.

    `metric` is `average_precision` or `auc_roc`. Raises EmptyWindowError and OneClassLabelsError.
    """
    require_both_classes(labels, "holdout")
    units, unit_of_row = np.unique(groups, return_inverse=True)
    number = len(units)
    return Evaluation(
        metrics={**ranking_and_calibration(labels, scores), **(extra or {})},
        units=units,
        rows=len(labels),
        support=_rarer_class(labels),
        resampled={
            metric: resampled_ranking(labels, scores, unit_of_row, number, metric),
            CALIBRATION: resampled_calibration_error(labels, scores, unit_of_row, number),
        },
        slices={
            name: _slice(labels[mask], scores[mask], unit_of_row[mask], number, metric)
            for name, mask in slices.items()
        },
    )


def mean_evaluation(
    values: Mapping[str, np.ndarray], units: np.ndarray, slices: Slices, metric: str, rows: int
) -> Evaluation:
    """Evaluate a metric that is a mean over units, e.g. nDCG@10 over viewers: one value of each a unit.

    `slices` are masks over the units; `rows` says how many rows the values rest on.
    """
    if not len(units):
        raise EmptyWindowError("holdout: there is nobody to measure on")
    if len(np.unique(units)) != len(units):
        raise DataError("holdout: a unit stands twice")
    main = values[metric]
    return Evaluation(
        metrics={name: float(np.mean(each)) for name, each in values.items()},
        units=units,
        rows=rows,
        support=len(units),
        resampled={metric: _resampled_mean(main, np.ones(len(units), dtype=bool))},
        slices={
            name: SliceEvaluation(
                rows=int(mask.sum()),
                support=int(mask.sum()),
                value=float(main[mask].mean()) if mask.any() else float("nan"),
                resampled=_resampled_mean(main, mask),
            )
            for name, mask in slices.items()
        },
    )


def compare(
    champion: Evaluation,
    challenger: Evaluation,
    metric: str,
    *,
    margin: float,
    resamples: int,
    seed: int,
) -> tuple[Comparison, dict[str, np.ndarray]]:
    """Compare two candidates on the same draws of units.

    Returns the comparison of `metric` and the differences (challenger - champion) of every resample, by name:
    `metric`, `calibration_error` where both have it, and `slice: <name>` for slices with both. Raises
    DataError when the candidates were measured on different units.
    """
    if not np.array_equal(champion.units, challenger.units) or champion.rows != challenger.rows:
        raise DataError("champion and challenger were measured on different holdout rows")
    both: dict[str, tuple[Resampled, Resampled]] = {
        name: (champion.resampled[name], challenger.resampled[name])
        for name in challenger.resampled
        if name in champion.resampled
    }
    both |= {
        SLICE + name: (champion.slices[name].resampled, mine.resampled)
        for name, mine in challenger.slices.items()
        if name in champion.slices
    }
    parts: dict[str, list[np.ndarray]] = {name: [] for name in both}
    rng, number = np.random.default_rng(seed), len(challenger.units)
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        weights = rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        for name, (old, new) in both.items():
            parts[name].append(new(weights) - old(weights))
    differences = {name: _known(np.concatenate(chunks)) for name, chunks in parts.items()}
    return (
        comparison_of(champion.metrics[metric], challenger.metrics[metric], differences[metric], margin),
        differences,
    )


def compare_slices(
    champion: Evaluation, challenger: Evaluation, differences: Mapping[str, np.ndarray]
) -> list[SliceComparison]:
    """Return both candidates on every slice of the challenger, with the central 95 % of the differences."""
    compared = []
    for name, mine in challenger.slices.items():
        theirs = champion.slices.get(name)
        sample = differences.get(name, np.empty(0))
        lower, upper = np.quantile(sample, [0.025, 0.975]) if len(sample) else (np.nan, np.nan)
        old = np.nan if theirs is None else theirs.value
        figures = [_or_none(each) for each in (old, mine.value, mine.value - old, lower, upper)]
        support = mine.support if theirs is None else min(mine.support, theirs.support)
        compared.append(SliceComparison(name, mine.rows, support, *figures))
    return compared


def comparison_of(champion: float, challenger: float, differences: np.ndarray, margin: float) -> Comparison:
    """Summarise resampled differences; raises DataError when no resample could be measured."""
    if not len(differences):
        raise DataError("no resample of the holdout can be measured: it holds too few units")
    lower, upper = np.quantile(differences, [0.025, 0.975])
    return Comparison(
        champion=champion,
        challenger=challenger,
        difference=challenger - champion,
        lower=float(lower),
        upper=float(upper),
        probability_better=float(np.mean(differences > 0)),
        margin=margin,
        probability_not_worse=float(np.mean(differences > -margin)),
        resamples=len(differences),
    )


# --- metrics under weights of units -------------------------------------------------------------------------


def resampled_ranking(
    labels: np.ndarray, scores: np.ndarray, unit_of_row: np.ndarray, units: int, metric: str
) -> Resampled:
    """Return a ranking metric as a function of the units' weights."""
    ranking = Ranking.of(labels, scores).by_group(unit_of_row, units)
    column = RANKING.index(metric)
    return lambda weights: ranking.measures(weights)[:, column]


def resampled_calibration_error(
    labels: np.ndarray, scores: np.ndarray, unit_of_row: np.ndarray, units: int
) -> Resampled:
    """Return the calibration error as a function of the units' weights, over fixed bins of equal rows."""
    order = np.argsort(scores, kind="stable")
    bins = np.empty(len(scores), dtype=np.int64)
    for number, part in enumerate(np.array_split(order, CALIBRATION_BINS)):
        bins[part] = number
    shape = (CALIBRATION_BINS, units)
    gap_at = csr_matrix((labels - scores, (bins, unit_of_row)), shape=shape)
    rows_at = csr_matrix((np.ones(len(scores)), (bins, unit_of_row)), shape=shape)

    def metric(weights: np.ndarray) -> np.ndarray:
        return np.abs(gap_at @ weights.T).sum(axis=0) / (rows_at @ weights.T).sum(axis=0)

    return metric


def _slice(
    labels: np.ndarray, scores: np.ndarray, unit_of_row: np.ndarray, units: int, metric: str
) -> SliceEvaluation:
    resampled = resampled_ranking(labels, scores, unit_of_row, units, metric)
    support = _rarer_class(labels)
    value = float(resampled(np.ones((1, units)))[0]) if support else float("nan")
    return SliceEvaluation(rows=len(labels), support=support, value=value, resampled=resampled)


def _resampled_mean(values: np.ndarray, mask: np.ndarray) -> Resampled:
    def metric(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, mask]
        with np.errstate(invalid="ignore", divide="ignore"):
            return (drawn @ values[mask]) / drawn.sum(axis=1)

    return metric


def _rarer_class(labels: np.ndarray) -> int:
    positives = int((labels == 1).sum())
    return min(positives, len(labels) - positives)


def _known(differences: np.ndarray) -> np.ndarray:
    """Leave out resamples that measure nothing, such as one without a positive."""
    return differences[~np.isnan(differences)]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
