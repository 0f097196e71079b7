"""Both feature definitions against a walk over the rows, and what may never change a feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import FEATURES
from src.windows import (
    DAY,
    DELAY_DAYS,
    PLATFORM_FEATURES,
    PUBLISHED_FEATURES,
    WINDOW_DAYS,
    platform_features,
    published_features,
)

FIRST = 17_622 * DAY  # 2018-04-01
DAYS = 60
ROWS = 3_000


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    """Few entities, so that histories are long; a third of the rows share their second with another one."""
    rng = np.random.default_rng(5)
    seconds = np.sort(rng.integers(0, DAYS * 86_400, ROWS))
    seconds[::3] = seconds[1::3]
    return pd.DataFrame(
        {
            "time": FIRST + np.sort(seconds) * 1_000_000,
            "customer_id": rng.integers(100, 112, ROWS),
            "terminal_id": rng.integers(0, 9, ROWS) * 1_000,
            "tx_amount": np.round(rng.gamma(2, 30, ROWS), 2),
            "is_fraud": (rng.random(ROWS) < 0.2).astype(int),
        }
    )


def published_oracle(raw: pd.DataFrame, at: int) -> dict[str, float]:
    """The row's windows by comparing every time with its bounds; of the same moment, only earlier rows."""
    row, earlier = raw.iloc[at], raw.iloc[: at + 1]
    customer = earlier[earlier["customer_id"] == row["customer_id"]]
    terminal = raw[raw["terminal_id"] == row["terminal_id"]]
    values = of_the_row(row)
    known = terminal[terminal["time"] <= row["time"] - DELAY_DAYS * DAY]
    for days in WINDOW_DAYS:
        mine = customer[customer["time"] > row["time"] - days * DAY]
        theirs = known[known["time"] > row["time"] - (DELAY_DAYS + days) * DAY]
        values[f"customer_tx_count_{days}d"] = len(mine)
        values[f"customer_tx_amount_mean_{days}d"] = mine["tx_amount"].mean()
        values[f"terminal_tx_count_{days}d"] = len(theirs)
        values[f"terminal_fraud_risk_{days}d"] = theirs["is_fraud"].mean() if len(theirs) else 0.0
    return values


def platform_oracle(raw: pd.DataFrame, at: int) -> dict[str, float]:
    """Full days before midnight and today strictly before the row, and the row itself."""
    row = raw.iloc[at]
    day = row["time"] // DAY
    before = raw[raw["time"] < row["time"]]
    age = day - before["time"] // DAY  # 0 is today
    customer, terminal = (before[f"{name}_id"] == row[f"{name}_id"] for name in ("customer", "terminal"))
    values = of_the_row(row)
    for days in WINDOW_DAYS:
        mine = before[customer & (age <= days)]
        labelled = before[terminal & (age > DELAY_DAYS) & (age <= DELAY_DAYS + days)]
        values[f"customer_tx_count_{days}d"] = len(mine) + 1
        values[f"customer_tx_amount_mean_{days}d"] = (mine["tx_amount"].sum() + row["tx_amount"]) / (
            len(mine) + 1
        )
        values[f"terminal_tx_count_{days}d"] = (terminal & (age <= days)).sum() + 1
        values[f"terminal_labelled_tx_count_{days}d"] = len(labelled)
        values[f"terminal_fraud_risk_{days}d"] = labelled["is_fraud"].mean() if len(labelled) else 0.0
    return values


def of_the_row(row: pd.Series) -> dict[str, float]:
    moment = pd.Timestamp(int(row["time"]), unit="us")
    return {
        "tx_amount": row["tx_amount"],
        "tx_is_weekend": float(moment.weekday() >= 5),
        "tx_is_night": float(moment.hour <= 6),
    }


Definition = Callable[[pd.DataFrame], pd.DataFrame]
Oracle = Callable[[pd.DataFrame, int], dict[str, float]]


@pytest.mark.parametrize(
    ("definition", "oracle"), [(published_features, published_oracle), (platform_features, platform_oracle)]
)
def test_features_equal_a_walk_over_the_rows(
    raw: pd.DataFrame, definition: Definition, oracle: Oracle
) -> None:
    features = definition(raw)
    for at in np.random.default_rng(1).choice(ROWS, 120, replace=False):
        expected = oracle(raw, int(at))
        assert set(expected) == set(features)
        for name, value in expected.items():
            assert features[name].iloc[at] == pytest.approx(value, abs=1e-9), (at, name)


@pytest.mark.parametrize("definition", [published_features, platform_features])
def test_later_transactions_and_young_labels_never_change_a_feature(
    raw: pd.DataFrame, definition: Definition
) -> None:
    features = definition(raw)
    for at in (900, 1_600, 2_500):
        now = raw["time"].iloc[at]
        past = raw.iloc[: at + 1].copy()
        pd.testing.assert_frame_equal(definition(past).iloc[[at]], features.iloc[[at]])
        young = past["time"] > now - DELAY_DAYS * DAY
        past.loc[young, "is_fraud"] = 1 - past.loc[young, "is_fraud"]
        assert young.sum() > 100
        pd.testing.assert_frame_equal(definition(past).iloc[[at]], features.iloc[[at]])


@pytest.mark.parametrize("definition", [published_features, platform_features])
def test_a_label_older_than_the_delay_does_change_the_risk(raw: pd.DataFrame, definition: Definition) -> None:
    at = 2_500
    old = (raw["time"] <= raw["time"].iloc[at] - (DELAY_DAYS + 1) * DAY) & (
        raw["terminal_id"] == raw["terminal_id"].iloc[at]
    )
    changed = raw.assign(is_fraud=np.where(old, 1, raw["is_fraud"]))
    assert definition(raw)["terminal_fraud_risk_30d"].iloc[at] < 1
    assert (
        definition(changed)["terminal_fraud_risk_7d"].iloc[at]
        > definition(raw)["terminal_fraud_risk_7d"].iloc[at]
    )


def test_the_features_are_the_published_ones_and_the_feature_services() -> None:
    assert len(PUBLISHED_FEATURES) == 15
    assert list(PLATFORM_FEATURES) == FEATURES


def test_unsorted_transactions_are_refused(raw: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="sorted by time"):
        published_features(raw.iloc[::-1])
