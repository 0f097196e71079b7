"""The compiled loops give the libraries' own scores, whatever the row."""

from __future__ import annotations

import json
import threading
from typing import Any

import lightgbm
import numba
import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from common_ml_utils import fast_trees
from common_ml_utils.errors import BundleError
from common_ml_utils.fast_trees import Forest, Trees, forest_of
from common_ml_utils.native_models import LightGBMModel, NativeModel, XGBoostModel

FEATURES = 6
CATEGORICAL = [4, 5]


def made_up(seed: int, rows: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Numbers with nulls and zeros, two columns of category indexes, and labels that depend on all of it."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, FEATURES))
    matrix[:, 0] = rng.exponential(1e5, rows)
    matrix[rng.random(rows) < 0.3, 1] = 0.0
    matrix[:, CATEGORICAL] = rng.integers(0, 40, (rows, 2))
    matrix[rng.random(matrix.shape) < 0.15] = np.nan
    known = np.nan_to_num(matrix)
    risk = known[:, 0] / 1e5 + known[:, 1] * known[:, 2] + np.isnan(matrix[:, 3]) + (known[:, 4] % 3 == 1)
    return matrix, (risk + rng.normal(size=rows) > 1.2).astype(int)


def xgboost_model(seed: int, **parameters: Any) -> XGBoostModel:
    matrix, labels = made_up(seed)
    trees = parameters.pop("trees", 25)
    given = {"objective": "binary:logistic", "nthread": 1, "seed": seed, "eta": 0.3, **parameters}
    return XGBoostModel(xgboost.train(given, xgboost.DMatrix(matrix, labels), trees))


def lightgbm_model(seed: int, **parameters: Any) -> LightGBMModel:
    matrix, labels = made_up(seed)
    trees = parameters.pop("trees", 25)
    given = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": seed, "min_data_in_leaf": 5}
    data = lightgbm.Dataset(matrix, labels, categorical_feature=CATEGORICAL)
    return LightGBMModel(lightgbm.train({**given, "learning_rate": 0.2, **parameters}, data, trees))


MODELS: dict[str, NativeModel] = {
    "xgboost": xgboost_model(0),
    "xgboost deep": xgboost_model(1, max_depth=12, min_child_weight=0, trees=8),
    "xgboost pruned": xgboost_model(2, gamma=3.0),
    "xgboost by loss": xgboost_model(3, grow_policy="lossguide", max_leaves=20, max_depth=0),
    "xgboost exact": xgboost_model(4, tree_method="exact", max_depth=4),
    "xgboost stumps": xgboost_model(5, max_depth=1, base_score=0.02),
    "xgboost without splits": xgboost_model(6, gamma=1e9, trees=3),
    "lightgbm": lightgbm_model(0),
    "lightgbm leaf-wise": lightgbm_model(1, num_leaves=120, min_data_in_leaf=1, trees=8),
    "lightgbm zero is missing": lightgbm_model(2, zero_as_missing=True),
    "lightgbm without missing": lightgbm_model(3, use_missing=False),
    "lightgbm one-hot categories": lightgbm_model(4, max_cat_to_onehot=64, num_leaves=4),
    "lightgbm without splits": lightgbm_model(5, min_data_in_leaf=600, trees=3),
    "lightgbm dart": lightgbm_model(6, boosting="dart", trees=12),
}
FORESTS = {name: forest_of(model) for name, model in MODELS.items()}
ODD = [np.nan, 0.0, -0.0, 1e-36, -1e-36, 1e-30, 1e300, -1e300, np.inf, -np.inf, 0.5, -0.5, -1.0, 7.9, 1e10]


def require_equal(name: str, matrix: np.ndarray) -> None:
    expected = MODELS[name].scores(matrix)
    tolerance = 2e-7 if name.startswith("xgboost") else 1e-15  # XGBoost's last step is in float32
    np.testing.assert_allclose(FORESTS[name].scores(matrix), expected, rtol=0, atol=tolerance)
    matrix = matrix[:: max(1, len(matrix) // 150)]
    expected = MODELS[name].scores(matrix)
    rows = [FORESTS[name].score(row) for row in matrix]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_librarys_on_odd_rows(name: str) -> None:
    """Seen rows, rows on the very thresholds, and every odd value in every place; 64 is the block's size."""
    rng = np.random.default_rng(9)
    seen, _ = made_up(10, 700)
    odd = rng.choice(ODD, size=(400, FEATURES))
    mixed = np.where(rng.random(seen.shape) < 0.3, rng.choice(ODD, size=seen.shape), seen)
    cuts = _thresholds(MODELS[name])
    on_cuts = rng.choice(cuts, size=(300, FEATURES)) if len(cuts) else odd
    single = np.clip(on_cuts, -1e38, 1e38).astype(np.float32)
    nearby = np.nextafter(single, np.float32(np.inf)).astype(np.float64)
    for matrix in (seen[:63], seen[:64], seen[:65], odd, mixed, on_cuts, np.nextafter(on_cuts, 9e9), nearby):
        require_equal(name, matrix)


def _thresholds(model: NativeModel) -> np.ndarray:
    if isinstance(model, XGBoostModel):
        trees = json.loads(bytes(model.booster.save_raw("json")))["learner"]["gradient_booster"]["model"][
            "trees"
        ]
        return np.concatenate([np.float32(tree["split_conditions"]) for tree in trees]).astype(np.float64)
    lines = model.to_bytes().decode().splitlines()
    cuts = [line.removeprefix("threshold=") for line in lines if line.startswith("threshold=")]
    return np.array(" ".join(cuts).split(), np.float64)


VALUES = st.one_of(
    st.sampled_from(ODD), st.floats(width=64), st.integers(-3, 60).map(float), st.floats(0, 1e6)
)


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(VALUES, min_size=FEATURES, max_size=FEATURES),
    name=st.sampled_from(["xgboost", "xgboost pruned", "lightgbm", "lightgbm zero is missing"]),
)
def test_any_row_scores_as_in_the_library(row: list[float], name: str) -> None:
    require_equal(name, np.array([row]))


def test_threads_do_not_disturb_each_other() -> None:
    matrix, _ = made_up(11, 200)
    forest = FORESTS["lightgbm"]
    expected = forest.scores(matrix)
    wrong: list[int] = []

    def work(offset: int) -> None:
        for i in range(3000):
            position = (i * 7 + offset) % len(matrix)
            if forest.score(matrix[position]) != expected[position]:
                wrong.append(position)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_where_no_cache_can_be_written_the_loops_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler, asked = numba.njit, []

    def read_only(**options: Any) -> Any:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(**options)

    monkeypatch.setattr(numba, "njit", read_only)
    doubled = fast_trees._compiled(lambda value: 2 * value)
    assert doubled(21) == 42
    assert asked == [{"cache": True, "nogil": True}, {"nogil": True}]


@pytest.mark.parametrize("shape", [(FEATURES - 1,), (FEATURES + 1,), (1, FEATURES)])
def test_a_row_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="takes 6 features"):
        FORESTS["xgboost"].score(np.zeros(shape))
    with pytest.raises(BundleError, match="takes 6 features"):
        FORESTS["xgboost"].scores(np.zeros((2, *shape)))


def test_models_these_loops_do_not_know_are_refused() -> None:
    matrix, labels = made_up(0)
    unknown: list[tuple[NativeModel, str]] = [
        (xgboost_model(0, booster="dart", rate_drop=0.5), "not dart"),
        (xgboost_model(0, objective="reg:squarederror"), "not gbtree with reg:squarederror"),
        (lightgbm_model(0, objective="regression"), "'regression'"),
        (lightgbm_model(0, sigmoid=0.5), "sigmoid:0.5"),
        (lightgbm_model(0, boosting="rf", bagging_fraction=0.5, bagging_freq=1), "binary sigmoid:1"),
    ]
    numeric = lightgbm.Dataset(np.nan_to_num(matrix), labels)
    linear = {"objective": "binary", "linear_tree": True, "verbosity": -1, "num_threads": 1}
    unknown.append((LightGBMModel(lightgbm.train(linear, numeric, 5)), "constant leaves"))
    kinds = ["q"] * 4 + ["c"] * 2
    categories = xgboost.DMatrix(matrix, labels, feature_types=kinds, enable_categorical=True)
    parameters = {"objective": "binary:logistic", "nthread": 1, "max_cat_to_onehot": 1}
    unknown.append((XGBoostModel(xgboost.train(parameters, categories, 10)), "numeric splits"))
    for model, message in unknown:
        with pytest.raises(BundleError, match=message):
            forest_of(model)


@pytest.mark.parametrize(
    ("left", "right", "feature", "message"),
    [
        ([1, -1, -1], [5, -1, -1], 0, "leads out of it"),
        ([1, -1, -1], [1, -1, -1], 0, "two branches"),
        ([0, -1, -1], [1, -1, -1], 0, "two branches"),
        ([1, -1, -1], [2, -1, -1], 9, "beyond the 3"),
    ],
)
def test_trees_that_would_read_foreign_memory_are_refused(
    left: list[int], right: list[int], feature: int, message: str
) -> None:
    trees = Trees(
        values=np.zeros(3, np.float32),
        features=np.array([feature, -1, -1]),
        rules=np.zeros(3, int),
        sets=[None] * 3,
        left=np.array(left),
        right=np.array(right),
        sizes=np.array([3]),
    )
    with pytest.raises(BundleError, match=message):
        Forest(trees, features=3, margin=0.0)
