"""Clean retrainings pass the whole gate; a training that was tampered with does not, whatever its metric."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_training import FEATURES, Problem, contract_of, day, payments, subscribers

from common_ml_utils.errors import BundleError, DataError, EmptyWindowError, OneClassLabelsError
from common_ml_utils.mlflow_utils import CHAMPION, STAGING, RegisteredBundle
from common_ml_utils.promotion import classifier_gate
from common_ml_utils.release_bundle import ReleaseBundle

PROBLEMS = {"fraud-like": payments, "churn-like": subscribers}
MakeProblem = Callable[[Path], Problem]


@pytest.fixture(autouse=True)
def _few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_gate, "ROUNDS", 1)
    monkeypatch.setattr(classifier_gate, "CALLS_A_ROUND", 5)


BOTH = pytest.mark.parametrize("problem", list(PROBLEMS), indirect=True)


@pytest.fixture
def problem(request: pytest.FixtureRequest, tmp_path: Path) -> Problem:
    """A champion as of day 28, and the clock at day 30."""
    problem = PROBLEMS[getattr(request, "param", "churn-like")](tmp_path)
    problem.store.now = day(28)
    problem.train(day(28))
    assert problem.judge(resamples=100).decision == "promote"
    problem.store.now = day(30)
    return problem


@pytest.mark.parametrize("kind", list(PROBLEMS))
def test_of_thirty_clean_retrainings_at_most_one_is_not_promoted(kind: str, tmp_path: Path) -> None:
    problem = PROBLEMS[kind](tmp_path)
    decisions: Counter[str] = Counter()
    for number in range(31):
        problem.store.now = day(28 + number)
        problem.train(day(28 + number), seed=number)
        decisions[problem.judge(resamples=100).decision] += 1
    assert decisions["refuse"] <= 1, decisions
    assert decisions["promote"] >= 27, decisions
    assert problem.ledger.rows()[-1]["seq"] == 31


def flip(share: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def flipped(rows: pd.DataFrame) -> pd.DataFrame:
        chosen = np.random.default_rng(5).random(len(rows)) < share
        return rows.assign(label=(rows["label"] ^ chosen).astype("int8"))

    return flipped


def scale(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(size=rows["size"] * 10)


def leak(rows: pd.DataFrame) -> pd.DataFrame:
    noise = np.random.default_rng(6).normal(0, 0.2, len(rows))
    return rows.assign(risk=rows["label"] + noise)


def refused(problem: Problem, guard: str) -> str:
    """Judge, and return why the guard refuses; champion and aliases stay."""
    before = dict(problem.registry.aliases)
    assert problem.judge(resamples=100).decision == "refuse"
    assert problem.registry.aliases == before
    report = json.loads((problem.folder / "reports" / "gate.json").read_text())
    reasons = {f["guard"]: f["message"] for f in report["findings"] if f["outcome"] == "refuse"}
    assert guard in reasons, reasons
    return str(reasons[guard])


@BOTH
def test_one_percent_of_flipped_labels_is_refused(problem: Problem) -> None:
    problem.train(day(30), loaded=flip(0.01))
    assert "are not those of the label store" in refused(problem, "labels")


def test_labels_flipped_only_for_the_fit_are_refused(problem: Problem) -> None:
    problem.train(day(30), fitted=flip(0.01))
    assert "the training set has" in refused(problem, "training set")


@BOTH
@pytest.mark.parametrize("where", ["loaded", "fitted", "tables"])
def test_a_feature_scaled_by_ten_is_refused(problem: Problem, where: str) -> None:
    if where == "tables":
        problem.store.truth = scale(problem.store.truth)
        problem.train(day(30))
    else:
        problem.train(day(30), **{where: scale})  # type: ignore[arg-type]
    guard = {"loaded": "training values", "fitted": "training set", "tables": "shift"}[where]
    assert "size" in refused(problem, guard)


@BOTH
@pytest.mark.parametrize("where", ["loaded", "tables"])
def test_a_leaked_column_is_refused(problem: Problem, where: str) -> None:
    if where == "tables":
        problem.store.truth = leak(problem.store.truth)
        problem.train(day(30))
    else:
        problem.train(day(30), loaded=leak)
        assert "risk" in refused(problem, "training values")
    assert "risk alone ranks the labels" in refused(problem, "leak")


def test_a_column_the_feature_service_does_not_give_is_refused(problem: Problem) -> None:
    extra = {"name": "copy_of_label", "source": "profile", "type": "float64"}
    served = problem.store.published
    problem.store.published = contract_of([*FEATURES, extra])
    truth = problem.store.truth
    problem.store.truth = truth.assign(copy_of_label=truth["label"].astype(float))
    problem.train(day(30))
    problem.store.published = served
    assert "copy_of_label" in refused(problem, "signature")


@pytest.mark.parametrize("kind", list(PROBLEMS))
def test_a_stale_training_window_is_refused_with_its_days(kind: str, tmp_path: Path) -> None:
    problem = PROBLEMS[kind](tmp_path)
    problem.train(day(25))
    problem.store.now = day(58)
    assert "33.0 days further" in refused(problem, "staleness")
    assert CHAMPION not in problem.registry.aliases


def test_a_training_set_that_is_gone_is_read_again(problem: Problem) -> None:
    problem.train(day(30), seed=1)
    for kept in (problem.folder / "training_sets").iterdir():
        kept.unlink()
    assert problem.judge(resamples=100).decision == "promote"


def test_a_kept_training_set_that_was_altered_afterwards_is_not_believed(problem: Problem) -> None:
    challenger = problem.train(day(30), seed=1, loaded=flip(0.01))
    path = problem.folder / "training_sets" / f"{challenger.bundle.manifest.data_version}.parquet"
    problem.labelled(challenger.bundle.manifest.training).to_parquet(path, index=False)
    assert "the training set has" in refused(problem, "training set")


@pytest.mark.parametrize(
    ("broken", "error"),
    [("empty", EmptyWindowError), ("one class", OneClassLabelsError)],
)
def test_a_holdout_that_can_not_be_measured_moves_nothing(
    problem: Problem, broken: str, error: type[Exception]
) -> None:
    problem.train(day(30), seed=1)
    before = dict(problem.registry.aliases)
    split = problem.split

    def bad(rows: pd.DataFrame, of: object) -> tuple[pd.DataFrame, pd.DataFrame]:
        training, holdout = split(rows, of)  # type: ignore[arg-type]
        return training, holdout.iloc[:0] if broken == "empty" else holdout.assign(label=0)

    problem.split = bad
    with pytest.raises(error, match="holdout"):
        problem.judge(resamples=100)
    assert problem.registry.aliases == before
    assert len(problem.ledger.rows()) == 1


def break_file(folder: Path, how: str) -> None:
    path = folder / "preprocessing.json"
    if how == "half-uploaded":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("alias", [STAGING, CHAMPION])
@pytest.mark.parametrize("how", ["half-uploaded", "altered"])
def test_a_broken_bundle_is_an_error_that_moves_nothing(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, alias: str, how: str
) -> None:
    problem.train(day(30), seed=1)
    before = dict(problem.registry.aliases)
    break_file(problem.folder / f"bundle-{before[alias] - 1}", how)

    def download(model_name: str, wanted: str) -> RegisteredBundle[ReleaseBundle]:
        version = problem.registry.aliases[wanted]
        folder = problem.folder / f"bundle-{version - 1}"
        return RegisteredBundle(model_name, version, ReleaseBundle.load(folder))

    monkeypatch.setattr(problem.registry, "load", download)
    with pytest.raises(BundleError, match=r"preprocessing\.json"):
        problem.judge(resamples=100)
    assert problem.registry.aliases == before
    assert len(problem.ledger.rows()) == 1


def report_parity(problem: Problem, content: str) -> None:
    path = problem.folder / "reports" / "feature_parity" / "simulated_v1.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)


def test_skew_of_served_features_is_refused(problem: Problem) -> None:
    problem.train(day(30), seed=1)
    measured = {"date": "2024-02-01", "vectors": 9, "mismatches": 4, "not_recomputed": 0}
    report_parity(problem, json.dumps({**measured, "by_feature": {"size": 4}}))
    assert "4 served values of simulated_v1 differ" in refused(problem, "parity")


def test_a_parity_report_that_can_not_be_read_is_an_error(problem: Problem) -> None:
    problem.train(day(30), seed=1)
    report_parity(problem, '{"mismatches": 0')
    with pytest.raises(DataError, match=r"simulated_v1\.json can't be read"):
        problem.judge(resamples=100)
    assert problem.registry.aliases[CHAMPION] == 1


def test_the_champion_itself_is_refused_and_nothing_is_measured(problem: Problem) -> None:
    problem.registry.aliases[STAGING] = problem.registry.aliases[CHAMPION]
    assert "the challenger is the champion, byte for byte" in refused(problem, "same bundle")


def test_a_slow_model_is_refused(problem: Problem) -> None:
    problem.train(day(30), seed=1)
    problem.gate = problem.gate.model_copy(update={"latency_limit_us": 0.001})
    assert "at most 0 are allowed" in refused(problem, "latency")
