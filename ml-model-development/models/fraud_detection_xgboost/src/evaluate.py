"""Evaluate the fraud model: `python -m src.evaluate gate` and `python -m src.evaluate handbook`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta

from common_ml_utils.command_line import run_command
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.mlflow_utils import RegisteredBundle
from common_ml_utils.project_gate import run_project_gate
from common_ml_utils.promotion_gate import Holdout
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.training_sets import TrainingSetStore
from src.config import IDENTITY, LABEL_NAME, FraudTrainingSettings
from src.data_loader import LABEL, Interval, load_labelled
from src.handbook import single_split
from src.preprocessor import check_ranges


def gate(settings: FraudTrainingSettings) -> None:
    """Judge the challenger against the champion on its holdout; move the alias if it is better."""
    run_project_gate(settings, settings.gate, IDENTITY, load_holdout, trained_into_holdout)


def load_holdout(
    client: FeatureStoreClient,
    kept: TrainingSetStore,
    candidate: RegisteredBundle,
    challenger: RegisteredBundle,
) -> Holdout:
    """Return the challenger's holdout with the candidate's features: the kept rows, else fetched again."""
    training = challenger.bundle.manifest.training
    interval = Interval(training.holdout_start, training.holdout_end)
    contract = candidate.bundle.contract
    frame = kept.load(challenger.bundle.manifest.data_version, client.dataset_id(), contract.sha256)
    if frame is None:
        delay = timedelta(days=client.label_policy(LABEL_NAME).delay_days)
        frame = check_ranges(load_labelled(client, contract, [interval], interval.end + delay))
    frame = interval.rows(frame)
    return Holdout(frame, frame[LABEL].to_numpy(), frame["customer_id"].to_numpy())


def trained_into_holdout(champion: Manifest, challenger: Manifest) -> bool:
    """Tell whether the champion learned from days of the challenger's holdout, or later ones."""
    return champion.training.end > challenger.training.holdout_start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    commands = {"gate": gate, "handbook": single_split}
    parser = argparse.ArgumentParser(prog="python -m src.evaluate", description=__doc__)
    parser.add_argument("evaluation", choices=sorted(commands))
    options = parser.parse_args(arguments)
    return run_command(FraudTrainingSettings, commands[options.evaluation])


if __name__ == "__main__":
    sys.exit(main())
