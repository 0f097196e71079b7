"""Search for the churn model's hyperparameters: `python -m src.search [--trials N] [--timeout S]`.

The folds are the stratified ones of the training; the subscribers held out take part in none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.hyperparameter_search import (
    SearchFold,
    SearchProblem,
    Watch,
    lightgbm_watch,
    search_command,
)
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.training_backends import TrainingBackend
from common_ml_utils.training_sets import data_version
from src.config import FEATURE_SERVICE, IDENTITY, ChurnFolds, ChurnHyperparameters, ChurnTrainingSettings
from src.data_loader import LABEL, load_labelled, split_holdout, stratified_folds
from src.train import fit_lightgbm

SPACE = Path(__file__).with_name("search_space.yaml")


def load_problem(
    settings: ChurnTrainingSettings, as_of: datetime | None, client: FeatureStoreClient | None = None
) -> SearchProblem:
    """Fetch the matured subscribers, put the holdout aside and cut the rest into folds."""
    from common_ml_utils.search.space import load_space

    space = load_space(SPACE, settings.hyperparameters)
    client = client or FeatureStoreClient(settings.feature_store_db)
    contract = client.contract(FEATURE_SERVICE)
    training, _ = split_holdout(load_labelled(client, contract, as_of or datetime.now(UTC)))
    cut = ChurnFolds(folds=settings.search.folds, shuffle_seed=settings.validation.shuffle_seed)

    def fold(number: int, fit_rows: pd.DataFrame, validation_rows: pd.DataFrame) -> SearchFold:
        preprocessing = Preprocessing.fit(contract.service, fit_rows)
        return fold_of(f"{number} of {cut.folds}", preprocessing, fit_rows, validation_rows)

    return SearchProblem(
        report=IDENTITY.report,
        experiment=IDENTITY.experiment,
        space=space,
        folds=[
            fold(number, fit_rows, validation_rows)
            for number, (fit_rows, validation_rows) in enumerate(stratified_folds(training, cut), start=1)
        ],
        metric=settings.search.metric,
        data_version=data_version(client.dataset_id(), contract.sha256, training),
    )


def fold_of(
    name: str, preprocessing: Preprocessing, fit_rows: pd.DataFrame, validation_rows: pd.DataFrame
) -> SearchFold:
    """Return a fold whose validation matrix is made once for all trials."""
    labels, unseen = fit_rows[LABEL].to_numpy(), preprocessing.transform(validation_rows)

    def scores(parameters: ChurnHyperparameters, watch: Watch) -> np.ndarray:
        backend = TrainingBackend([lightgbm_watch(unseen, parameters.n_estimators, watch)])
        return fit_lightgbm(preprocessing, fit_rows, labels, parameters, backend).scores(unseen)

    return SearchFold(name, validation_rows[LABEL].to_numpy(), scores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    return search_command(ChurnTrainingSettings, load_problem, arguments)


if __name__ == "__main__":
    sys.exit(main())
