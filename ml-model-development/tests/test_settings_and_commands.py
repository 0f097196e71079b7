"""The documented environment names, and how a command fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from common_ml_utils.command_line import run_command
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.settings import GateSettings, PlatformSettings

ENVIRONMENT = {
    "FEATURE_STORE_DB_HOST": "db",
    "FEATURE_STORE_DB_PORT": "5432",
    "FEATURE_STORE_DB_NAME": "feature_store",
    "FEATURE_STORE_DB_USER": "reader",
    "FEATURE_STORE_DB_PASSWORD": "secret-one",
    "DECISIONS_DB_HOST": "db",
    "DECISIONS_DB_PORT": "5432",
    "DECISIONS_DB_NAME": "decisions",
    "DECISIONS_DB_USER": "writer",
    "DECISIONS_DB_PASSWORD": "secret-two",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "DATA_DIR": "/data",
    "REPORTS_DIR": "/reports",
}


class Hyperparameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    n_estimators: int = 100


class Settings(PlatformSettings):
    hyperparameters: Hyperparameters = Hyperparameters()
    gate: GateSettings = GateSettings(metric="auc_roc", floor=0.8)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRAINING_MLFLOW_TRACKING_URI", raising=False)
    return monkeypatch


def test_the_stacks_variables_are_read(environment: pytest.MonkeyPatch) -> None:
    settings = Settings()
    assert settings.mlflow_tracking_uri == "http://mlflow:5000"
    assert settings.feature_store_db.connection_arguments()["password"] == "secret-one"
    assert settings.decisions_db.name == "decisions"
    assert settings.reports_dir == Path("/reports")


def test_documented_training_names_win(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TRAINING_MLFLOW_TRACKING_URI", "http://other:5000")
    environment.setenv("TRAINING_HYPERPARAMETERS__N_ESTIMATORS", "7")
    environment.setenv("N_ESTIMATORS", "9")
    settings = Settings()
    assert settings.mlflow_tracking_uri == "http://other:5000"
    assert settings.hyperparameters.n_estimators == 7


def test_one_nested_variable_changes_one_value_of_its_group(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TRAINING_GATE__FLOOR", "0.4")
    gate = Settings().gate
    assert (gate.metric, gate.floor, gate.confidence) == ("auc_roc", 0.4, 0.9)


def test_passwords_are_never_shown(environment: pytest.MonkeyPatch) -> None:
    settings = Settings()
    shown = f"{settings!r} {settings.decisions_db!r}"
    assert "secret" not in shown.replace("SecretStr", "")


def test_a_missing_or_unknown_setting_is_named_on_one_line_each(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("DATA_DIR")
    environment.setenv("TRAINING_HYPERPARAMETERS__DEPTH", "3")
    assert run_command(Settings, lambda settings: None) == 1
    error = capsys.readouterr().err
    assert "setting DATA_DIR: Field required" in error
    assert "setting hyperparameters__depth: Extra inputs are not permitted" in error


def test_a_known_error_is_one_line_and_exit_1(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(settings: Settings) -> None:
        raise EmptyWindowError("no rows on that day")

    assert run_command(Settings, work) == 1
    assert capsys.readouterr().err == "EmptyWindowError: no rows on that day\n"
    assert run_command(Settings, lambda settings: None) == 0


def test_a_programming_error_is_not_swallowed(environment: pytest.MonkeyPatch) -> None:
    def work(settings: Settings) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(Settings, work)
