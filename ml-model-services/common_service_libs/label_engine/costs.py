"""Decisions by expected cost: what each decision costs if the case is positive, and if it is not.

The expected cost of a decision is `score * positive + (1 - score) * negative`; the cheapest decision is
the field `cheapest` of the rules, the milder one where two cost the same. Null, where a cost is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cel

from common_service_libs.label_engine.expressions import CEL_ERRORS, Expression


@dataclass(frozen=True)
class Costs:
    """A cost expression for each decision, from the mildest to the most severe, for either truth."""

    decisions: tuple[str, ...]
    positive: tuple[Expression, ...]
    negative: tuple[Expression, ...]

    @property
    def fields(self) -> frozenset[tuple[str, str]]:
        """The fields that the costs read."""
        return frozenset().union(*(e.fields for e in (*self.positive, *self.negative)))

    def of(self, context: cel.Context) -> tuple[list[float], list[float]] | None:
        """Return the costs of the decisions if positive and if negative, None where one is null."""
        try:
            return (
                [float(expression.evaluate(context)) for expression in self.positive],
                [float(expression.evaluate(context)) for expression in self.negative],
            )
        except CEL_ERRORS:
            return None

    def cheapest(self, score: float | None, context: cel.Context) -> str | None:
        """Return the decision with the least expected cost."""
        if score is None or (costs := self.of(context)) is None:
            return None
        expected = expected_costs(score, *costs)
        return self.decisions[expected.index(min(expected))]


def expected_costs(score: float, positive: Sequence[float], negative: Sequence[float]) -> list[float]:
    """Return the expected cost of each decision.

    >>> expected_costs(0.25, [100.0, 5.0, 0.0], [0.0, 5.0, 40.0])
    [25.0, 5.0, 30.0]
    """
    return [score * a + (1.0 - score) * b for a, b in zip(positive, negative, strict=True)]


def realized(decision: str, label: float, costs: Mapping[str, tuple[float, float]]) -> float:
    """Return what a decision costs where the probability of the positive is `label` (0 or 1 once known)."""
    positive, negative = costs[decision]
    return label * positive + (1.0 - label) * negative
