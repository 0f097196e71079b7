"""Evaluate the churn model: `python -m src.evaluate gate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from common_ml_utils.command_line import run_command
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.feature_store_client import FeatureStoreClient
from common_ml_utils.promotion.classifier_gate import Candidate, TrainingSource, run_classifier_gate
from common_ml_utils.release_bundle import Manifest
from common_ml_utils.training_sets import TrainingSetStore
from src.config import IDENTITY, LABEL_NAME, ChurnTrainingSettings
from src.data_loader import KEY, LABEL, load_labelled, split_holdout
from src.slices import slices_of


def gate(settings: ChurnTrainingSettings) -> None:
    """Judge the challenger against the champion on held-out subscribers; move the alias if it earns it."""
    run_classifier_gate(settings, settings.gate, IDENTITY, SOURCE)


def load_training(
    client: FeatureStoreClient, contract: PublishedContract, manifest: Manifest
) -> pd.DataFrame:
    """Return the subscribers of a training with a contract's features, fetched again."""
    delay = timedelta(days=client.label_policy(LABEL_NAME).delay_days)
    return load_labelled(client, contract, manifest.training.end + delay)


def split(rows: pd.DataFrame, manifest: Manifest) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part rows by who is held out."""
    return split_holdout(rows)


def seen_by(
    client: FeatureStoreClient, kept: TrainingSetStore, champion: Candidate, holdout: pd.DataFrame
) -> np.ndarray:
    """Mark the subscribers the champion was trained on.

    Who is held out hangs on the subscriber's id and a share of each class, so when others have joined since,
    a few at the border may have changed sides.
    """
    manifest, contract = champion.bundle.manifest, champion.bundle.contract
    rows = kept.load(manifest.data_version, client.dataset_id(), contract.sha256)
    if rows is None:
        rows = load_training(client, contract, manifest)
    return holdout[KEY].isin(split_holdout(rows)[0][KEY]).to_numpy()


SOURCE = TrainingSource(
    table=("labels", "fct_churn_labels"),
    key=KEY,
    label=LABEL,
    label_name=LABEL_NAME,
    group=KEY,
    request={},
    latest=lambda client: datetime.now(UTC),
    load=load_training,
    split=split,
    seen=seen_by,
    slices_of=slices_of,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m src.evaluate", description=__doc__)
    parser.add_argument("evaluation", choices=["gate"])
    parser.parse_args(arguments)
    return run_command(ChurnTrainingSettings, gate)


if __name__ == "__main__":
    sys.exit(main())
