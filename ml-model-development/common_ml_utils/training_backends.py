"""Where a model is fitted: in this process, on Spark or on Ray, chosen by `TRAINING_BACKEND`.

A backend turns parameters, matrix and labels into a booster of the model's own library, so that everything
after the fit (bundle, gate, services) is the same. Spark and Ray are imported when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from common_ml_utils.errors import BackendError, first_line
from common_ml_utils.preprocessing import Preprocessing

BackendName = Literal["local", "spark", "ray"]
PYTHON_ERROR = re.compile(r"(?!org\.|java)[\w.]*(Error|Exception): ")


class DistributionSettings(BaseModel):
    """How Spark or Ray is started and how much of it a fit takes (`TRAINING_DISTRIBUTION__*`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=2, ge=1)
    """Processes that share one fit; each holds its part of the rows and uses `n_jobs` threads."""
    spark_master: str = Field(default="local[2]", pattern=r"^(local(\[.+\])?|yarn|(spark|k8s)://.+)$")
    spark_driver_memory: str = Field(default="1g", pattern="^[1-9][0-9]*[mg]$")
    ray_address: str = Field(default="local", min_length=1)
    """`local` starts Ray on this machine's loopback and stops it; else the address of a running cluster."""
    lightgbm_open_ports: bool = False
    """Whether LightGBM's workers may listen: while they fit, on all addresses of a machine, unencrypted and
    without asking who calls. LightGBM knows no other way."""


class TrainingBackend:
    """Fits in this process; the distributed backends extend it. A context manager that ends what it began."""

    name: BackendName = "local"

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        self._callbacks = list(callbacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine if this backend started one; a later fit starts it again."""

    def check_xgboost(self, parameters: Mapping[str, Any]) -> None:
        """Raise BackendError when XGBoost can't be fitted with these parameters here."""

    def check_lightgbm(self) -> None:
        """Raise BackendError when LightGBM can't be fitted here."""

    def train_xgboost(
        self, parameters: Mapping[str, Any], matrix: np.ndarray, labels: np.ndarray, rounds: int
    ) -> Any:
        """Return a booster fitted on all rows; NaN is missing."""
        import xgboost

        data = xgboost.DMatrix(matrix, labels)
        return xgboost.train(dict(parameters), data, num_boost_round=rounds, callbacks=self._callbacks)

    def train_lightgbm(
        self,
        parameters: Mapping[str, Any],
        preprocessing: Preprocessing,
        matrix: np.ndarray,
        labels: np.ndarray,
        rounds: int,
    ) -> Any:
        """Return a booster fitted on all rows; category indexes are native categories, NaN is missing."""
        import lightgbm

        data = lightgbm_dataset(preprocessing, matrix, labels, parameters)
        return lightgbm.train(dict(parameters), data, num_boost_round=rounds, callbacks=self._callbacks)


def lightgbm_dataset(
    preprocessing: Preprocessing, matrix: np.ndarray, labels: np.ndarray, parameters: Mapping[str, Any]
) -> Any:
    """Return LightGBM's data set: category indexes are native categories, NaN is missing."""
    import lightgbm

    return lightgbm.Dataset(
        matrix,
        labels,
        feature_name=preprocessing.names,
        categorical_feature=preprocessing.categorical_indexes,
        free_raw_data=True,
        params=dict(parameters),
    )


def require_histograms(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise BackendError for a tree method that needs all rows in one place."""
    method = parameters.get("tree_method", "hist")
    if method != "hist":
        raise BackendError(
            f"TRAINING_HYPERPARAMETERS__TREE_METHOD={method} sorts all rows in one place, which "
            f"TRAINING_BACKEND={name} can't do: use hist, or TRAINING_BACKEND=local"
        )


def cause_of(error: Exception) -> str:
    """Return the line that says what happened in a worker, whose traceback the engines wrap in their own.

    >>> cause_of(RuntimeError("task failed\\nTraceback:\\nValueError: bad value\\nat java.Thread"))
    'ValueError: bad value'
    """
    lines = str(error).splitlines()
    causes = [line for line in lines if PYTHON_ERROR.match(line)]
    return causes[-1].strip() if causes else first_line(error)


def training_backend(name: BackendName, settings: DistributionSettings) -> TrainingBackend:
    """Return the backend of a name; nothing is started before its first fit."""
    if name == "spark":
        from common_ml_utils.distributed.spark_backend import SparkBackend

        return SparkBackend(settings)
    if name == "ray":
        from common_ml_utils.distributed.ray_backend import RayBackend

        return RayBackend(settings)
    return TrainingBackend()
