"""Why a score is what it is: SHAP values in log-odds, summed to stable reason codes.

A contribution says by how much a feature moved this row's score from the model's base value; base and
contributions add up to the logit of the score. Features that share a reason code count as one reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common_ml_utils.errors import SchemaMismatchError
from common_ml_utils.release_bundle import ReasonCode

REASONS = 3
MINIMUM_SHARE = 0.05
"""A reason holds at least this share of all that raised the score, so that noise is not given as a reason."""


@dataclass(frozen=True)
class Reason:
    """A code that raised a score, what it says in plain English, and by how much, in log-odds."""

    code: str
    text: str
    contribution: float


class ReasonCodes:
    """The table feature -> reason code, applied to rows of contributions."""

    def __init__(self, features: Sequence[str], codes: Mapping[str, ReasonCode]) -> None:
        """Raise SchemaMismatchError when a feature has no code."""
        absent = sorted(set(features) - set(codes))
        if absent:
            raise SchemaMismatchError(f"features without a reason code: {absent}")
        self.codes = sorted({codes[name].code for name in features})
        self._texts = {codes[name].code: codes[name].text for name in sorted(features)}
        # Summed in the order of names, so that the order of columns can't change a bit of the sum.
        by_name = sorted(range(len(features)), key=lambda position: features[position])
        self._columns = [
            [position for position in by_name if codes[features[position]].code == code]
            for code in self.codes
        ]

    def text(self, code: str) -> str:
        """Return what a code says."""
        return self._texts[code]

    def sums(self, contributions: np.ndarray) -> np.ndarray:
        """Return the contribution of each code, shape (rows, codes), in the order of `codes`."""
        totals = np.zeros((len(contributions), len(self.codes)))
        for i, columns in enumerate(self._columns):
            for column in columns:
                totals[:, i] += contributions[:, column]
        return totals

    def reasons(
        self, contributions: np.ndarray, k: int = REASONS, minimum_share: float = MINIMUM_SHARE
    ) -> list[list[Reason]]:
        """Return for each row up to `k` codes that raised its score, strongest first, ties by code.

        A code counts when its sum is positive and at least `minimum_share` of all positive sums of the row;
        a row that nothing raised has no reason.
        """
        sums = self.sums(contributions)
        raised = np.maximum(sums, 0)
        shares = np.divide(
            raised, raised.sum(axis=1, keepdims=True), out=np.zeros_like(raised), where=raised > 0
        )
        strongest = np.argsort(-sums, axis=1, kind="stable")[:, :k]  # codes are sorted, so ties go by code
        return [
            [
                Reason(self.codes[i], self._texts[self.codes[i]], float(sums[row, i]))
                for i in order
                if shares[row, i] > 0 and shares[row, i] >= minimum_share
            ]
            for row, order in enumerate(strongest)
        ]


def mean_absolute(names: Sequence[str], contributions: np.ndarray) -> dict[str, float]:
    """Return name -> mean |contribution| in log-odds, largest first, ties by name: what moves scores most.

    >>> mean_absolute(["a", "b"], np.array([[1.0, -3.0], [1.0, 3.0]]))
    {'b': 3.0, 'a': 1.0}
    """
    means = np.abs(contributions).mean(axis=0)
    order = sorted(range(len(names)), key=lambda i: (-means[i], names[i]))
    return {names[i]: float(means[i]) for i in order}


def top_code_agreement(codes: ReasonCodes, one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of rows whose first reason is the same under two models' contributions.

    Rows that neither model gives a reason for are left out; nan when that is all of them.
    """
    firsts = [
        [reasons[0].code if reasons else None for reasons in codes.reasons(contributions, k=1)]
        for contributions in (one, other)
    ]
    pairs = [(a, b) for a, b in zip(*firsts, strict=True) if a or b]
    return float(np.mean([a == b for a, b in pairs])) if pairs else float("nan")
