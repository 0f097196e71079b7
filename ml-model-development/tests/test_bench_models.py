"""The benchmark judges what it measured, and its models reach every path that it times."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from benchmarks import bench_models
from benchmarks.bench_models import (
    DISTINCT_ROWS,
    ROUNDS,
    TARGETS,
    batch,
    judged,
    one_row,
    result,
    rows_a_second,
    time_calls,
)
from benchmarks.cases import Spec, build, specifications


def test_a_ratio_says_how_many_times_better_than_the_peer() -> None:
    assert result("a", 5.0, "us", "peer", 50.0)["ratio"] == 10
    assert result("a", 300.0, "rows/s", "peer", 100.0)["ratio"] == 3
    assert result("a", 300.0, "rows/s")["ratio"] is None


def test_a_missed_target_shows_and_a_target_without_figure_is_an_error() -> None:
    lines = judged(
        [result("a", 5.0, "us"), result("b", 5.0, "us"), result("c", 1.0, "us")], {"a": "<= 4", "b": ">= 4"}
    )
    assert [line["met"] for line in lines] == [False, True, None]
    with pytest.raises(KeyError, match="speed"):
        judged([result("a", 5.0, "us")], {"speed": "<= 1"})


def test_every_target_names_a_figure_of_a_measured_model() -> None:
    names = {spec.name for spec in specifications()}
    targets = yaml.safe_load(TARGETS.read_text())
    assert {name.partition(":")[0] for name in targets} == names
    assert all(spec.parameters["n_estimators"] > 0 for spec in specifications())


def test_calls_are_timed_one_by_one_and_rates_by_processor_time() -> None:
    taken = time_calls({"sleep": (lambda row: time.sleep(0.001), 3), "none": (lambda row: None, 7)})
    assert (len(taken["sleep"]), len(taken["none"])) == (3 * ROUNDS, 7 * ROUNDS)
    assert taken["sleep"].min() >= 1000 > taken["none"].min()

    def mostly_waits() -> None:
        time.sleep(0.05)
        sum(range(10_000))

    assert rows_a_second(mostly_waits, 1000) > 50_000


def test_a_measured_bundle_answers_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("ROUNDS", "BATCHES"):
        monkeypatch.setattr(bench_models, constant, 1)
    monkeypatch.setattr(bench_models, "CALLS", 50)
    monkeypatch.setattr(bench_models, "SLOW_CALLS", 2)
    spec = Spec("tiny", "lightgbm", 3, 2, {"n_estimators": 5, "num_leaves": 4})
    case = build(spec, DISTINCT_ROWS, tmp_path)
    lines = one_row(case) + batch(case)
    by_name = {line["name"]: line["value"] for line in lines}
    assert by_name["tiny: difference to the native booster"] <= 1e-12
    wanted = [
        name.partition(": ")[2] for name in yaml.safe_load(TARGETS.read_text()) if name.startswith("fraud")
    ]
    assert {f"tiny: {name}" for name in wanted} <= set(by_name)
    assert all(line["value"] > 0 for line in lines if line["unit"] != "probability")
