"""XGBoost on Spark through `xgboost.spark`: each of the barrier's tasks holds a part of the rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from common_ml_utils.errors import BackendError
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.training_backends import (
    BackendName,
    DistributionSettings,
    TrainingBackend,
    cause_of,
    require_histograms,
)

# What the estimator sets itself, by its scikit-learn names.
RENAMED = {"eta": "learning_rate"}
NOT_PASSED = ("objective", "nthread")


class SparkBackend(TrainingBackend):
    """Starts a session at the first fit and keeps it until `close`."""

    name: BackendName = "spark"

    def __init__(self, settings: DistributionSettings) -> None:
        super().__init__()
        self._settings = settings
        self._open = ExitStack()
        self._session: Any = None

    def close(self) -> None:
        """Stop the session and its Java process."""
        self._session = None
        self._open.close()

    def check_xgboost(self, parameters: Mapping[str, Any]) -> None:
        """Raise BackendError for exact splits, which are not possible on parts of the rows."""
        require_histograms(self.name, parameters)

    def check_lightgbm(self) -> None:
        """Raise BackendError: LightGBM has no Spark interface in Python."""
        raise BackendError(
            "TRAINING_BACKEND=spark can't fit LightGBM: its Spark interface is a Java library that is not "
            "part of this environment. Use TRAINING_BACKEND=ray (rows divided between workers) or local"
        )

    def train_xgboost(
        self, parameters: Mapping[str, Any], matrix: np.ndarray, labels: np.ndarray, rounds: int
    ) -> Any:
        """Return the booster that Spark's tasks fitted together."""
        import pandas as pd
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from xgboost.spark import SparkXGBClassifier

        require_histograms(self.name, parameters)
        logging.getLogger("XGBoost-PySpark").setLevel(logging.WARNING)
        names = [f"f{i}" for i in range(matrix.shape[1])]
        frame = pd.DataFrame(matrix, columns=names).assign(label=labels.astype(np.float64))
        passed = {RENAMED.get(k, k): v for k, v in parameters.items() if k not in NOT_PASSED}
        try:
            table = self._spark().createDataFrame(frame)
            estimator = SparkXGBClassifier(
                features_col=names,
                label_col="label",
                num_workers=self._settings.workers,
                n_estimators=rounds,
                verbosity=0,
                verbose=False,
                **passed,
            )
            booster = estimator.fit(table).get_booster()
        except (PySparkException, Py4JError, ValueError, RuntimeError) as error:
            raise BackendError(f"Spark did not fit the model: {cause_of(error)}") from error
        # A local fit knows no names either: the order of features stands in the bundle.
        booster.feature_names = booster.feature_types = None
        return booster

    def train_lightgbm(
        self,
        parameters: Mapping[str, Any],
        preprocessing: Preprocessing,
        matrix: np.ndarray,
        labels: np.ndarray,
        rounds: int,
    ) -> Any:
        """Raise BackendError."""
        self.check_lightgbm()

    def _spark(self) -> Any:
        if self._session is None:
            from common_ml_utils.distributed.spark_session import spark_session

            self._session = self._open.enter_context(spark_session(self._settings))
        return self._session
