"""Metrics of a binary score: ranking, calibration, cards caught, thresholds by cost, paired comparison.

Everything here is pure: arrays in, numbers out. Labels are 0 or 1, scores are P(positive).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from common_ml_utils.data_schemas.training_data_contract import require_both_classes

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ranking_and_calibration(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return `auc_roc`, `average_precision`, `brier` and `calibration_error`; raises OneClassLabelsError."""
    require_both_classes(labels, "evaluation")
    return {
        "auc_roc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
        "brier": float(np.mean((scores - labels) ** 2)),
        "calibration_error": expected_calibration_error(labels, scores),
    }


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Return the mean |observed rate - mean score| over bins of equally many rows, weighted by rows.

    >>> expected_calibration_error(np.array([0, 1, 0, 1]), np.array([0.5, 0.5, 0.5, 0.5]), bins=1)
    0.0
    """
    table = calibration_table(labels, scores, bins)
    return float((table["rows"] * (table["observed"] - table["predicted"]).abs()).sum() / table["rows"].sum())


def calibration_table(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Return `predicted` (mean score), `observed` (rate) and `rows` of bins with equally many rows."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return pd.DataFrame(
        {
            "predicted": [float(scores[part].mean()) for part in parts],
            "observed": [float(labels[part].mean()) for part in parts],
            "rows": [len(part) for part in parts],
        }
    )


def confusion_at(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, int]:
    """Count the four outcomes of acting on every score at or above the threshold."""
    acted = scores >= threshold
    positive = labels == 1
    return {
        "true_positive": int((acted & positive).sum()),
        "false_positive": int((acted & ~positive).sum()),
        "false_negative": int((~acted & positive).sum()),
        "true_negative": int((~acted & ~positive).sum()),
    }


def card_precision_at(
    days: np.ndarray, cards: np.ndarray, labels: np.ndarray, scores: np.ndarray, k: int = 100
) -> float:
    """Return the mean over days of the share of truly compromised cards among the day's k most suspect ones.

    A card's score is its highest of the day. Cards found compromised in a day's list are removed from the
    following days, as investigators would block them. Source: Fraud Detection Handbook, "card precision@k".
    """
    daily = (
        pd.DataFrame({"day": days, "card": cards, "label": labels, "score": scores})
        .groupby(["day", "card"], as_index=False)
        .agg(label=("label", "max"), score=("score", "max"))
    )
    found: set[int] = set()
    precisions = []
    for _, day in daily.groupby("day"):
        left = day[~day["card"].isin(found)]
        suspects = left.sort_values(["score", "card"], ascending=[False, True], kind="stable").head(k)
        compromised = suspects[suspects["label"] == 1]
        precisions.append(len(compromised) / k)
        found.update(compromised["card"])
    return float(np.mean(precisions))


def drop_known_compromised(
    test: pd.DataFrame,
    known_frauds: pd.DataFrame,
    delay_days: int,
    *,
    day: str = "day",
    card: str = "customer_id",
) -> pd.DataFrame:
    """Drop the test rows of cards whose fraud was already known on the row's day.

    `known_frauds` holds fraudulent transactions (`day`, a whole number, and `card`); one of day d is known
    from day d + delay_days + 1 on, the first morning after its delay has passed.
    """
    first_known = known_frauds.groupby(card)[day].min() + delay_days + 1
    known_from = test[card].map(first_known)
    return test[~(known_from <= test[day])]


# --- thresholds -------------------------------------------------------------------------------------------


def ordered_thresholds(scores: np.ndarray, costs: np.ndarray) -> tuple[float, float]:
    """Return the two thresholds that part three actions, mildest first, at the least total cost.

    `costs` has one row a score and one column an action: below the first threshold the first action is taken,
    from the second one on the third. The thresholds stand midway between neighbouring scores, so they do not
    hang on one row; first <= second always.
    """
    order = np.argsort(scores, kind="stable")
    ranked, ranked_costs = scores[order], costs[order]
    first = np.concatenate([[0.0], np.cumsum(ranked_costs[:, 0] - ranked_costs[:, 1])])
    second = np.concatenate([[0.0], np.cumsum(ranked_costs[:, 1] - ranked_costs[:, 2])])
    # A cut is possible only between different scores, below all and above all.
    possible = np.concatenate([[True], ranked[1:] != ranked[:-1], [True]])
    first[~possible] = np.inf
    second[~possible] = np.inf
    best_first_up_to = np.minimum.accumulate(first)
    upper = int(np.argmin(best_first_up_to + second))
    lower = int(np.argmin(first[: upper + 1]))
    return _cut(ranked, lower), _cut(ranked, upper)


def _cut(ranked: np.ndarray, position: int) -> float:
    if position == 0:
        return 0.0
    if position == len(ranked):
        return 1.0
    return float((ranked[position - 1] + ranked[position]) / 2)


def cost_of_actions(scores: np.ndarray, costs: np.ndarray, thresholds: tuple[float, float]) -> float:
    """Return the total cost of the three actions under the thresholds; see `ordered_thresholds`."""
    action = (scores >= thresholds[0]).astype(int) + (scores >= thresholds[1]).astype(int)
    return float(costs[np.arange(len(scores)), action].sum())


# --- paired comparison ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """How much better the challenger is: the difference, its bootstrap interval and P(difference > 0)."""

    champion: float
    challenger: float
    difference: float
    lower: float
    upper: float
    probability_better: float
    resamples: int


def paired_bootstrap(
    labels: np.ndarray,
    champion: np.ndarray,
    challenger: np.ndarray,
    groups: np.ndarray,
    metric: Metric,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two scores of the same rows by resampling groups (cards, subscribers) with replacement.

    Rows of one group are not independent, so whole groups are drawn, and both scores see the same draw.
    `lower` and `upper` bound the central 95 % of the differences.
    """
    require_both_classes(labels, "paired bootstrap")
    group_of_row, draws = group_draws(groups, resamples, seed)
    ones = np.ones((1, len(labels)))
    point = [float(metric(labels, scores, ones)[0]) for scores in (champion, challenger)]
    differences: list[np.ndarray] = []
    for draw in draws:
        weights = draw[:, group_of_row]
        differences.append(metric(labels, challenger, weights) - metric(labels, champion, weights))
    sample = np.concatenate(differences)
    sample = sample[~np.isnan(sample)]  # a draw without a positive measures nothing
    lower, upper = np.quantile(sample, [0.025, 0.975])
    return PairedComparison(
        champion=point[0],
        challenger=point[1],
        difference=point[1] - point[0],
        lower=float(lower),
        upper=float(upper),
        probability_better=float(np.mean(sample > 0)),
        resamples=len(sample),
    )


