"""The holdout of the gate, and who saw it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
from conftest import Trained
from src.evaluate import SOURCE

from common_ml_utils.mlflow_utils import RegisteredBundle
from common_ml_utils.promotion.classifier_gate import ClassifierProject
from common_ml_utils.release_bundle import ReleaseBundle
from common_ml_utils.training_sets import TrainingSetStore


def project(trained: Trained, folder: str = "training_sets/fraud") -> ClassifierProject:
    kept = TrainingSetStore(trained.settings.data_dir / folder)
    return ClassifierProject(SOURCE, trained.store, kept, trained.settings.gate, trained.settings.reports_dir)


def older(candidate: RegisteredBundle[ReleaseBundle], **training: object) -> RegisteredBundle[ReleaseBundle]:
    """Return the same model as another version that says of its training what is given."""
    manifest = candidate.bundle.manifest
    changed = manifest.model_copy(update={"training": manifest.training.model_copy(update=training)})
    bundle = object.__new__(ReleaseBundle)
    bundle.__dict__.update({**candidate.bundle.__dict__, "manifest": changed})
    return replace(candidate, version=99, bundle=bundle)


def test_the_gates_holdout_is_the_kept_one_or_the_same_fetched_again(trained: Trained) -> None:
    challenger = trained.registry.latest()
    from_file = project(trained).holdout(challenger, challenger)
    fetched = project(trained, "nothing").holdout(challenger, challenger)
    pd.testing.assert_frame_equal(from_file.frame, fetched.frame)
    np.testing.assert_array_equal(from_file.groups, from_file.frame["customer_id"])
    interval = challenger.bundle.manifest.training
    assert from_file.frame["event_timestamp"].min() >= interval.holdout_start
    assert from_file.frame["event_timestamp"].max() < interval.holdout_end
    assert {name.split(":")[0] for name in from_file.slices} == {"amount", "terminal", "time"}


def test_a_champion_trained_before_the_holdout_is_compared_on_all_of_it(trained: Trained) -> None:
    challenger = trained.registry.latest()
    start = challenger.bundle.manifest.training.holdout_start
    measured = project(trained).measure(challenger, older(challenger, end=start))
    assert measured.pair is not None
    assert measured.pair[0].rows == measured.pair[1].rows == measured.challenger.rows
    assert measured.notes == ()


def test_a_champion_trained_into_the_holdout_is_compared_on_the_days_after(trained: Trained) -> None:
    challenger = trained.registry.latest()
    end = challenger.bundle.manifest.training.holdout_start + timedelta(days=2)
    gate = trained.settings.gate.model_copy(update={"slice_support": 1})
    measured = replace(project(trained), settings=gate).measure(challenger, older(challenger, end=end))
    frame = project(trained).holdout(challenger, challenger).frame
    assert measured.pair is not None
    after = int((frame["event_timestamp"] >= end).sum())
    assert measured.pair[0].rows == measured.pair[1].rows == after
    assert 0 < after < len(frame)
    assert "left out" in measured.notes[0]


def test_a_champion_trained_to_the_holdouts_end_makes_no_fair_comparison(trained: Trained) -> None:
    challenger = trained.registry.latest()
    end = challenger.bundle.manifest.training.holdout_end
    measured = project(trained).measure(challenger, older(challenger, end=end))
    assert measured.pair is None
    assert "the champion was trained on a part of this holdout" in measured.unfair
