"""The two model libraries behind one small interface: bytes, scores and SHAP contributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from common_ml_utils.errors import BundleError

ModelKind = Literal["xgboost", "lightgbm"]


class NativeModel(Protocol):
    """A trained binary classifier in its library's own format; the matrix is float64, NaN is missing."""

    kind: ModelKind

    def to_bytes(self) -> bytes:
        """Return the model file's content; the same model gives the same bytes."""

    def scores(self, matrix: np.ndarray) -> np.ndarray:
        """Return P(positive) for each row, float64."""

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        """Return exact SHAP values in log-odds, shape (rows, features); the base value is left out."""

    def base_value(self) -> float:
        """Return the log-odds that contributions start from: with them it adds up to a score's logit."""


class XGBoostModel:
    """An XGBoost booster trained with `binary:logistic`; it scores in one thread, as calls are small."""

    kind: ModelKind = "xgboost"

    def __init__(self, booster: Any) -> None:
        self.booster = booster
        self.booster.set_param({"nthread": 1})

    @classmethod
    def from_bytes(cls, content: bytes) -> XGBoostModel:
        """Read a UBJ file's content."""
        import xgboost

        return cls(xgboost.Booster(model_file=bytearray(content)))

    def to_bytes(self) -> bytes:
        """Return the UBJ file's content."""
        return bytes(self.booster.save_raw("ubj"))

    def scores(self, matrix: np.ndarray) -> np.ndarray:
        """Return P(positive) for each row, without building a DMatrix."""
        return self.booster.inplace_predict(matrix).astype(np.float64)

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        """Return TreeSHAP values in log-odds."""
        import xgboost

        return self.booster.predict(xgboost.DMatrix(matrix), pred_contribs=True)[:, :-1].astype(np.float64)

    def base_value(self) -> float:
        """Return what TreeSHAP starts from, the same for every row."""
        import xgboost

        nulls = xgboost.DMatrix(np.full((1, self.booster.num_features()), np.nan))
        return float(self.booster.predict(nulls, pred_contribs=True)[0, -1])


class LightGBMModel:
    """A LightGBM booster trained with objective `binary`; it scores in one thread."""

    kind: ModelKind = "lightgbm"

    def __init__(self, booster: Any) -> None:
        self.booster = booster

    @classmethod
    def from_bytes(cls, content: bytes) -> LightGBMModel:
        """Read a text file's content."""
        import lightgbm

        return cls(lightgbm.Booster(model_str=content.decode()))

    def to_bytes(self) -> bytes:
        """Return the text file's content."""
        return self.booster.model_to_string().encode()

    def scores(self, matrix: np.ndarray) -> np.ndarray:
        """Return P(positive) for each row."""
        return np.asarray(self.booster.predict(matrix, num_threads=1), dtype=np.float64)

    def contributions(self, matrix: np.ndarray) -> np.ndarray:
        """Return TreeSHAP values in log-odds."""
        return np.asarray(self.booster.predict(matrix, pred_contrib=True, num_threads=1))[:, :-1]

    def base_value(self) -> float:
        """Return what TreeSHAP starts from, the same for every row."""
        nulls = np.full((1, self.booster.num_feature()), np.nan)
        return float(np.asarray(self.booster.predict(nulls, pred_contrib=True, num_threads=1))[0, -1])


# How a file of each kind begins; what begins otherwise, a pickle say, never reaches a library's parser.
FIRST_BYTES: dict[str, bytes] = {
    "xgboost": b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner",  # UBJ: an object whose first key is `learner`
    "lightgbm": b"tree\nversion=",
    "recommender": b"PK\x03\x04",  # npz: a zip archive of arrays
}


def require_model_format(kind: str, content: bytes) -> None:
    """Raise BundleError unless the content begins as a model file of the kind does."""
    if kind not in FIRST_BYTES:
        raise BundleError(f"unknown model kind {kind!r}: expected one of {sorted(FIRST_BYTES)}")
    if not content.startswith(FIRST_BYTES[kind]):
        what = "a pickle" if content[:1] == b"\x80" else f"it begins with {content[:8]!r}"
        raise BundleError(f"the model file is no {kind} model: {what}")


def load_native_model(kind: str, content: bytes) -> NativeModel:
    """Read a model file's content; raises BundleError when it is not a model of that kind."""
    require_model_format(kind, content)
    readers: dict[str, Callable[[bytes], NativeModel]] = {
        "xgboost": XGBoostModel.from_bytes,
        "lightgbm": LightGBMModel.from_bytes,
    }
    if kind not in readers:
        raise BundleError(f"unknown model kind {kind!r}: expected one of {sorted(readers)}")
    try:
        return readers[kind](content)
    except Exception as error:  # each library raises its own type
        raise BundleError(f"the {kind} model file can't be read: {error}") from error
