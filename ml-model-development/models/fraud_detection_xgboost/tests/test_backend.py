"""The setting that says where the model is fitted reaches the fit, or refuses it before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import FakeFeatureStore, ListRegistry, make_settings, run_training
from src.config import FraudHyperparameters
from src.train import FraudTrainer

from common_ml_utils.errors import BackendError
from common_ml_utils.training_backends import TrainingBackend


class CountingBackend(TrainingBackend):
    """Fits here and remembers that it was asked and ended."""

    fits = 0
    ended = 0

    def train_xgboost(self, *arguments: object) -> object:
        self.fits += 1
        return super().train_xgboost(*arguments)

    def close(self) -> None:
        self.ended += 1


def test_every_fit_goes_through_the_backend_which_is_ended(
    tmp_path: Path, store: FakeFeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CountingBackend()
    monkeypatch.setattr("src.train.training_backend", lambda name, settings: backend)
    registry = ListRegistry()
    run_training(make_settings(tmp_path), store, registry)
    assert (backend.fits, backend.ended) == (2, 1)
    assert registry.registered[0][1].parameters["training_backend"] == "local"


@pytest.mark.parametrize("name", ["spark", "ray"])
def test_exact_splits_are_refused_before_any_data_is_read(
    tmp_path: Path, store: FakeFeatureStore, name: str
) -> None:
    exact = FraudHyperparameters(tree_method="exact")
    settings = make_settings(tmp_path).model_copy(update={"backend": name, "hyperparameters": exact})
    with pytest.raises(BackendError, match="TREE_METHOD=exact"):
        FraudTrainer(settings, store, None)
