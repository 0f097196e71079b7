"""Train the fraud model and register it as challenger: `python -m src.train [--as-of T]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta

import numpy as np
import pandas as pd

from common_ml_utils.base_model_trainer import BaseModelTrainer, TrainingData, TrainingOutcome
from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.evaluation_utils import card_precision_at
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry
from common_ml_utils.model_card import CardText
from common_ml_utils.native_models import XGBoostModel
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import TrainingInterval
from common_ml_utils.slices import Slices
from common_ml_utils.training_backends import TrainingBackend, training_backend
from common_ml_utils.training_sets import data_version
from src.card import CARD
from src.config import (
    FEATURE_SERVICE,
    IDENTITY,
    LABEL_NAME,
    FraudCosts,
    FraudHyperparameters,
    FraudTrainingSettings,
)
from src.data_loader import LABEL, load_labelled, resolve_intervals
from src.preprocessor import check_ranges, days_since_epoch
from src.slices import slices_of


class FraudTrainer(BaseModelTrainer):
    """Trains on the days whose labels are known, measures on the latest matured days."""

    identity = IDENTITY

    def __init__(
        self, settings: FraudTrainingSettings, client: FeatureStoreClient, as_of: datetime | None
    ) -> None:
        super().__init__(
            ModelRegistry(settings.mlflow_tracking_uri),
            settings.reports_dir,
            settings.data_dir,
            {
                **settings.hyperparameters.model_dump(exclude_none=True),
                **settings.windows.model_dump(),
                "training_backend": settings.backend,
            },
        )
        self.settings = settings
        self.backend = training_backend(settings.backend, settings.distribution)
        self.backend.check_xgboost(settings.hyperparameters.model_dump(exclude_none=True))
        self.client = client
        self.as_of = as_of

    def train(self) -> TrainingOutcome:
        """Run the recipe; Spark or Ray, where one fits, is stopped at its end."""
        with self.backend:
            return super().train()

    def load(self) -> TrainingData:
        """Fetch training and holdout interval; without `as_of`, as of the end of the last loaded day."""
        contract = self.client.contract(FEATURE_SERVICE)
        policy = self.client.label_policy(LABEL_NAME)
        first_day, last_day = self.client.loaded_days()
        as_of = self.as_of or datetime.combine(last_day + timedelta(days=1), time(), UTC)
        intervals = resolve_intervals(as_of, first_day, policy.delay_days, self.settings.windows)
        wanted = [intervals.training, intervals.holdout]
        labelled = check_ranges(load_labelled(self.client, contract, wanted, intervals.as_of))
        training = intervals.training.rows(labelled)
        return TrainingData(
            contract=contract,
            labelled=labelled,
            training=training,
            folds=[(intervals.fit.rows(labelled), intervals.validation.rows(labelled))],
            holdout=intervals.holdout.rows(labelled),
            interval=TrainingInterval(
                start=intervals.training.start,
                end=intervals.training.end,
                holdout_start=intervals.holdout.start,
                holdout_end=intervals.holdout.end,
                rows=len(training),
                positives=int(training[LABEL].sum()),
            ),
            label=LABEL,
            label_policy_version=policy.policy_version,
            data_version=data_version(self.client.dataset_id(), contract.sha256, labelled),
        )

    def fit(self, preprocessing: Preprocessing, frame: pd.DataFrame) -> XGBoostModel:
        """Fit the boosted trees."""
        matrix, labels = preprocessing.transform(frame), frame[LABEL].to_numpy()
        return fit_xgboost(matrix, labels, self.settings.hyperparameters, self.backend)

    def action_costs(self, frame: pd.DataFrame) -> np.ndarray:
        """Return what approving, reviewing and declining each transaction costs."""
        return fraud_action_costs(frame["tx_amount"].to_numpy(), frame[LABEL].to_numpy(), self.settings.costs)

    def slices(self, frame: pd.DataFrame) -> Slices:
        """Return the groups that the gate guards and the card reports."""
        return slices_of(frame)

    def card(self) -> CardText:
        """Return the words of the model card."""
        return CARD

    def own_metrics(self, frame: pd.DataFrame, scores: np.ndarray) -> dict[str, float]:
        """Return the card precision@100."""
        days, cards = days_since_epoch(frame), frame["customer_id"].to_numpy()
        return {"card_precision_100": card_precision_at(days, cards, frame[LABEL].to_numpy(), scores)}


def fit_xgboost(
    matrix: np.ndarray,
    labels: np.ndarray,
    parameters: FraudHyperparameters,
    backend: TrainingBackend | None = None,
) -> XGBoostModel:
    """Fit `binary:logistic` trees, here unless a backend is given; same input and seed, same model bytes."""
    backend = backend or TrainingBackend()
    settings = parameters.model_dump(
        exclude={"n_estimators", "learning_rate", "n_jobs", "max_bin"}, exclude_none=True
    )
    settings |= {
        "objective": "binary:logistic",
        "eta": parameters.learning_rate,
        "nthread": parameters.n_jobs,
        # XGBoost refuses the bins of histograms when it is asked for exact splits.
        **({"max_bin": parameters.max_bin} if parameters.tree_method == "hist" else {}),
    }
    return XGBoostModel(backend.train_xgboost(settings, matrix, labels, parameters.n_estimators))


def fraud_action_costs(amounts: np.ndarray, frauds: np.ndarray, costs: FraudCosts) -> np.ndarray:
    """Return the costs of approve, review and decline, shape (rows, 3).

    >>> fraud_action_costs(np.array([100.0]), np.array([1]), FraudCosts()).round(2).tolist()
    [[100.0, 13.0, 0.0]]
    """
    approve = amounts * frauds
    review = costs.review + (1 - costs.review_catch_rate) * approve
    decline = costs.decline_good * (1 - frauds)
    return np.column_stack([approve, review, decline]).astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.train", description=__doc__)
    parser.add_argument(
        "--as-of", type=utc_time, help="labels known at this time (UTC); default: after the last day"
    )
    options = parser.parse_args(arguments)

    def work(settings: FraudTrainingSettings) -> None:
        outcome = FraudTrainer(settings, FeatureStoreClient(settings.feature_store_db), options.as_of).train()
        measured = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
        print(f"{IDENTITY.model_name} version {outcome.version} is the challenger: {measured}")

    return run_command(FraudTrainingSettings, work)


if __name__ == "__main__":
    sys.exit(main())
