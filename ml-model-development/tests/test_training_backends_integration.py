"""The same fit on real local Spark and Ray: as good as here within stated tolerances, nothing left behind.

With as many histogram bins as a feature has values the workers' merged sketch is exact. With fewer bins the
cuts lie elsewhere, and with `subsample` each worker draws rows of its own: other trees, the same quality.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from common_ml_utils.errors import BackendError
from common_ml_utils.native_models import LightGBMModel, XGBoostModel
from common_ml_utils.preprocessing import PreprocessedFeature, Preprocessing
from common_ml_utils.training_backends import (
    BackendName,
    DistributionSettings,
    TrainingBackend,
    training_backend,
)

pytestmark = pytest.mark.integration

ROWS = 8000
ROUNDS = 60
SCORES_WITHIN = 1e-3
AP_WITHIN = 0.005
AP_OF_OTHER_ROWS_WITHIN = 0.015
AUC_WITHIN = 0.005
PARAMETERS = {
    "objective": "binary:logistic",
    "eta": 0.1,
    "max_depth": 4,
    "min_child_weight": 5,
    "colsample_bytree": 0.6,
    "subsample": 1.0,
    "tree_method": "hist",
    "max_bin": 4096,
    "seed": 0,
    "nthread": 1,
}
LIGHTGBM_PARAMETERS = {
    "objective": "binary",
    "learning_rate": 0.1,
    "num_leaves": 6,
    "seed": 0,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


def make_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a skewed amount, a category, normal features, 2 % missing values, and rare positives."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(ROWS, 8))
    matrix[:, 0] = np.round(np.exp(matrix[:, 0] * 1.5 + 2), 2)
    matrix[:, 1] = rng.integers(0, 4, ROWS)
    odds = -3.5 + 1.2 * matrix[:, 2] + matrix[:, 3] * matrix[:, 4] + (matrix[:, 0] > 30) + (matrix[:, 1] == 2)
    labels = (rng.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(int)
    matrix[rng.random(matrix.shape) < 0.02] = np.nan
    return matrix, labels


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    return make_rows(0)


@pytest.fixture(scope="module")
def unseen() -> tuple[np.ndarray, np.ndarray]:
    return make_rows(1)


def descendants() -> set[tuple[int, str]]:
    """Return this process's children, grandchildren and so on, and whatever Ray or Spark they left."""
    return {(p.pid, p.name()) for p in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module", params=["spark", "ray"])
def backend(request: pytest.FixtureRequest) -> Iterator[TrainingBackend]:
    """One engine for all tests of a backend; afterwards no process of it is left."""
    name: BackendName = request.param
    before, began = descendants(), set()
    with training_backend(name, DistributionSettings(lightgbm_open_ports=True)) as started:
        close = started.close

        def watched_close() -> None:
            began.update(descendants() - before)
            close()

        started.close = watched_close  # type: ignore[method-assign]
        yield started
    deadline = time.monotonic() + 20
    while left := [pid for pid, _ in began if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.2)


def test_the_distributed_fit_equals_the_local_one(
    backend: TrainingBackend, rows: tuple[np.ndarray, np.ndarray], unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    here = XGBoostModel(TrainingBackend().train_xgboost(PARAMETERS, *rows, ROUNDS)).scores(unseen[0])
    there = XGBoostModel(backend.train_xgboost(PARAMETERS, *rows, ROUNDS))
    read = XGBoostModel.from_bytes(there.to_bytes())
    scores = read.scores(unseen[0])
    assert read.booster.feature_names is None
    assert read.contributions(unseen[0][:5]).shape == (5, 8)
    assert np.abs(scores - here).max() <= SCORES_WITHIN
    assert average_precision_score(unseen[1], scores) == pytest.approx(
        average_precision_score(unseen[1], here), abs=AP_WITHIN
    )
    other = TrainingBackend().train_xgboost({**PARAMETERS, "max_depth": 3}, *rows, ROUNDS)
    assert np.abs(XGBoostModel(other).scores(unseen[0]) - here).max() > 10 * SCORES_WITHIN, (
        "no tolerance hides this"
    )


@pytest.mark.parametrize(
    ("changed", "within"), [({"max_bin": 64}, AP_WITHIN), ({"subsample": 0.8}, AP_OF_OTHER_ROWS_WITHIN)]
)
def test_other_cuts_and_other_drawn_rows_cost_no_quality(
    backend: TrainingBackend,
    rows: tuple[np.ndarray, np.ndarray],
    unseen: tuple[np.ndarray, np.ndarray],
    changed: dict[str, float],
    within: float,
) -> None:
    settings = {**PARAMETERS, **changed}
    here, there = (
        average_precision_score(
            unseen[1], XGBoostModel(b.train_xgboost(settings, *rows, ROUNDS)).scores(unseen[0])
        )
        for b in (TrainingBackend(), backend)
    )
    print(f"{backend.name} {changed}: average precision {there:.4f}, here {here:.4f}")
    assert there == pytest.approx(here, abs=within)
    assert there > 2 * unseen[1].mean()


def test_the_same_fit_gives_the_same_bytes(
    backend: TrainingBackend, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    settings = {**PARAMETERS, "subsample": 0.8, "max_bin": 64}
    first, second = (XGBoostModel(backend.train_xgboost(settings, *rows, 3)).to_bytes() for _ in range(2))
    assert first == second


def test_lightgbm_is_as_good_on_ray_and_refused_on_spark(
    backend: TrainingBackend, rows: tuple[np.ndarray, np.ndarray], unseen: tuple[np.ndarray, np.ndarray]
) -> None:
    kinds = {1: ("a", "b", "c", "d")}
    preprocessing = Preprocessing(
        features=tuple(
            PreprocessedFeature(
                name=f"f{i}", kind="categorical" if i in kinds else "numeric", categories=kinds.get(i)
            )
            for i in range(8)
        )
    )
    if backend.name == "spark":
        with pytest.raises(BackendError, match="can't fit LightGBM"):
            backend.train_lightgbm(LIGHTGBM_PARAMETERS, preprocessing, *rows, ROUNDS)
        return
    here, there, again = (
        LightGBMModel(b.train_lightgbm(LIGHTGBM_PARAMETERS, preprocessing, *rows, ROUNDS))
        for b in (TrainingBackend(), backend, backend)
    )
    assert there.to_bytes() == again.to_bytes()
    assert "127.0.0.1" not in there.to_bytes().decode()
    scores = LightGBMModel.from_bytes(there.to_bytes()).scores(unseen[0])
    assert roc_auc_score(unseen[1], scores) == pytest.approx(
        roc_auc_score(unseen[1], here.scores(unseen[0])), abs=AUC_WITHIN
    )


def test_nothing_listens_beyond_the_loopback(
    backend: TrainingBackend, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    backend.train_xgboost(PARAMETERS, *rows, 3)
    open_to_all = [
        connection.laddr
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"
    ]
    assert open_to_all == []


def test_parameters_that_xgboost_refuses_are_named(
    backend: TrainingBackend, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(BackendError, match=r"did not fit the model: .*value 7 for Parameter subsample"):
        backend.train_xgboost({**PARAMETERS, "subsample": 7.0}, *rows, 3)
