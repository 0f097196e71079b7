"""One row through LightGBM's C library: what a prediction needs is prepared once, a score costs one call.

The library is loaded by itself: the Python package around it, and the SciPy that this brings, cost a second
of start and 60 MB that a score does not need.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common_service_libs.errors import BundleError

_LIBRARIES = ("lib_lightgbm.so", "lib_lightgbm.dylib")
_SINGLE, _DOUBLE = 0, 1
_RAW_SCORE, _CONTRIBUTIONS = 1, 3
_PARAMETERS = b"num_threads=1"


@functools.cache
def library() -> ctypes.PyDLL | None:
    """Return LightGBM's library, None where it is not installed or cannot be loaded.

    Its calls keep the interpreter's lock: they take microseconds, and getting the lock back from another
    thread can take milliseconds.
    """
    spec = importlib.util.find_spec("lightgbm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(folder) / "lib" / name for name in _LIBRARIES):
            if path.is_file():
                try:
                    return _declared(ctypes.PyDLL(str(path)))
                except OSError:  # a system library, such as OpenMP's, is not there
                    return None
    return None


def _declared(found: ctypes.PyDLL) -> ctypes.PyDLL:
    found.LGBM_GetLastError.restype = ctypes.c_char_p
    return found


class RowModel:
    """A LightGBM model (text) that scores one row at a time; belongs to one thread.

    With `single` values are rounded to single precision first, as XGBoost does.
    """

    def __init__(self, text: bytes, features: int, *, single: bool = False) -> None:
        self._library = found = library()
        if found is None:
            raise BundleError("LightGBM's library cannot be loaded")
        self._model, self._fast = ctypes.c_void_p(), ctypes.c_void_p()
        rounds, count = ctypes.c_int(), ctypes.c_int()
        self._require(
            found.LGBM_BoosterLoadModelFromString(text, ctypes.byref(rounds), ctypes.byref(self._model))
        )
        self._require(found.LGBM_BoosterGetNumFeature(self._model, ctypes.byref(count)))
        if count.value != features:
            raise BundleError(f"the model takes {count.value} features, not {features}")
        self._row: Any = ((ctypes.c_float if single else ctypes.c_double) * features)()
        kind = _SINGLE if single else _DOUBLE
        self._length, self._sum = ctypes.c_int64(), ctypes.c_double()
        self._require(
            found.LGBM_BoosterPredictForMatSingleRowFastInit(
                self._model, _RAW_SCORE, 0, -1, kind, features, _PARAMETERS, ctypes.byref(self._fast)
            )
        )
        self._predict = found.LGBM_BoosterPredictForMatSingleRowFast
        self._arguments = (
            self._fast, ctypes.byref(self._row), ctypes.byref(self._length), ctypes.byref(self._sum),
        )  # fmt: skip

    def _require(self, code: int) -> None:
        if code != 0:
            assert self._library is not None
            said: bytes = self._library.LGBM_GetLastError()
            raise BundleError(f"not a LightGBM model: {said.decode(errors='replace')}")

    def raw(self, row: Sequence[float]) -> float:
        """Return the sum of the leaves that a row of doubles falls into; null is NaN."""
        self._row[:] = row
        if self._predict(*self._arguments) != 0:
            self._require(-1)
        return self._sum.value

    def contributions(self, row: Sequence[float]) -> list[float]:
        """Return the SHAP contribution of each feature and, last, the base value, in log-odds.

        Takes memory of its own, and leaves the interpreter to other threads meanwhile.
        """
        values, length = (ctypes.c_double * len(row))(*row), ctypes.c_int64()
        result = (ctypes.c_double * (len(row) + 1))()
        predict = ctypes.CDLL(self._library._name).LGBM_BoosterPredictForMat  # type: ignore[union-attr]
        self._require(
            predict(
                self._model, ctypes.byref(values), _DOUBLE, 1, len(row), 1, _CONTRIBUTIONS, 0, -1,
                _PARAMETERS, ctypes.byref(length), ctypes.byref(result),
            )
        )  # fmt: skip
        return list(result)

    def __del__(self) -> None:
        if getattr(self, "_fast", None):
            self._library.LGBM_FastConfigFree(self._fast)  # type: ignore[union-attr]
        if getattr(self, "_model", None):
            self._library.LGBM_BoosterFree(self._model)  # type: ignore[union-attr]
