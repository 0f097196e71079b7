"""The setting that says where the model is fitted is refused before any work where it can't be."""

from __future__ import annotations

import pytest
from conftest import AS_OF, FakeFeatureStore
from src.config import ChurnTrainingSettings
from src.train import ChurnTrainer

from common_ml_utils.errors import BackendError


@pytest.mark.parametrize(
    ("name", "message"), [("spark", "can't fit LightGBM"), ("ray", "LIGHTGBM_OPEN_PORTS=true")]
)
def test_what_lightgbm_cannot_do_is_refused_before_any_data_is_read(
    settings: ChurnTrainingSettings, name: str, message: str
) -> None:
    store = FakeFeatureStore.__new__(FakeFeatureStore)  # without data: touching it would fail
    with pytest.raises(BackendError, match=message):
        ChurnTrainer(settings.model_copy(update={"backend": name}), store, AS_OF)
