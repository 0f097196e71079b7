"""The MLflow model of a recommender's bundle, logged as code: MLflow runs this file, nothing is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from common_ml_utils.recommender_bundle import RecommenderBundle


class RecommenderModel(PythonModel):
    """Answers histories of movie ids with lists of movies; parameters `k` and `exclude_seen`."""

    bundle: RecommenderBundle

    def load_context(self, context: Any) -> None:
        """Load the bundle that was logged with the model; an altered one is refused."""
        self.bundle = RecommenderBundle.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return `movie_ids` and `scores`, best first, for the history `movie_ids` of each row."""
        asked = params or {}
        lists = self.bundle.recommend(
            list(model_input["movie_ids"]), int(asked.get("k", 10)), bool(asked.get("exclude_seen", True))
        )
        return pd.DataFrame({"movie_ids": lists.movie_ids.tolist(), "scores": lists.scores.tolist()})


set_model(RecommenderModel())
