"""Native models behind one interface: a fast path for one row, and SHAP contributions for an explanation.

A scorer belongs to one event loop: `score` reuses one row of memory. `contributions` allocates its own, and
may run in a thread. The model libraries are imported when a bundle needs them; a service's image holds its
own only.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from common_service_libs.errors import BundleError


class Scorer(Protocol):
    """A loaded model; rows are encoded features in order, null as NaN."""

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""


class XgboostScorer:
    """An XGBoost model (UBJ); one row costs a single call of the C library on memory prepared once."""

    def __init__(self, content: bytes, features: int) -> None:
        import xgboost  # noqa: PLC0415

        self._xgboost = xgboost
        try:
            self._booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
        except xgboost.core.XGBoostError as error:
            raise BundleError(f"not an XGBoost model: {error}") from None
        self._booster.set_param({"nthread": 1})
        if self._booster.num_features() != features:
            raise BundleError(f"the model takes {self._booster.num_features()} features, not {features}")
        self._row = np.zeros((1, features), dtype=np.float32)
        self._predict = xgboost.core._LIB.XGBoosterPredictFromDense
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

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        matrix = self._xgboost.DMatrix(np.array([row], dtype=np.float32), nthread=1)
        result = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return [float(value) for value in result[0]]


class LightgbmScorer:
    """A LightGBM model (text)."""

    def __init__(self, content: bytes, features: int) -> None:
        import lightgbm  # noqa: PLC0415

        try:
            self._booster = lightgbm.Booster(model_str=content.decode())
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
            raise BundleError(f"not a LightGBM model: {error}") from None
        if self._booster.num_feature() != features:
            raise BundleError(f"the model takes {self._booster.num_feature()} features, not {features}")
        self._row = np.zeros((1, features), dtype=np.float64)

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row."""
        self._row[0] = row
        return float(self._booster.predict(self._row, num_threads=1)[0])

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        matrix = np.array([row], dtype=np.float64)
        result: Any = self._booster.predict(matrix, pred_contrib=True, num_threads=1)
        return [float(value) for value in result[0]]


_KINDS: dict[str, type[XgboostScorer | LightgbmScorer]] = {
    "xgboost": XgboostScorer,
    "lightgbm": LightgbmScorer,
}


def load_scorer(kind: str, content: bytes, features: int) -> Scorer:
    """Load the content of a model file; raises BundleError for an unknown kind or other content."""
    if kind not in _KINDS:
        raise BundleError(f"unknown model kind {kind!r}, this service loads {sorted(_KINDS)}")
    return _KINDS[kind](content, features)
