"""Two trainings on the running stack's MLflow: what their pages hold, and the comparison of both versions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from conftest import make_parcels
from pydantic import ValidationError
from test_base_model_trainer import ParcelTrainer

from common_ml_utils import base_model_trainer
from common_ml_utils.compare_versions import main
from common_ml_utils.mlflow_utils import ModelRegistry
from common_ml_utils.settings import PlatformSettings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stack() -> PlatformSettings:
    try:
        return PlatformSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture(scope="module")
def model_name(stack: PlatformSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of this test's own with two versions, the second with other data and a parameter changed."""
    name = f"test-versions-{uuid.uuid4().hex[:8]}"
    registry = ModelRegistry(stack.mlflow_tracking_uri)
    parcels = make_parcels()
    for depth, frame in ((3, parcels), (4, parcels.assign(parcel_stops=parcels["parcel_stops"] + 1))):
        trainer = ParcelTrainer(frame, tmp_path_factory.mktemp("trained"), registry)
        trainer.identity = replace(ParcelTrainer.identity, model_name=name, experiment=name)
        trainer.parameters["depth"] = depth
        with pytest.MonkeyPatch.context() as patch:
            if depth == 3:  # one of the two versions has plots: they are slow
                patch.setattr(base_model_trainer, "model_plots", lambda *arguments: {})
            trainer.train()
    yield name
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    client.delete_registered_model(name)
    if experiment := client.get_experiment_by_name(name):
        client.delete_experiment(experiment.experiment_id)


def test_run_version_and_model_carry_names_notes_tags_and_files(
    stack: PlatformSettings, model_name: str
) -> None:
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    version = client.get_model_version(model_name, "2")
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.info.run_name.startswith("parcels-20240118-")
    assert run.data.tags["group"] == "training"
    assert run.data.tags["owner"] == "parcels-team"
    assert run.data.tags["dvc_version"]
    assert run.data.tags["feature_service"] == "parcel_loss_v1"
    assert "fold_1/auc_roc" in run.data.metrics
    assert run.data.tags["mlflow.note.content"] == version.description
    assert "AUC ROC" in version.description
    assert client.get_registered_model(model_name).description.startswith("Gives the probability")
    plots = {file.path for file in client.list_artifacts(version.run_id, "plots")}
    assert {"plots/slices.png", "plots/shap_summary.png"} <= plots
    cards = {file.path for file in client.list_artifacts(version.run_id, "model_card")}
    assert cards == {f"model_card/model_card.{kind}" for kind in ("html", "md", "json")}


def test_the_page_compares_both_versions(
    stack: PlatformSettings,
    model_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    assert main(["--model", model_name, "--last", "5"]) == 0
    page = (tmp_path / "parcels" / "versions.html").read_text()
    assert "Version 2 was trained last (staging)" in page
    assert "data:image/png;base64," in page
    one, two = json.loads((tmp_path / "parcels" / "versions.json").read_text())["versions"]
    changed = {change["what"]: (change["before"], change["after"]) for change in two["changes"]}
    assert changed["parameter depth"] == ("3", "4")
    assert "training set" in changed
    assert one["intervals"]["auc_roc"]["lower"] < one["intervals"]["auc_roc"]["value"]
    assert main(["--model", model_name, "--last", "1"]) == 0
    assert main(["--model", f"{model_name}-not"]) == 1
    assert "RegistryError" in capsys.readouterr().err
