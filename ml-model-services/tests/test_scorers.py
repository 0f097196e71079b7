"""The trees that LightGBM's library walks say what XGBoost says, to the edge of every split."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from service_testkit import churn_bundle

from common_service_libs import scorers, xgboost_trees
from common_service_libs.errors import BundleError
from common_service_libs.scorers import ForestScorer, load_scorer
from common_service_libs.xgboost_library import XgboostModel
from common_service_libs.xgboost_trees import forest_of, read_ubj

FEATURES = 6
TOLERANCE = 1e-6  # that of the golden rows; XGBoost adds its leaves in single precision


def trained(trees: int = 80, **parameters: Any) -> xgboost.Booster:
    rng = np.random.default_rng(7)
    matrix = np.round(rng.normal(0, 3, (400, FEATURES)), 1).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.15] = np.nan
    labels = (np.nansum(matrix[:, :2], axis=1) + rng.normal(0, 1, 400) > 1).astype(int)
    settings = {"objective": "binary:logistic", "max_depth": 5, "nthread": 1} | parameters
    return xgboost.train(settings, xgboost.DMatrix(matrix, labels), trees)


def content_of(booster: xgboost.Booster) -> bytes:
    return bytes(booster.save_raw("ubj"))


def splits_of(content: bytes) -> list[tuple[int, float]]:
    """Return (feature, threshold) of every split."""
    return [
        (int(feature), float(threshold))
        for tree in read_ubj(content)["learner"]["gradient_booster"]["model"]["trees"]
        for feature, threshold, left in zip(
            tree["split_indices"], tree["split_conditions"], tree["left_children"], strict=True
        )
        if left != -1
    ]


def rows_at_the_edges(content: bytes, count: int = 600) -> np.ndarray:
    """Return rows of values at, just below and just above the thresholds, nulls and far values among them."""
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 3, (count, FEATURES))
    splits = splits_of(content)
    for row in rows:
        for at in rng.integers(0, len(splits), 4):
            feature, threshold = splits[at]
            single = np.float32(threshold)
            below, above = np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))
            between = (float(below) + float(single)) / 2  # rounds to one of them in single precision
            row[feature] = rng.choice([threshold, below, above, between, threshold + 1e-12])
    rows[np.abs(rows) < np.finfo(np.float32).tiny] = 0.0  # XGBoost takes subnormal numbers for zero
    rows[rng.random(rows.shape) < 0.1] = np.nan
    rows[rng.random(rows.shape) < 0.02] = rng.choice([0.0, -0.0, 1e300, -1e300, np.inf, -np.inf])
    return rows


@pytest.mark.parametrize("tree_method", ["exact", "hist"])
def test_the_forest_scores_as_xgboost_does_at_the_edges_of_its_splits(tree_method: str) -> None:
    content = content_of(trained(tree_method=tree_method))
    fast, slow = load_scorer("xgboost", content, FEATURES), XgboostModel(content, FEATURES)
    assert isinstance(fast, ForestScorer)
    rows = rows_at_the_edges(content)
    with np.errstate(over="ignore"):
        differences = [abs(fast.score(row) - slow.score(row)) for row in rows.tolist()]
    assert max(differences) < TOLERANCE
    assert np.mean(differences) < 1e-7


def test_a_threshold_moved_by_one_step_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows above are at the edges indeed: without the step to the single before, scores differ."""
    content = content_of(trained())
    monkeypatch.setattr("common_service_libs.xgboost_trees.np.nextafter", lambda values, towards: values)
    wrong, right = load_scorer("xgboost", content, FEATURES), XgboostModel(content, FEATURES)
    monkeypatch.undo()
    with np.errstate(over="ignore"):
        rows = rows_at_the_edges(content, 100).tolist()
        assert max(abs(wrong.score(row) - right.score(row)) for row in rows) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "parameters", [{"booster": "dart"}, {"objective": "reg:squarederror"}, {"objective": "binary:logitraw"}]
)
def test_what_the_form_cannot_say_is_left_to_xgboost(parameters: dict[str, Any]) -> None:
    content = content_of(trained(5, **parameters))
    assert forest_of(content, FEATURES) is None
    assert isinstance(load_scorer("xgboost", content, FEATURES), XgboostModel)


def test_categorical_splits_are_left_to_xgboost() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (300, 1)).astype(np.float32)
    data = xgboost.DMatrix(codes, (codes[:, 0] % 2), feature_types=["c"], enable_categorical=True)
    booster = xgboost.train({"objective": "binary:logistic", "max_cat_to_onehot": 1, "nthread": 1}, data, 3)
    assert forest_of(content_of(booster), 1) is None


