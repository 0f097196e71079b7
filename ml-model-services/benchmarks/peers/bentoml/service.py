"""The model alone behind BentoML; features come in the request."""

import os

import bentoml
import numpy as np
from xgboost import XGBClassifier


@bentoml.service(workers=1, metrics={"enabled": True})
class FraudModel:
    def __init__(self) -> None:
        self.model = XGBClassifier(n_jobs=1)
        self.model.load_model(os.environ["MODEL_FILE"])

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict_proba(rows)[:, 1]
