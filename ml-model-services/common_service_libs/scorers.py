"""Native models behind one interface: a fast path for one row, and SHAP contributions for an explanation.

A scorer belongs to one event loop: `score` reuses one row of memory. `contributions` allocates its own, and
may run in a thread. The model libraries are imported when a bundle needs them; a service's image holds its
own only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from common_service_libs.errors import BundleError
from common_service_libs.lightgbm_rows import RowModel, library
from common_service_libs.xgboost_library import XgboostModel
from common_service_libs.xgboost_trees import Forest, forest_of

_BINARY = b"binary sigmoid:1"


class Scorer(Protocol):
    """A loaded model; rows are encoded features in order, null as NaN."""

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""


def _logistic(margin: float) -> float:
    """Return P(positive) of log-odds.

    >>> _logistic(0.0), _logistic(-1000.0), _logistic(1000.0)
    (0.5, 0.0, 1.0)
    """
    if margin >= 0.0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)


class ForestScorer:
    """An XGBoost model whose trees LightGBM's library walks: a row costs a tenth of a call of XGBoost.

    Contributions are XGBoost's own; its library is loaded when somebody first asks for them.
    """

    def __init__(self, content: bytes, forest: Forest, features: int) -> None:
        self._content, self._features = content, features
        self._raw = RowModel(forest.text.encode(), features, single=True).raw
        self._base = forest.base
        self._model: XgboostModel | None = None

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        return _logistic(self._raw(row) + self._base)

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        if self._model is None:
            self._model = XgboostModel(self._content, self._features)
        return self._model.contributions(row)


class LightgbmScorer:
    """A LightGBM model (text)."""

    def __init__(self, content: bytes, features: int) -> None:
        self._model = RowModel(content, features)
        self._raw = self._model.raw
        if _objective(content) != _BINARY:
            raise BundleError(f"the model's objective is not {_BINARY.decode()}")

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        return _logistic(self._raw(row))

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        return self._model.contributions(row)


def _objective(content: bytes) -> bytes:
    head = content.partition(b"\nTree=")[0]
    return next((line[10:].strip() for line in head.splitlines() if line.startswith(b"objective=")), b"")


def _xgboost_scorer(content: bytes, features: int) -> Scorer:
    """Return the faster of the two scorers that can say the same."""
    forest = forest_of(content, features) if library() is not None else None
    return XgboostModel(content, features) if forest is None else ForestScorer(content, forest, features)


_KINDS: dict[str, Callable[[bytes, int], Scorer]] = {
    "xgboost": _xgboost_scorer,
    "lightgbm": LightgbmScorer,
}


def load_scorer(kind: str, content: bytes, features: int) -> Scorer:
    """Load the content of a model file; raises BundleError for an unknown kind or other content."""
    if kind not in _KINDS:
        raise BundleError(f"unknown model kind {kind!r}, this service loads {sorted(_KINDS)}")
    return _KINDS[kind](content, features)
