"""What acting on churn scores is worth, in USD: thresholds with intervals, and value against threshold.

All values are beside doing nothing, per 1,000 subscribers; the prices are `ChurnValues`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common_ml_utils.evaluation_utils import ordered_thresholds
from src.config import ChurnValues
from src.train import churn_action_costs

ACTIONS = ("contact", "offer")


@dataclass(frozen=True)
class Threshold:
    """A threshold, the central 95 % of those chosen on resampled subscribers, and that of the prices alone.

    `by_values` is where a perfectly calibrated score makes the action worth its price.
    """

    threshold: float
    lower: float
    upper: float
    by_values: float


@dataclass(frozen=True)
class ChosenThresholds:
    """The two thresholds by action."""

    by_action: Mapping[str, Threshold]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return plain numbers."""
        return {action: vars(threshold) for action, threshold in self.by_action.items()}


@dataclass(frozen=True)
class ValueCurve:
    """Value per 1,000 subscribers of one action on all scores at or above each threshold, and of policies."""

    thresholds: np.ndarray
    by_action: Mapping[str, np.ndarray]
    policies: Mapping[str, float]

    def summary(self) -> dict[str, float]:
        """Return the value of each policy."""
        return dict(self.policies)


def thresholds_by_values(values: ChurnValues) -> tuple[float, float]:
    """Return where contact beats nothing and offer beats contact, for a score that is a true probability.

    An action is worth it when what it keeps of p x value pays its price. 1 where it never is; the offer never
    stands below the contact.

    >>> thresholds_by_values(ChurnValues(subscriber_value=100, contact_cost=1, contact_keeps=0.1,
    ...                                  offer_cost=11, offer_keeps=0.5))
    (0.1, 0.25)
    """
    worth = values.subscriber_value
    contact = _ratio(values.contact_cost, worth * values.contact_keeps)
    offer_alone = _ratio(values.offer_cost, worth * values.offer_keeps)
    more_kept = worth * (values.offer_keeps - values.contact_keeps)
    offer = _ratio(values.offer_cost - values.contact_cost, more_kept)
    if offer_alone <= contact:  # nobody is only contacted
        return offer_alone, offer_alone
    return contact, offer


def _ratio(price: float, gain: float) -> float:
    return 1.0 if gain <= 0 else float(np.clip(price / gain, 0, 1))


def chosen_thresholds(
    scores: np.ndarray, labels: np.ndarray, values: ChurnValues, resamples: int = 300, seed: int = 0
) -> ChosenThresholds:
    """Choose the thresholds of least cost on scores of unseen rows, with the interval of resampled rows."""
    costs = churn_action_costs(labels, values)
    point = ordered_thresholds(scores, costs)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(scores), len(scores)) for _ in range(resamples)]
    sample = np.array([ordered_thresholds(scores[rows], costs[rows]) for rows in draws])
    lower, upper = np.quantile(sample, [0.025, 0.975], axis=0)
    by_values = thresholds_by_values(values)
    return ChosenThresholds(
        {
            action: Threshold(float(point[i]), float(lower[i]), float(upper[i]), by_values[i])
            for i, action in enumerate(ACTIONS)
        }
    )


def value_curve(scores: np.ndarray, labels: np.ndarray, values: ChurnValues, points: int = 201) -> ValueCurve:
    """Return value against threshold for each action, and the value of the policies people would try."""
    costs = churn_action_costs(labels, values)
    gained = (costs[:, :1] - costs[:, 1:]) * 1000 / len(labels)  # of one subscriber, per 1,000
    thresholds = np.linspace(0, 1, points)
    acted = scores[:, None] >= thresholds
    by_action = {action: gained[:, i] @ acted for i, action in enumerate(ACTIONS)}
    contact, offer = _thresholds_of_others(scores, costs).T
    two = np.where(scores >= offer, gained[:, 1], np.where(scores >= contact, gained[:, 0], 0.0))
    half = scores >= 0.5
    policies = {"nobody": 0.0}
    policies |= {f"{action} everybody": float(gained[:, i].sum()) for i, action in enumerate(ACTIONS)}
    policies |= {f"{action} at 0.5": float(gained[half, i].sum()) for i, action in enumerate(ACTIONS)}
    policies["the two thresholds"] = float(two.sum())
    policies["knowing who leaves"] = float(np.maximum(gained.max(axis=1), 0).sum())
    return ValueCurve(thresholds, by_action, policies)


def _thresholds_of_others(scores: np.ndarray, costs: np.ndarray, parts: int = 5, seed: int = 0) -> np.ndarray:
    """Return for each row the two thresholds chosen on the others: a value is not flattered."""
    part = np.random.default_rng(seed).permutation(len(scores)) % parts
    chosen = np.array([ordered_thresholds(scores[part != i], costs[part != i]) for i in range(parts)])
    return chosen[part]
