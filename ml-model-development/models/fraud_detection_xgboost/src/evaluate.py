"""Evaluate the fraud model: `python -m src.evaluate gate` and `python -m src.evaluate handbook`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta

import numpy as np
import pandas as pd

from common_ml_utils.command_line import run_command
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.promotion.classifier_gate import Candidate, TrainingSource, run_classifier_gate
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.training_sets import TrainingSetStore
from src.config import IDENTITY, LABEL_NAME, FraudTrainingSettings
from src.data_loader import KEY, LABEL, REQUEST, Interval, load_labelled
from src.handbook import single_split
from src.preprocessor import check_ranges
from src.slices import slices_of


def gate(settings: FraudTrainingSettings) -> None:
    """Judge the challenger against the champion on its holdout; move the alias if it earns it."""
    run_classifier_gate(settings, settings.gate, IDENTITY, SOURCE)


def load_training(
    client: FeatureStoreClient, contract: PublishedContract, manifest: Manifest
) -> pd.DataFrame:
    """Return the transactions of a training and its holdout with a contract's features, fetched again."""
    training = manifest.training
    intervals = [
        Interval(training.start, training.end),
        Interval(training.holdout_start, training.holdout_end),
    ]
    delay = timedelta(days=client.label_policy(LABEL_NAME).delay_days)
    return check_ranges(load_labelled(client, contract, intervals, training.holdout_end + delay))


def split(rows: pd.DataFrame, manifest: Manifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part rows by the manifest's two intervals."""
    training = manifest.training
    holdout = Interval(training.holdout_start, training.holdout_end)
    return Interval(training.start, training.end).rows(rows), holdout.rows(rows)


def seen_by(
    client: FeatureStoreClient, kept: TrainingSetStore, champion: Candidate, holdout: pd.DataFrame
) -> np.ndarray:
    """Mark the transactions that lie before the end of the champion's training."""
    return (holdout["event_timestamp"] < champion.bundle.manifest.training.end).to_numpy()


def latest(client: FeatureStoreClient) -> datetime:
    """Return the midnight after the last loaded day, or now where that lies ahead."""
    end = datetime.combine(client.loaded_days()[1] + timedelta(days=1), time(), UTC)
    return min(end, datetime.now(UTC))


SOURCE = TrainingSource(
    table=("labels", "fct_fraud_labels"),
    key=KEY,
    label=LABEL,
    label_name=LABEL_NAME,
    group="customer_id",
    request={name: expression.format(timestamp="event_timestamp") for name, expression in REQUEST.items()},
    latest=latest,
    load=load_training,
    split=split,
    seen=seen_by,
    slices_of=slices_of,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    commands = {"gate": gate, "handbook": single_split}
    parser = argparse.ArgumentParser(prog="python -m src.evaluate", description=__doc__)
    parser.add_argument("evaluation", choices=sorted(commands))
    options = parser.parse_args(arguments)
    return run_command(FraudTrainingSettings, commands[options.evaluation])


if __name__ == "__main__":
    sys.exit(main())
