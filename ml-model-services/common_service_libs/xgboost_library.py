"""XGBoost's C library by itself: the Python package around it, and the SciPy that this brings, are left out.

They cost a second of start, 60 MB of memory and a third of an image, for two calls.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common_service_libs.errors import BundleError

_LIBRARIES = ("libxgboost.so", "libxgboost.dylib")
_PROBABILITY, _CONTRIBUTIONS = 0, 2


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xgboost")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(folder) / "lib" / name for name in _LIBRARIES):
            if path.is_file():
                found = ctypes.CDLL(str(path))
                found.XGBGetLastError.restype = ctypes.c_char_p
                return found
    raise BundleError("XGBoost's library is not installed here")


class XgboostModel:
    """An XGBoost model (UBJ); `score` reuses one row of memory and belongs to one thread."""

    def __init__(self, content: bytes, features: int) -> None:
        self._library, self._model = _library(), ctypes.c_void_p()
        self._call("XGBoosterCreate", None, ctypes.c_uint64(0), ctypes.byref(self._model))
        self._call("XGBoosterSetParam", self._model, b"nthread", b"1")
        self._call("XGBoosterLoadModelFromBuffer", self._model, content, ctypes.c_uint64(len(content)))
        count = ctypes.c_uint64()
        self._call("XGBoosterGetNumFeature", self._model, ctypes.byref(count))
        if count.value != features:
            raise BundleError(f"the model takes {count.value} features, not {features}")
        self._row = np.zeros((1, features), dtype=np.float32)
        self._shape, self._dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        self._result = ctypes.POINTER(ctypes.c_float)()
        self._predict = self._library.XGBoosterPredictFromDense
        self._arguments = (
            self._model, _array(self._row), _config(_PROBABILITY, missing=math.nan, cache_id=0), None,
            ctypes.byref(self._shape), ctypes.byref(self._dimensions), ctypes.byref(self._result),
        )  # fmt: skip

    def score(self, row: Sequence[float]) -> float:
        """Return P(positive) of one row, by a single call on memory prepared once."""
        self._row[0] = row
        if self._predict(*self._arguments) != 0:
            raise BundleError(f"the model cannot score: {self._said()}")
        return float(self._result[0])

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds."""
        values = np.array([row], dtype=np.float32)
        matrix, shape = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_uint64)()
        dimensions, result = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_float)()
        config = json.dumps({"missing": math.nan, "nthread": 1}).encode()
        self._call("XGDMatrixCreateFromDense", _array(values), config, ctypes.byref(matrix))
        try:
            self._call(
                "XGBoosterPredictFromDMatrix", self._model, matrix, _config(_CONTRIBUTIONS),
                ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(result),
            )  # fmt: skip
            return [float(result[index]) for index in range(len(row) + 1)]
        finally:
            self._library.XGDMatrixFree(matrix)

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments) != 0:
            raise BundleError(f"not an XGBoost model: {self._said()}")

    def _said(self) -> str:
        said: bytes = self._library.XGBGetLastError()
        return said.decode(errors="replace").splitlines()[0]

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.XGBoosterFree(self._model)


def _array(values: np.ndarray) -> bytes:
    interface = {
        "data": [values.ctypes.data, False], "shape": list(values.shape), "typestr": "<f4", "version": 3,
    }  # fmt: skip
    return json.dumps(interface).encode()


def _config(kind: int, **more: float) -> bytes:
    document = {
        "type": kind, "training": False, "iteration_begin": 0, "iteration_end": 0, "strict_shape": False,
    }  # fmt: skip
    return json.dumps(document | more).encode()
