"""The holdout of the gate."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from conftest import Trained
from src.evaluate import load_holdout, trained_into_holdout

from common_ml_utils.release_bundle import Manifest
from common_ml_utils.training_sets import TrainingSetStore


def test_the_gates_holdout_is_the_kept_one_or_the_same_fetched_again(trained: Trained) -> None:
    challenger, store = trained.registry.latest(), trained.store
    kept = TrainingSetStore(trained.settings.data_dir / "training_sets" / "fraud")
    assert kept.load(challenger.bundle.manifest.data_version, "made up", store.published.sha256) is not None
    from_file = load_holdout(store, kept, challenger, challenger)
    empty = TrainingSetStore(trained.settings.data_dir / "nothing")
    fetched = load_holdout(store, empty, challenger, challenger)
    pd.testing.assert_frame_equal(from_file.frame, fetched.frame)
    np.testing.assert_array_equal(from_file.groups, from_file.frame["customer_id"])
    interval = challenger.bundle.manifest.training
    assert from_file.frame["event_timestamp"].min() >= interval.holdout_start
    assert from_file.frame["event_timestamp"].max() < interval.holdout_end


def test_only_a_champion_whose_training_ends_in_the_holdout_saw_it(trained: Trained) -> None:
    challenger = trained.registry.latest().bundle.manifest

    def champion(training_end: datetime) -> Manifest:
        training = challenger.training.model_copy(update={"end": training_end})
        return challenger.model_copy(update={"training": training})

    holdout_start = challenger.training.holdout_start
    assert not trained_into_holdout(champion(holdout_start), challenger)
    assert trained_into_holdout(champion(holdout_start + timedelta(days=1)), challenger)
