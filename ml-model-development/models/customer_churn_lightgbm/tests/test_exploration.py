"""What the notebooks compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import FakeFeatureStore, make_subscribers
from src import exploration
from src.config import ChurnFolds, ChurnHyperparameters, ChurnValues
from src.cross_validation import Subject

from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.preprocessing import Preprocessing


class Tables(FakeFeatureStore):
    def query(self, statement: str, parameters: Any = ()) -> list[dict[str, Any]]:
        frame = self.subscribers.assign(created_timestamp=self.subscribers["event_timestamp"])
        return frame.astype(object).where(frame.notna(), None).to_dict("records")


def test_profiles_come_typed_with_nulls() -> None:
    frame = exploration.labelled_profiles(Tables(make_subscribers(50)))
    assert "created_timestamp" not in frame
    assert frame["subscriber_tenure_months"].dtype == "float64"
    assert frame["subscriber_payment_method"].isna().any()
    assert exploration.feature_columns(frame)[0] == "subscriber_is_senior"
    with pytest.raises(EmptyWindowError, match="no subscriber with a label"):
        exploration.labelled_profiles(Tables(make_subscribers(0)))


def test_the_plain_service_gives_the_preprocessing_of_the_contract() -> None:
    frame = make_subscribers(50)
    plain = Preprocessing.fit(exploration.plain_service(frame), frame)
    assert plain == Preprocessing.fit(FakeFeatureStore(frame).published.service, frame)


def test_churn_by_group_is_counted_by_hand() -> None:
    frame = pd.DataFrame({"churned": [1, 0, 0, 1], "contract": ["a", "a", "a", "b"]})
    table = exploration.churn_by(frame, frame["contract"])
    assert table["rows"].tolist() == [3, 1]
    assert table["churned"].tolist() == [pytest.approx(1 / 3), 1]
    # Wilson 1927, 1 of 3: (0.0615, 0.7923)
    assert table.loc["a", ["low", "high"]].tolist() == pytest.approx([0.0615, 0.7923], abs=1e-4)
    assert table.loc["b", "high"] == 1


def test_the_features_that_carry_the_label_cost_most_when_left_out() -> None:
    frame = make_subscribers(500)
    service = FakeFeatureStore(frame).published.service
    subject = Subject(
        frame, service, "churned", ChurnHyperparameters(n_estimators=20), ChurnValues(), ChurnFolds(folds=2)
    )
    groups = {
        "what counts": ["subscriber_contract", "subscriber_tenure_months"],
        "no": ["subscriber_is_senior"],
    }
    table = exploration.auc_without(subject, groups)
    assert table.index.tolist() == ["what counts", "no"]
    assert table.loc["what counts", "alone"] > 0.65
    assert table.loc["what counts", "costs"] > 0.1
    assert abs(table.loc["no", "costs"]) < 0.05
    assert not np.isnan(table.to_numpy()).any()
