"""The registry and the ledger on the running stack's MLflow and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psycopg
import pytest
from psycopg import sql
from pydantic import ValidationError
from requests import RequestException

from common_ml_utils.errors import BundleError, LedgerError, RegistryError
from common_ml_utils.mlflow_utils import (
    BUNDLE_IN_MODEL,
    CHAMPION,
    PREVIOUS,
    STAGING,
    ModelRegistry,
    TrainingRun,
)
from common_ml_utils.promotion.ledger import PromotionLedger
from common_ml_utils.release_bundle import BundleContents, ReleaseBundle, write_bundle
from common_ml_utils.settings import PlatformSettings

pytestmark = pytest.mark.integration

SCORE_GOLDEN_ROWS = """
import sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
inner = model.unwrap_python_model()
golden = inner.bundle.golden
frame = pd.DataFrame([row.features for row in golden], columns=inner.bundle.preprocessing.names)
frame = frame.astype({n: float for n in frame if n != "parcel_carrier"})
frame["parcel_carrier"] = frame["parcel_carrier"].astype(object)
scores = model.predict(frame.iloc[:20])
assert all(abs(s - row.score) < 1e-6 for s, row in zip(scores, golden))
assert all(abs(inner.score_row(row.features) - row.score) < 1e-6 for row in golden)
"""


@pytest.fixture(scope="session")
def stack() -> PlatformSettings:
    try:
        return PlatformSettings()
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture
def registry(stack: PlatformSettings) -> ModelRegistry:
    return ModelRegistry(stack.mlflow_tracking_uri)


@pytest.fixture
def model_name(stack: PlatformSettings) -> Iterator[str]:
    """A registered model's name of this test's own, removed with its experiment afterwards."""
    name = f"test-parcel-loss-{uuid.uuid4().hex[:8]}"
    yield name
    client = mlflow.MlflowClient(tracking_uri=stack.mlflow_tracking_uri)
    if client.search_registered_models(filter_string=f"name = '{name}'"):
        client.delete_registered_model(name)
    if experiment := client.get_experiment_by_name(name):
        client.delete_experiment(experiment.experiment_id)


def register(registry: ModelRegistry, contents: BundleContents, name: str, folder: Path) -> int:
    folder = folder / uuid.uuid4().hex
    sha256 = write_bundle(replace(contents, model_name=name), folder)
    run = TrainingRun(
        name,
        "run-1",
        {"depth": 3},
        {"auc_roc": 0.9},
        {"kind": "test"},
        {"plot": b"\x89PNG"},
        documents={"model_card/model_card.html": b"<p>card</p>"},
        group="parcels",
    )
    return registry.register(folder, ReleaseBundle.load(folder, sha256), run)


def version_without(
    registry: ModelRegistry, bundle_folder: Path, bundle: ReleaseBundle, left_out: str
) -> int:
    """Make a version as an upload that stopped half way would: tags and all, but without one file."""
    name = bundle.manifest.model_name
    with registry._translated() as client:
        mlflow.set_experiment(name)
        half = bundle_folder.parent / uuid.uuid4().hex
        shutil.copytree(bundle_folder, half / BUNDLE_IN_MODEL, ignore=shutil.ignore_patterns(left_out))
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(half), "model")
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{run.info.artifact_uri}/model"
        tags = {"bundle_sha256": bundle.sha256}
        return int(client.create_model_version(name, source, run.info.run_id, tags=tags).version)


def test_a_half_uploaded_bundle_is_refused(
    registry: ModelRegistry, contents: BundleContents, model_name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    bundle = ReleaseBundle.load(folder, write_bundle(replace(contents, model_name=model_name), folder))
    version = version_without(registry, folder, bundle, "golden.json")
    with pytest.raises(BundleError, match=r"golden.json can't be read"):
        registry.load_version(model_name, version)
    with pytest.raises(RegistryError, match=r"[Vv]ersion"):
        registry.load_version(model_name, 99)
    whole = version_without(registry, folder, bundle, "nothing")
    assert registry.load_version(model_name, whole).bundle.sha256 == bundle.sha256


def test_a_registration_that_fails_half_way_leaves_the_challenger_as_it_was(
    registry: ModelRegistry,
    contents: BundleContents,
    model_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = register(registry, contents, model_name, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri)

    def fail(*arguments: Any, **named: Any) -> None:
        raise RequestException("the connection broke")

    broken = ModelRegistry(registry.tracking_uri)
    for place, step in (
        (mlflow.pyfunc, "log_model"),
        (broken, "load_version"),
        (mlflow.MlflowClient, "set_registered_model_alias"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, step, fail)
            with pytest.raises(RegistryError, match="the connection broke"):
                register(broken, contents, model_name, tmp_path)
        assert [registry.version_of(model_name, alias) for alias in (STAGING, CHAMPION)] == [first, None]
        versions = client.search_model_versions(f"name = '{model_name}'")
        assert [int(version.version) for version in versions] == [first], step
    experiment = client.get_experiment_by_name(model_name)
    assert experiment is not None
    statuses = [run.info.status for run in client.search_runs([experiment.experiment_id])]
    assert sorted(statuses) == ["FAILED", "FAILED", "FAILED", "FINISHED"]


def test_a_registered_bundle_has_all_that_the_registry_promises(
    registry: ModelRegistry, contents: BundleContents, model_name: str, tmp_path: Path
) -> None:
    registry.check_reachable()
    version = register(registry, contents, model_name, tmp_path)
    staged = registry.load(model_name, STAGING)
    assert staged is not None
    assert staged.version == version == 1
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri)
    tags = client.get_model_version(model_name, "1").tags
    assert tags["bundle_sha256"] == staged.bundle.sha256
    assert (tags["feature_service"], tags["git_commit"]) == ("parcel_loss_v1", "abc")
    assert tags["data_version"] == "d" * 64
    uri = f"models:/{model_name}/1"
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "model")))
    assert (folder / "artifacts" / "bundle" / "manifest.json").exists()
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".joblib"}]
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.input_names() == contents.contract.service.feature_names
    assert [str(kind) for kind in info.signature.inputs.input_types()] == [
        "DataType.double",
        "DataType.double",
        "DataType.string",
    ]
    assert info.signature.outputs.input_names() == ["score"]
    assert info.saved_input_example_info is not None
    run_id = client.get_model_version(model_name, "1").run_id
    assert run_id is not None
    run = client.get_run(run_id)
    assert run.data.tags["group"] == "parcels"
    card = client.download_artifacts(run.info.run_id, "model_card/model_card.html", str(tmp_path))
    assert Path(card).read_bytes() == b"<p>card</p>"
    assert client.list_artifacts(run.info.run_id, "plots")[0].path == "plots/plot.png"


def test_the_model_scores_without_this_root_and_with_pickle_refused(
    registry: ModelRegistry, contents: BundleContents, model_name: str, tmp_path: Path
) -> None:
    register(registry, contents, model_name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "MLFLOW_TRACKING_URI": registry.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCORE_GOLDEN_ROWS, f"models:/{model_name}@staging"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_promotion_and_rollback_move_the_aliases_one_step(
    registry: ModelRegistry, contents: BundleContents, model_name: str, tmp_path: Path
) -> None:
    def aliases() -> list[int | None]:
        return [registry.version_of(model_name, alias) for alias in (STAGING, CHAMPION, PREVIOUS)]

    assert registry.load(model_name, CHAMPION) is None
    registry.promote(model_name, register(registry, contents, model_name, tmp_path))
    with pytest.raises(RegistryError, match="no previous version"):
        registry.rollback(model_name)
    registry.promote(model_name, register(registry, contents, model_name, tmp_path))
    assert aliases() == [2, 2, 1]
    registry.promote(model_name, 2)
    assert aliases() == [2, 2, 1]

    assert registry.rollback(model_name) == (2, 1)
    assert aliases() == [2, 1, 2]
    assert registry.rollback(model_name) == (1, 2)
    assert aliases() == [2, 2, 1]
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri)
    client.set_model_version_tag(model_name, "1", "bundle_sha256", "0" * 64)
    with pytest.raises(BundleError, match="the registry says"):
        registry.rollback(model_name)
    assert aliases() == [2, 2, 1]


def test_a_bundle_that_is_not_the_registered_one_is_refused(
    registry: ModelRegistry, contents: BundleContents, model_name: str, tmp_path: Path
) -> None:
    register(registry, contents, model_name, tmp_path)
    client = mlflow.MlflowClient(tracking_uri=registry.tracking_uri)
    client.set_model_version_tag(model_name, "1", "bundle_sha256", "0" * 64)
    with pytest.raises(BundleError, match="the registry says"):
        registry.load(model_name, STAGING)
    client.delete_model_version_tag(model_name, "1", "bundle_sha256")
    with pytest.raises(RegistryError, match="no tag bundle_sha256"):
        registry.load(model_name, STAGING)


@pytest.fixture
def ledger(stack: PlatformSettings) -> Iterator[tuple[PromotionLedger, str]]:
    """A ledger in a schema of this test's own, removed afterwards."""
    schema = f"test_{uuid.uuid4().hex[:8]}"
    yield PromotionLedger(stack.decisions_db, schema), schema
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def test_verdicts_chain_and_a_tampered_one_shows(
    stack: PlatformSettings, ledger: tuple[PromotionLedger, str]
) -> None:
    book, schema = ledger
    for number, decision in enumerate(["promote", "refuse", "promote"]):
        with book.appending("m", decision, {"number": number, "odd": [0.1 + 0.2, -0.0, 1e22, 1e-7]}):
            pass
    assert [row["decision"] for row in book.rows()] == ["promote", "refuse", "promote"]
    with psycopg.connect(**stack.decisions_db.connection_arguments()) as connection:
        connection.execute(
            sql.SQL(
                "UPDATE {}.promotion_ledger SET entry = jsonb_set(entry, '{{number}}', '9') WHERE seq = 2"
            ).format(sql.Identifier(schema))
        )
    with pytest.raises(LedgerError, match="entry 2"):
        book.rows()


def test_a_verdict_that_could_not_be_acted_on_leaves_no_entry(ledger: tuple[PromotionLedger, str]) -> None:
    book, _ = ledger
    with pytest.raises(RuntimeError), book.appending("m", "promote", {}):
        raise RuntimeError
    assert book.rows() == []
