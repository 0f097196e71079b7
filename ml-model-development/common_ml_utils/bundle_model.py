"""The MLflow model of a release bundle, logged as code: MLflow runs this file, nothing is pickled.

It stands beside the bundle in the model version; `SCORING_MODULES` in release_bundle.py are the modules it
needs. `unwrap_python_model()` gives it without MLflow's checks, which cost milliseconds a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from common_ml_utils.preprocessing import FeatureValue
from common_ml_utils.release_bundle import ReleaseBundle


class BundleModel(PythonModel):
    """Scores feature vectors with the bundle; the signature's output is P(positive)."""

    bundle: ReleaseBundle

    def load_context(self, context: Any) -> None:
        """Load the bundle that was logged with the model; an altered one is refused."""
        self.bundle = ReleaseBundle.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Return the score of each row."""
        return self.bundle.score_frame(model_input)

    def score_row(self, features: Mapping[str, FeatureValue]) -> float:
        """Return the score of one vector, without a data frame."""
        return self.bundle.score_row(features)


set_model(BundleModel())
