"""Evaluate the churn model: `python -m src.evaluate gate`."""

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
from src.config import IDENTITY, LABEL_NAME, ChurnTrainingSettings
from src.data_loader import KEY, LABEL, load_labelled, split_holdout


def gate(settings: ChurnTrainingSettings) -> None:
    """Judge the challenger against the champion on held-out subscribers; move the alias if it is better."""
    run_project_gate(settings, settings.gate, IDENTITY, load_holdout, trained_into_holdout)


def load_holdout(
    client: FeatureStoreClient,
    kept: TrainingSetStore,
    candidate: RegisteredBundle,
    challenger: RegisteredBundle,
) -> Holdout:
    """Return the challenger's holdout with the candidate's features: the kept rows, else fetched again."""
    contract = candidate.bundle.contract
    manifest = challenger.bundle.manifest
    labelled = kept.load(manifest.data_version, client.dataset_id(), contract.sha256)
    if labelled is None:
        delay = timedelta(days=client.label_policy(LABEL_NAME).delay_days)
        labelled = load_labelled(client, contract, manifest.training.end + delay)
    frame = split_holdout(labelled)[1]
    return Holdout(frame, frame[LABEL].to_numpy(), frame[KEY].to_numpy())


def trained_into_holdout(champion: Manifest, challenger: Manifest) -> bool:
    """Say no: who is held out hangs on the subscriber's id, so no model was trained on another's holdout."""
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.evaluate", description=__doc__)
    parser.add_argument("evaluation", choices=["gate"])
    parser.parse_args(arguments)
    return run_command(ChurnTrainingSettings, gate)


if __name__ == "__main__":
    sys.exit(main())
