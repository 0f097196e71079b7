"""A kept training set is used only while it is what its version says."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from common_ml_utils.training_sets import KEPT, TrainingSetStore, data_version


def test_any_changed_value_row_or_column_is_another_version(parcels: pd.DataFrame) -> None:
    version = data_version("set", "contract", parcels)
    assert data_version("set", "contract", parcels.copy()) == version
    changed = parcels.copy()
    changed.loc[5, "parcel_stops"] += 1
    others = [
        data_version("other set", "contract", parcels),
        data_version("set", "other contract", parcels),
        data_version("set", "contract", changed),
        data_version("set", "contract", parcels.iloc[1:]),
        data_version("set", "contract", parcels.rename(columns={"lost": "gone"})),
        data_version("set", "contract", parcels.iloc[::-1]),
    ]
    assert version not in others
    assert len(set(others)) == len(others)


def test_a_training_set_comes_back_as_it_was_kept(parcels: pd.DataFrame, tmp_path: Path) -> None:
    store = TrainingSetStore(tmp_path / "sets")
    version = data_version("set", "contract", parcels)
    assert store.load(version, "set", "contract") is None
    store.save(version, parcels)
    loaded = store.load(version, "set", "contract")
    assert loaded is not None
    pd.testing.assert_frame_equal(loaded, parcels)
    assert store.load(version, "another data set", "contract") is None


def test_a_file_that_changed_is_not_used(parcels: pd.DataFrame, tmp_path: Path) -> None:
    store = TrainingSetStore(tmp_path)
    version = data_version("set", "contract", parcels)
    store.save(version, parcels.assign(parcel_stops=0))
    assert store.load(version, "set", "contract") is None


def test_only_the_newest_are_kept(parcels: pd.DataFrame, tmp_path: Path) -> None:
    store = TrainingSetStore(tmp_path)
    for number in range(KEPT + 2):
        store.save(f"v{number}", parcels)
        os.utime(tmp_path / f"v{number}.parquet", (number, number))
    assert sorted(path.stem for path in tmp_path.glob("*.parquet")) == ["v2", "v3", "v4"]