def test_trees_of_a_single_leaf_are_scored() -> None:
    content = content_of(trained(3, gamma=1e9))
    assert splits_of(content) == []
    fast, slow = load_scorer("xgboost", content, FEATURES), XgboostModel(content, FEATURES)
    assert fast.score([1.0] * FEATURES) == pytest.approx(slow.score([1.0] * FEATURES), abs=1e-7)


def test_contributions_are_those_of_the_libraries_own_packages() -> None:
    booster = trained()
    row = [1.5, math.nan, -0.25, 3.0, 0.0, 1e3]
    data = np.array([row], dtype=np.float32)
    wanted = booster.predict(xgboost.DMatrix(data, nthread=1), pred_contribs=True)[0]
    for scorer in (
        load_scorer("xgboost", content_of(booster), FEATURES),
        XgboostModel(content_of(booster), 6),
    ):
        assert scorer.contributions(row) == [float(part) for part in wanted]
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(300, FEATURES))
    model = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(matrix, matrix[:, 0] > 0),
        9,
    )
    found = load_scorer("lightgbm", model.model_to_string().encode(), FEATURES).contributions(row)
    reread = lightgbm.Booster(model_str=model.model_to_string())
    assert found == reread.predict(np.array([row]), pred_contrib=True)[0].tolist()


def test_a_score_and_its_contributions_load_no_scipy() -> None:
    code = (
        "import sys; from pathlib import Path; from common_service_libs.scorers import load_scorer; "
        "scorer = load_scorer('xgboost', sys.stdin.buffer.read(), 6); "
        "scorer.score([0.0] * 6); scorer.contributions([0.0] * 6); "
        "sys.exit(any(name in sys.modules for name in ('scipy', 'xgboost', 'lightgbm', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", code], input=content_of(trained(3)), check=True)


def test_without_lightgbms_library_xgboost_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "library", lambda: None)
    assert isinstance(load_scorer("xgboost", content_of(trained(3)), FEATURES), XgboostModel)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_model_file_that_ends_early_or_is_altered_is_refused(cut: int) -> None:
    content = content_of(trained(3))
    with pytest.raises(BundleError, match="not an XGBoost model"):
        load_scorer("xgboost", content[:cut], FEATURES)


@pytest.mark.parametrize(
    ("array", "node", "value"),
    [
        ("left_children", 0, 0),  # its own child
        ("right_children", 1, 0),  # back to the root
        ("right_children", 0, 10_000),
        ("left_children", 0, -7),
        ("split_indices", 0, FEATURES),
        ("split_indices", 0, -1),
        ("split_conditions", 0, math.nan),
        ("split_conditions", -1, math.inf),
    ],
)
def test_trees_that_are_none_are_refused_before_a_library_sees_them(
    array: str, node: int, value: float
) -> None:
    learner = read_ubj(content_of(trained(3)))["learner"]
    tree = learner["gradient_booster"]["model"]["trees"][1]
    altered = tree[array].copy()
    altered[node] = value
    tree[array] = altered
    with pytest.raises(ValueError, match=r"no tree|that there is not|no number"):
        xgboost_trees._converted(learner, FEATURES)


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(BundleError, match="takes 6 features, not 7"):
        load_scorer("xgboost", content_of(trained(3)), FEATURES + 1)


def test_one_row_of_a_lightgbm_model_scores_as_the_package_does(tmp_path: Path) -> None:
    churn_bundle(tmp_path / "churn", trees=60)
    content = (tmp_path / "churn" / "model.txt").read_bytes()
    booster = lightgbm.Booster(model_str=content.decode())
    width = booster.num_feature()
    scorer = load_scorer("lightgbm", content, width)
    rows = np.random.default_rng(2).normal(1, 2, (200, width))
    rows[np.random.default_rng(3).random(rows.shape) < 0.2] = math.nan
    expected = booster.predict(rows, num_threads=1)
    assert (
        max(abs(scorer.score(row) - want) for row, want in zip(rows.tolist(), expected, strict=True)) < 1e-12
    )


def test_a_lightgbm_model_of_another_kind_or_width_is_refused(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(100, 3))
    model = lightgbm.train(
        {"objective": "regression", "verbose": -1, "num_threads": 1},
        lightgbm.Dataset(matrix, matrix[:, 0]),
        3,
    )
    with pytest.raises(BundleError, match="objective"):
        load_scorer("lightgbm", model.model_to_string().encode(), 3)
    with pytest.raises(BundleError, match="takes 3 features, not 4"):
        load_scorer("lightgbm", model.model_to_string().encode(), 4)
    with pytest.raises(BundleError, match="not a LightGBM model"):
        load_scorer("lightgbm", b"no model at all", 3)
