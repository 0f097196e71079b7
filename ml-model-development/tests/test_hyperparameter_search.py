"""The search space as data, repeatable suggestions, pruning and what a search says, without a database."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import SecretStr
from search_worker import Parameters, made_up_problem

from common_ml_utils.errors import SearchError
from common_ml_utils.hyperparameter_search import SearchSettings, Worker, environment_lines, outcome_of
from common_ml_utils.search.reporting import importances, write_search_report
from common_ml_utils.search.space import load_space
from common_ml_utils.search.study import RepeatableSampler, StudyStore, pruner_of
from common_ml_utils.settings import DatabaseAddress

WANTED = SearchSettings(metric="average_precision", trials=12)


def space_file(folder: Path, text: str) -> Path:
    path = folder / "search_space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_dept: {low: 1, high: 5}", r"max_dept is not a parameter of Parameters: .*'depth'"),
        ("depth: {low: 0, high: 5}", r"search_space.yaml: depth: 0: .*greater than 0"),
        ("eta: {low: 0.1, high: 1.5}", r"eta: 1.5: .*less than or equal to 1"),
        ("depth: {low: 1.5, high: 5}", r"depth: 1.5: .*valid integer"),
        ("depth: {low: 1, high: 5, step: 0.5}", r"depth: 1.5: .*valid integer"),
        ("eta: {low: 0.5, high: 0.1}", r"eta: low 0.5 is not below high 0.1"),
        ("eta: {low: 0.1, high: 0.5, step: 0.1, log: true}", r"eta: log needs low > 0 and no step"),
        ("eta: {low: 0.1, high: 0.5, step: 0.0}", r"eta: step 0.0 is not above 0"),
        ("eta: {low: 0.1, hihg: 0.5}", r"eta\.high: Field required"),
        ("eta: {low: small, high: 0.5}", r"eta\.low.*: Input should be a valid integer"),
        ("start: {low: 0.1, high: 1.5}", r"start: 1.5: .*less than 1"),
        ("eta: {choices: []}", r"eta: choices are empty"),
        ("eta: {choices: [0.1, 2.0]}", r"eta: 2.0: .*less than or equal to 1"),
        ("eta: 0.1", r"eta: .*valid dictionary"),
        ("seed: {low: 0, high: 9}", r"seed is not searched: a better value of it would be luck"),
        ("", r"names no parameter"),
        ("eta: {low: 0.1", r"search_space.yaml can't be read"),
    ],
)
def test_a_wrong_search_space_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        load_space(space_file(tmp_path, text), Parameters())


def test_a_missing_search_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="can't be read"):
        load_space(tmp_path / "none.yaml", Parameters())


def test_suggestions_have_the_types_of_the_parameters(tmp_path: Path) -> None:
    text = (
        "depth: {low: 2, high: 8, step: 3}\neta: {choices: [0.1, 0.2]}\nrounds: {low: 5, high: 9, log: true}"
    )
    space = load_space(space_file(tmp_path, text), Parameters())
    study = optuna.create_study(sampler=RepeatableSampler(0))
    for _ in range(20):
        values = space.suggest(study.ask())
        assert values["depth"] in (2, 5, 8)
        assert values["eta"] in (0.1, 0.2)
        assert isinstance(values["rounds"], int)
        assert space.hyperparameters(values) == Parameters(**values)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("depth: {low: 1, high: 5}", True),
        ("depth: {low: 3, high: 5}", False),
        ("depth: {low: 1, high: 5, step: 2}", False),
        ("eta: {choices: [0.1, 0.3]}", True),
        ("eta: {choices: [0.1]}", False),
        ("start: {low: 0.1, high: 0.5}", False),
    ],
)
def test_the_present_settings_are_tried_where_the_space_holds_them(
    tmp_path: Path, text: str, inside: bool
) -> None:
    space = load_space(space_file(tmp_path, text), Parameters())
    assert (space.current() is not None) == inside


def test_another_value_that_is_not_searched_is_another_problem(tmp_path: Path) -> None:
    path = space_file(tmp_path, "depth: {low: 1, high: 5}")
    identities = {load_space(path, Parameters(eta=eta, depth=depth)).identity() for eta, depth in [
        (0.3, 2), (0.3, 3), (0.2, 2)
    ]}  # fmt: skip
    assert len(identities) == 2, "the present value of a searched parameter changes nothing"


class NoStore:
    """Stands for the database where a study is in memory."""

    reaching = staticmethod(nullcontext)

    def fail_dead_trials(self, study: Any) -> None:
        """No worker of a study in memory can die alone."""


def searched(trials: int, seed: int = 0, pruner: str = "median", flipped: int = 0) -> Any:
    study = optuna.create_study(
        direction="maximize", sampler=RepeatableSampler(seed), pruner=pruner_of(pruner, 8)
    )
    wanted = SearchSettings(metric="average_precision", trials=trials)
    Worker(study, NoStore(), made_up_problem(flipped=flipped), wanted).run()
    return study


@pytest.fixture(scope="module")
def study() -> Any:
    return searched(WANTED.trials)


def test_hopeless_trials_end_early(study: Any) -> None:
    steps = {trial.number: len(trial.intermediate_values) for trial in study.trials}
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert pruned
    assert len(pruned) + len(complete) == WANTED.trials
    assert all(steps[trial.number] < 8 for trial in pruned)
    assert all(steps[trial.number] == 8 for trial in complete)


def test_nothing_is_pruned_when_pruning_is_off() -> None:
    assert {trial.state.name for trial in searched(8, pruner="none").trials} == {"COMPLETE"}


def test_a_value_is_the_mean_over_the_folds(study: Any) -> None:
    best = study.best_trial
    assert best.value == pytest.approx(sum(best.user_attrs["folds"]) / 2)
    assert best.intermediate_values[7] == pytest.approx(best.value)


def test_the_same_seed_gives_the_same_suggestions_and_values(study: Any) -> None:
    again = searched(WANTED.trials)
    assert [(t.params, t.value) for t in again.trials] == [(t.params, t.value) for t in study.trials]
    assert [t.params for t in searched(4, seed=1).trials] != [t.params for t in study.trials[:4]]


def test_a_search_that_goes_on_does_not_repeat_its_first_suggestions(study: Any) -> None:
    resumed = optuna.create_study(
        direction="maximize", sampler=RepeatableSampler(0), pruner=pruner_of("median", 8)
    )
    for trials in (5, WANTED.trials):
        resumed.sampler = RepeatableSampler(0)  # what a worker that is started again has
        wanted = SearchSettings(metric="average_precision", trials=trials)
        Worker(resumed, NoStore(), made_up_problem(), wanted).run()
    assert [t.params for t in resumed.trials] == [t.params for t in study.trials]


def test_other_labels_of_the_folds_change_the_values(study: Any) -> None:
    assert [t.value for t in searched(3, flipped=40).trials] != [t.value for t in study.trials[:3]]


def test_no_time_means_no_trial() -> None:
    study = optuna.create_study(direction="maximize")
    wanted = SearchSettings(metric="average_precision", timeout_seconds=1e-9)
    Worker(study, NoStore(), made_up_problem(), wanted).run()
    assert study.trials == []
    with pytest.raises(SearchError, match=r"no trial of study .* is complete"):
        outcome_of(study)


def test_progress_names_the_best_value(capsys: pytest.CaptureFixture[str]) -> None:
    searched(2)
    lines = capsys.readouterr().err.splitlines()
    assert "0 complete, 0 pruned, 0 failed, 2 wanted" in lines[0]
    assert lines[-1].startswith("trial 1: average_precision 0.")
    assert "2/2 done, best 0." in lines[-1]


def test_the_report_holds_the_settings_to_use(study: Any, tmp_path: Path) -> None:
    outcome = outcome_of(study)
    write_search_report(tmp_path, study, made_up_problem(), outcome)
    assert environment_lines({"depth": 3, "eta": 0.25}) == [
        "TRAINING_HYPERPARAMETERS__DEPTH=3",
        "TRAINING_HYPERPARAMETERS__ETA=0.25",
    ]
    page = (tmp_path / "search.html").read_text()
    assert all(line.split("=")[1] in page for line in environment_lines(outcome.best))
    assert page.count("<img") == 5
    assert set(importances(study)) == {"eta", "depth"}


def test_a_database_that_is_down_is_named_without_its_password() -> None:
    address = DatabaseAddress(
        host="127.0.0.1", port=1, name="decisions", user="u", password=SecretStr("s3cret")
    )
    with pytest.raises(
        SearchError, match=r"decisions at 127.0.0.1:1, failed: .*finished trials are kept"
    ) as caught:
        StudyStore(address).check_reachable()
    assert "s3cret" not in str(caught.value)


def test_other_commands_load_neither_optuna_nor_an_engine() -> None:
    code = (
        "import sys, common_ml_utils.hyperparameter_search, common_ml_utils.training_backends;"
        "print(sorted({'optuna', 'ray', 'pyspark', 'lightgbm', 'xgboost'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
