"""Native models behind one interface: a fast path for one row, and SHAP contributions for an explanation.

A scorer belongs to one event loop: `score` reuses one row of memory. `contributions` allocates its own, and
may run in a thread. The model libraries are imported when a bundle needs them; a service's image holds its
own only.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from common_service_libs.errors import BundleError
from common_service_libs.lightgbm_rows import RowModel, library
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


class _XgboostContributions:
    """SHAP contributions by XGBoost itself, which is loaded when somebody first asks for them."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._loaded: tuple[Any, Any] | None = None

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        if self._loaded is None:
            self._loaded = _load_xgboost(self._content)
        xgboost, booster = self._loaded
        matrix = xgboost.DMatrix(np.array([row], dtype=np.float32), nthread=1)
        result = booster.predict(matrix, pred_contribs=True, validate_features=False)
        return [float(value) for value in result[0]]


def _load_xgboost(content: bytes) -> tuple[Any, Any]:
    import xgboost  # noqa: PLC0415

    try:
        booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise BundleError(f"not an XGBoost model: {error}") from None
    booster.set_param({"nthread": 1})
    return xgboost, booster


class ForestScorer(_XgboostContributions):
    """An XGBoost model whose trees LightGBM's library walks: a row costs a tenth of a call of XGBoost."""

    def __init__(self, content: bytes, forest: Forest, features: int) -> None:
        super().__init__(content)
        self._raw = RowModel(forest.text.encode(), features, single=True).raw
        self._base = forest.base

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        return _logistic(self._raw(row) + self._base)


class XgboostScorer(_XgboostContributions):
    """An XGBoost model (UBJ) by its own library; one row costs a single call on memory prepared once."""

    def __init__(self, content: bytes, features: int) -> None:
        super().__init__(content)
        self._loaded = self._xgboost, self._booster = _load_xgboost(content)
        if self._booster.num_features() != features:
            raise BundleError(f"the model takes {self._booster.num_features()} features, not {features}")
        self._row = np.zeros((1, features), dtype=np.float32)
        self._predict = self._xgboost.core._LIB.XGBoosterPredictFromDense
        self._arguments = self._prepare(features)

    def _prepare(self, features: int) -> tuple[Any, ...]:
        array = {
            "data": [self._row.ctypes.data, False],
            "shape": [1, features],
            "typestr": "<f4",
            "version": 3,
        }
        config = {
            "type": 0, "training": False, "iteration_begin": 0, "iteration_end": 0,
            "missing": math.nan, "strict_shape": False, "cache_id": 0,
        }  # fmt: skip
        self._shape, self._dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        self._result = ctypes.POINTER(ctypes.c_float)()
        return (
            self._booster.handle, json.dumps(array).encode(), json.dumps(config).encode(), None,
            ctypes.byref(self._shape), ctypes.byref(self._dimensions), ctypes.byref(self._result),
        )  # fmt: skip

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        self._row[0] = row
        if self._predict(*self._arguments) != 0:
            raise BundleError(f"the model cannot score: {self._xgboost.core._LIB.XGBGetLastError()}")
        return float(self._result[0])


class LightgbmScorer:
    """A LightGBM model (text); the package around its library is loaded for contributions only."""

    def __init__(self, content: bytes, features: int) -> None:
        self._content = content
        self._booster: Any = None
        self._raw = RowModel(content, features).raw
        if _objective(content) != _BINARY:
            raise BundleError(f"the model's objective is not {_BINARY.decode()}")

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        return _logistic(self._raw(row))

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        if self._booster is None:
            import lightgbm  # noqa: PLC0415

            self._booster = lightgbm.Booster(model_str=self._content.decode())
        matrix = np.array([row], dtype=np.float64)
        result: Any = self._booster.predict(matrix, pred_contrib=True, num_threads=1)
        return [float(value) for value in result[0]]


def _objective(content: bytes) -> bytes:
    head = content.partition(b"\nTree=")[0]
    return next((line[10:].strip() for line in head.splitlines() if line.startswith(b"objective=")), b"")


def _xgboost_scorer(content: bytes, features: int) -> Scorer:
    """Return the faster of the two scorers that can say the same."""
    forest = forest_of(content, features) if library() is not None else None
    return XgboostScorer(content, features) if forest is None else ForestScorer(content, forest, features)


_KINDS: dict[str, Callable[[bytes, int], Scorer]] = {
    "xgboost": _xgboost_scorer,
    "lightgbm": LightgbmScorer,
}


def load_scorer(kind: str, content: bytes, features: int) -> Scorer:
    """Load the content of a model file; raises BundleError for an unknown kind or other content."""
    if kind not in _KINDS:
        raise BundleError(f"unknown model kind {kind!r}, this service loads {sorted(_KINDS)}")
    return _KINDS[kind](content, features)
