"""The churn model's data: matured snapshots of subscribers, and a holdout that stays as data grows."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from common_ml_utils.data_schemas.training_data_contract import (
    PublishedContract,
    TrainingDataContract,
    require_both_classes,
)
from common_ml_utils.errors import DataError, EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from src.config import HOLDOUT_SHARE, ChurnFolds
from src.preprocessor import check_ranges

KEY = "subscriber_id"
LABEL = "churned"


def data_contract(contract: PublishedContract) -> TrainingDataContract:
    """Return the shape of the churn training set: one row a subscriber."""
    return TrainingDataContract(service=contract.service, key=KEY, label=LABEL)


def load_labelled(
    client: FeatureStoreClient, contract: PublishedContract, known_as_of: datetime
) -> pd.DataFrame:
    """Return the subscribers whose label was known at `known_as_of`, with their profile, checked.

    Grain: one row a subscriber, ordered by `subscriber_id`. The label covers the time after the snapshot, so
    the profile of that very moment is what the model may see.
    """
    snapshots = client.query(
        "SELECT min(event_timestamp) AS first, max(event_timestamp) AS last FROM labels.fct_churn_labels"
        " WHERE label_known_at <= %s",
        [known_as_of],
    )[0]
    if snapshots["first"] is None:
        raise EmptyWindowError(f"labels.fct_churn_labels has no label known at {known_as_of.isoformat()}")
    entities = EntityQuery(
        table=("labels", "fct_churn_labels"),
        columns=(KEY, LABEL, "label_known_at"),
        order_by=KEY,
        labels_known_as_of=known_as_of,
    )
    window = (snapshots["first"], snapshots["last"] + timedelta(microseconds=1))
    frame = client.features_as_of(contract, entities, [window], "training set")
    return check_ranges(data_contract(contract).validate_frame(frame, known_as_of))


def split_holdout(
    labelled: pd.DataFrame, key: str = KEY, label: str = LABEL
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training and holdout, the same share of each class held out.

    Who is held out hangs on a hash of the id, not on the order of rows: a subscriber stays on one side when
    others join, so an older model was not trained on a newer one's holdout.
    """
    require_both_classes(labelled[label], f"{label} labels")
    drawn = labelled[key].map(lambda one: hashlib.sha256(f"subscriber:{one}".encode()).hexdigest())
    position = drawn.groupby(labelled[label]).rank(method="first")
    size = labelled.groupby(label)[key].transform("size")
    held_out = position <= (size * HOLDOUT_SHARE).round()
    return labelled[~held_out].reset_index(drop=True), labelled[held_out].reset_index(drop=True)


def fold_positions(
    frame: pd.DataFrame, validation: ChurnFolds, label: str = LABEL
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (fit, validation) row positions, classes in equal shares; every row is validated once."""
    fewest = int(np.bincount(frame[label], minlength=2).min())
    if fewest < validation.folds:
        raise DataError(
            f"{validation.folds} folds need as many rows of each class, the rarer one has {fewest}"
        )
    folds = StratifiedKFold(validation.folds, shuffle=True, random_state=validation.shuffle_seed)
    return list(folds.split(frame, frame[label]))


def stratified_folds(
    training: pd.DataFrame, validation: ChurnFolds, label: str = LABEL
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return (fit, validation) pairs; every training row is in exactly one validation part."""
    return [
        (training.iloc[fit].reset_index(drop=True), training.iloc[unseen].reset_index(drop=True))
        for fit, unseen in fold_positions(training, validation, label)
    ]