_CHUNK = 20  # resamples held at once: 20 x 70,000 rows of float64 are 11 MB


def group_draws(groups: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Return each row's group number, and bootstrap draws in chunks of shape (resamples, groups).

    A draw counts how often each group was drawn, with replacement; `draw[:, group_of_row]` weighs the rows.
    """
    _, group_of_row = np.unique(groups, return_inverse=True)
    number = int(group_of_row.max()) + 1
    rng = np.random.default_rng(seed)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, resamples, _CHUNK):
            size = min(_CHUNK, resamples - start)
            yield rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)

    return group_of_row, chunks()


def weighted_average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision under each row of `weights` (resamples x rows); NaN without positives."""
    return Ranking.of(labels, scores).measures(weights)[:, 1]


def weighted_auc_roc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve under each row of `weights`; NaN when a class is absent."""
    return Ranking.of(labels, scores).measures(weights)[:, 0]


@dataclass(frozen=True)
class Ranking:
    """Rows in order of their scores, as sums that give AUC ROC and average precision under any weights.

    Both hang only on how much weight stands before and at each score that some positive has. So rows are
    summed to those scores and the gaps between them: `total` (gaps and scores alternating, from the highest
    score down, x columns) and `hits` (positives at each score x columns). A column is a row or a whole group.
    """

    total: sparse.csr_matrix
    hits: sparse.csr_matrix

    @classmethod
    def of(cls, labels: np.ndarray, scores: np.ndarray) -> Ranking:
        """Rank rows; each is a column."""
        positive = np.flatnonzero(labels == 1)
        distinct = np.unique(scores[positive])[::-1]  # scores of positives, highest first
        above = len(distinct) - np.searchsorted(distinct[::-1], scores, side="right")
        at = above < len(distinct)
        at[at] = distinct[above[at]] == scores[at]
        rows = np.arange(len(labels))
        ones = np.ones(len(labels))
        return cls(
            total=sparse.csr_matrix(
                (ones, (2 * above + at, rows)), shape=(2 * len(distinct) + 1, len(labels))
            ),
            hits=sparse.csr_matrix(
                (ones[positive], (above[positive], positive)), shape=(len(distinct), len(labels))
            ),
        )

    def by_group(self, group_of_row: np.ndarray, groups: int) -> Ranking:
        """Return the same with whole groups as columns."""
        rows = np.arange(len(group_of_row))
        belongs = sparse.csr_matrix((np.ones(len(rows)), (rows, group_of_row)), shape=(len(rows), groups))
        return Ranking(self.total @ belongs, self.hits @ belongs)

    def measures(self, weights: np.ndarray) -> np.ndarray:
        """Return AUC ROC and average precision under each row of weights; NaN where a class is absent."""
        cumulated = np.cumsum(self.total @ weights.T, axis=0)
        hits = self.hits @ weights.T
        hits_to = np.cumsum(hits, axis=0)
        before, to = cumulated[:-1:2], cumulated[1::2]
        all_hits = hits.sum(axis=0)
        misses = cumulated[-1] - all_hits
        # A negative with a positive's score counts half: the mean of the negatives with and without it.
        above = (before - (hits_to - hits) + to - hits_to) / 2
        precision = np.divide(hits_to, to, out=np.zeros_like(to), where=to > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = (hits * (misses - above)).sum(axis=0) / (all_hits * misses)
            return np.column_stack([auc, (hits * precision).sum(axis=0) / all_hits])


METRICS: dict[str, Metric] = {"average_precision": weighted_average_precision, "auc_roc": weighted_auc_roc}


# --- intervals --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A value and the central 95 % of its bootstrap resamples."""

    value: float
    lower: float
    upper: float


def estimate_of(values: np.ndarray) -> Estimate | None:
    """Return the first value, the point, with the interval of the others; None when it is not a number.

    A resample that measures nothing (no positive, a ratio to zero) is left out.
    """
    point, sample = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(point) or len(sample) == 0:
        return None
    lower, upper = np.quantile(sample, [0.025, 0.975])
    return Estimate(float(point), float(lower), float(upper))


def sums_by_group(columns: np.ndarray, group_of_row: np.ndarray, groups: int) -> np.ndarray:
    """Sum the columns, shape (rows, k), by group, shape (groups, k)."""
    return np.stack(
        [np.bincount(group_of_row, weights=column, minlength=groups) for column in columns.T], axis=1
    )


def bootstrap_sums(
    columns: np.ndarray, groups: np.ndarray, *, resamples: int = 200, seed: int = 0
) -> np.ndarray:
    """Return the columns' sums over all rows, then over each resample of whole groups: (1 + resamples, k)."""
    group_of_row, draws = group_draws(groups, resamples, seed)
    sums = sums_by_group(columns, group_of_row, int(group_of_row.max()) + 1)
    return np.concatenate([sums.sum(axis=0, keepdims=True), *(draw @ sums for draw in draws)])


@dataclass(frozen=True)
class ThresholdOutcome:
    """What acting on every score at or above a threshold does on labelled rows."""

    name: str
    threshold: float
    alerts: int
    true_alerts: int
    alert_rate: Estimate | None
    precision: Estimate | None
    recall: Estimate | None
    false_positive_rate: Estimate | None


def threshold_outcome(
    name: str, threshold: float, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray
) -> ThresholdOutcome:
    """Measure one threshold, with intervals over whole groups."""
    alert, positive = scores >= threshold, labels == 1
    columns = np.column_stack([np.ones(len(labels)), positive, alert, alert & positive]).astype(np.float64)
    rows, positives, alerts, true_alerts = bootstrap_sums(columns, groups).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return ThresholdOutcome(
            name=name,
            threshold=threshold,
            alerts=int(alerts[0]),
            true_alerts=int(true_alerts[0]),
            alert_rate=estimate_of(alerts / rows),
            precision=estimate_of(true_alerts / alerts),
            recall=estimate_of(true_alerts / positives),
            false_positive_rate=estimate_of((alerts - true_alerts) / (rows - positives)),
        )


@dataclass(frozen=True)
class ActionCosts:
    """What three ways to act cost on labelled rows, and what the thresholds save a row against no action."""

    no_action: float
    policy: float
    best_single_action: float
    saved_a_row: Estimate | None


def action_cost_summary(
    scores: np.ndarray, costs: np.ndarray, thresholds: tuple[float, float], groups: np.ndarray
) -> ActionCosts:
    """Compare acting by the thresholds with one action for all; `costs` as in `ordered_thresholds`."""
    action = (scores >= thresholds[0]).astype(int) + (scores >= thresholds[1]).astype(int)
    taken = costs[np.arange(len(scores)), action]
    columns = np.column_stack([np.ones(len(scores)), costs[:, 0] - taken])
    rows, saved = bootstrap_sums(columns, groups).T
    totals = costs.sum(axis=0)
    return ActionCosts(float(totals[0]), float(taken.sum()), float(totals.min()), estimate_of(saved / rows))
