"""Train the churn model and register it as challenger: `python -m src.train [--as-of T]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from common_ml_utils.base_model_trainer import BaseModelTrainer, TrainingData, TrainingOutcome
from common_ml_utils.command_line import run_command, utc_time
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry
from common_ml_utils.model_card import CardText
from common_ml_utils.native_models import LightGBMModel
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
    ChurnHyperparameters,
    ChurnTrainingSettings,
    ChurnValues,
)
from src.data_loader import LABEL, load_labelled, split_holdout, stratified_folds
from src.slices import slices_of


class ChurnTrainer(BaseModelTrainer):
    """Trains on subscribers whose label is known, measures on those held out."""

    identity = IDENTITY

    def __init__(self, settings: ChurnTrainingSettings, client: FeatureStoreClient, as_of: datetime) -> None:
        super().__init__(
            ModelRegistry(settings.mlflow_tracking_uri),
            settings.reports_dir,
            settings.data_dir,
            {
                **settings.hyperparameters.model_dump(),
                **settings.validation.model_dump(),
                "training_backend": settings.backend,
            },
        )
        self.settings = settings
        self.backend = training_backend(settings.backend, settings.distribution)
        self.backend.check_lightgbm()
        self.client = client
        self.as_of = as_of

    def train(self) -> TrainingOutcome:
        """Run the recipe; Ray, where it fits, is stopped at its end."""
        with self.backend:
            return super().train()

    def load(self) -> TrainingData:
        """Fetch the matured subscribers, hold a stratified share out, and cut the rest into folds."""
        contract = self.client.contract(FEATURE_SERVICE)
        policy = self.client.label_policy(LABEL_NAME)
        labelled = load_labelled(self.client, contract, self.as_of)
        training, holdout = split_holdout(labelled)
        first, last = (t.to_pydatetime() for t in labelled["event_timestamp"].agg(["min", "max"]))
        return TrainingData(
            contract=contract,
            labelled=labelled,
            training=training,
            folds=stratified_folds(training, self.settings.validation),
            holdout=holdout,
            interval=TrainingInterval(
                start=first,
                end=last,
                holdout_start=first,
                holdout_end=last,
                rows=len(training),
                positives=int(training[LABEL].sum()),
            ),
            label=LABEL,
            label_policy_version=policy.policy_version,
            data_version=data_version(self.client.dataset_id(), contract.sha256, labelled),
        )

    def fit(self, preprocessing: Preprocessing, frame: pd.DataFrame) -> LightGBMModel:
        """Fit the boosted trees."""
        labels = frame[LABEL].to_numpy()
        return fit_lightgbm(preprocessing, frame, labels, self.settings.hyperparameters, self.backend)

    def action_costs(self, frame: pd.DataFrame) -> np.ndarray:
        """Return what doing nothing, contacting and making an offer cost."""
        return churn_action_costs(frame[LABEL].to_numpy(), self.settings.values)

    def slices(self, frame: pd.DataFrame) -> Slices:
        """Return the groups that the gate guards and the card reports."""
        return slices_of(frame)

    def card(self) -> CardText:
        """Return the words of the model card."""
        return CARD


def fit_lightgbm(
    preprocessing: Preprocessing,
    frame: pd.DataFrame,
    labels: np.ndarray,
    parameters: ChurnHyperparameters,
    backend: TrainingBackend | None = None,
) -> LightGBMModel:
    """Fit objective `binary`, here unless a backend is given; same input and seed, same model bytes."""
    backend = backend or TrainingBackend()
    settings = parameters.model_dump(exclude={"n_estimators", "n_jobs"})
    settings |= {
        "objective": "binary",
        "num_threads": parameters.n_jobs,
        "deterministic": True,
        "force_row_wise": True,  # else LightGBM times both layouts and may choose differently
        "verbosity": -1,
    }
    matrix = preprocessing.transform(frame)
    booster = backend.train_lightgbm(settings, preprocessing, matrix, labels, parameters.n_estimators)
    return LightGBMModel(booster)


def churn_action_costs(churned: np.ndarray, values: ChurnValues) -> np.ndarray:
    """Return the costs of nothing, contact and offer, shape (rows, 3).

    >>> churn_action_costs(np.array([0, 1]), ChurnValues()).tolist()
    [[0.0, 10.0, 90.0], [600.0, 520.0, 420.0]]
    """
    nothing = values.subscriber_value * churned
    contact = values.contact_cost + (1 - values.contact_keeps) * nothing
    offer = values.offer_cost + (1 - values.offer_keeps) * nothing
    return np.column_stack([nothing, contact, offer]).astype(np.float64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.train", description=__doc__)
    parser.add_argument("--as-of", type=utc_time, help="labels known at this time (UTC); default: now")
    options = parser.parse_args(arguments)

    def work(settings: ChurnTrainingSettings) -> None:
        client = FeatureStoreClient(settings.feature_store_db)
        outcome = ChurnTrainer(settings, client, options.as_of or datetime.now(UTC)).train()
        measured = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
        print(f"{IDENTITY.model_name} version {outcome.version} is the challenger: {measured}")

    return run_command(ChurnTrainingSettings, work)


if __name__ == "__main__":
    sys.exit(main())
