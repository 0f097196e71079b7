"""The DVC project: its stages are the DAGs' commands; on the S3 store nothing is lost or done twice.

Everything runs in a copy of the project, in a repository and with a bucket of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import get_session

from common_ml_utils import data_versions
from common_ml_utils.data_versions import RAW_DATA_OF, TRACKED, dvc_version, main, mirror, require_loaded
from common_ml_utils.errors import DataError

ROOT = Path(__file__).parents[1]
DAGS = ROOT.parent / "mlops-orchestration-pipelines" / "dags" / "model_training_pipelines"
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Does what a training or a gate does to files: keeps a training set, writes a report, notes that it ran.
STAND_IN = """
import os, pathlib, sys
name = sys.argv[0].rsplit("/", 1)[1].removesuffix(".py")
report = {"train": "train", "evaluate": "gate"}[name]
project = {"fraud_detection_xgboost": "fraud", "customer_churn_lightgbm": "churn"}[pathlib.Path.cwd().name]
reports = pathlib.Path(os.environ["REPORTS_DIR"]) / project
reports.mkdir(parents=True, exist_ok=True)
(reports / f"{report}.json").write_text('{"auc_roc": 0.8}')
if name == "train":
    kept = pathlib.Path(os.environ["DATA_DIR"]) / "training_sets" / project
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "set.parquet").write_bytes(project.encode())
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{project} {name} {' '.join(sys.argv[1:])}\\n")
"""


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_the_command_of_its_dag(name: str) -> None:
    stage = STAGES[name]
    project = Path(stage["wdir"]).name
    dag = (DAGS / f"train_{project}_dag.py").read_text()
    words = ", ".join(f'"{word}"' for word in stage["cmd"].split())
    assert f"command=[{words}]" in dag
    assert f'workdir="models/{project}"' in dag


def test_every_project_has_a_training_on_its_own_raw_data_and_a_gate_behind_it() -> None:
    assert set(STAGES) == {f"{step}_{report}" for report in RAW_DATA_OF for step in ("train", "gate")}
    for report, kind in RAW_DATA_OF.items():
        training, gate = STAGES[f"train_{report}"], STAGES[f"gate_{report}"]
        assert f"../../data_versions/{TRACKED[kind]}" in training["deps"]
        assert training["outs"] == [f"../../data_versions/training_sets/{report}"]
        assert set(training["outs"]) < set(gate["deps"])


def test_no_key_stands_in_a_file() -> None:
    config = (ROOT / ".dvc" / "config").read_text()
    assert "key" not in config
    assert "password" not in config
    assert "analytics = false" in config


def test_without_the_stack_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*data_versions.S3_VARIABLES, *data_versions.NEEDED_BY_REPRO):
        monkeypatch.delenv(name, raising=False)
    assert [main([command]) for command in ("push", "pull", "repro")] == [1, 1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(
        "S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY not set:"
        " start the stack (make up-local) and load its stack.env"
    )
    assert "DATA_DIR" in lines[2]


def test_a_store_that_does_not_answer_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in zip(data_versions.S3_VARIABLES, ("http://127.0.0.1:1", "a", "b"), strict=True):
        monkeypatch.setenv(name, value)
    assert main(["push"]) == 1
    assert "the S3 store at http://127.0.0.1:1 failed" in capsys.readouterr().err


def test_landed_files_that_are_not_loaded_have_no_version(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"1")
    loaded = {"a.parquet": hashlib.sha256(b"1").hexdigest()}
    require_loaded(tmp_path, loaded)
    for different in ({}, {"a.parquet": "0"}, {**loaded, "b.parquet": "0"}):
        with pytest.raises(DataError, match="has not loaded what has landed"):
            require_loaded(tmp_path, different)


def test_a_mirror_holds_the_same_files_and_leaves_equal_ones_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a", "b/c"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    mirror(source, target)
    before = (target / "a").stat().st_mtime_ns
    (source / "b" / "c").write_text("changed")
    (source / "a").touch()
    (target / "extra").write_text("")
    mirror(source, target)
    assert data_versions.dvc_name(source) == data_versions.dvc_name(target)
    assert (target / "a").stat().st_mtime_ns == before


class Project:
    """A copy of this root beside a feature store of small files, with stand-ins for trainings and gates."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.root = folder / ROOT.name
        self.calls = folder / "calls.txt"
        self.raw = folder / "feature-store-management" / "data"
        for name in ("common_ml_utils", ".dvc", "data_versions"):
            shutil.copytree(
                ROOT / name,
                self.root / name,
                ignore=shutil.ignore_patterns(
                    "__pycache__", "*.pyc", "cache", "tmp", "config.local", "*.dvc"
                ),
            )
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copyfile(ROOT / name, self.root / name)
        config = self.root / ".dvc" / "config"
        config.write_text(config.read_text().replace("s3://dvc/", f"s3://{bucket}/"))
        for model in ("fraud_detection_xgboost", "customer_churn_lightgbm", "movie_recommendation_hybrid"):
            source = self.root / "models" / model / "src"
            source.mkdir(parents=True)
            (source.parent / "requirements.txt").write_text("")
            for module in ("__init__", "train", "evaluate"):
                (source / f"{module}.py").write_text(STAND_IN if module != "__init__" else "")
        for kind in ("subscribers", "movies"):
            (self.raw / kind).mkdir(parents=True)
            (self.raw / kind / f"{kind}.csv").write_text(f"{kind}\n")
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)

    def run(self, *arguments: str) -> list[str]:
        """Run a command of data versions and return what was trained and judged in it."""
        self.calls.write_text("")
        environment = {**os.environ, "CALLS": str(self.calls), "PYTHONPATH": str(self.root)}
        command = [sys.executable, "-m", "common_ml_utils.data_versions", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.strip() for line in self.calls.read_text().splitlines()]

    def files(self) -> dict[str, bytes]:
        """Return every tracked file's content."""
        folders = [*TRACKED.values(), "training_sets/fraud", "training_sets/churn"]
        kept = self.root / "data_versions"
        return {
            str(path.relative_to(kept)): path.read_bytes()
            for folder in folders
            for path in sorted((kept / folder).rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    missing = [
        name
        for name in (*data_versions.S3_VARIABLES, *data_versions.NEEDED_BY_REPRO)
        if not os.environ.get(name)
    ]
    assert not missing, f"the stack's environment is not loaded (source its stack.env); not set: {missing}"
    bucket = f"test-dvc-{uuid.uuid4().hex[:8]}"
    yield Project(tmp_path, bucket)
    client = get_session().create_client("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=entry["Key"])
    client.delete_bucket(Bucket=bucket)


@pytest.mark.integration
def test_only_what_changed_runs_again_and_the_store_gives_back_every_byte(
    project: Project, tmp_path: Path
) -> None:
    chosen = ("gate_fraud", "gate_churn")
    assert sorted(project.run("repro", *chosen)) == [
        "churn evaluate gate",
        "churn train",
        "fraud evaluate gate",
        "fraud train",
    ]
    assert project.run("repro", *chosen) == [], "nothing changed, so nothing runs"
    (project.raw / "subscribers" / "subscribers.csv").write_text("one more\n")
    assert project.run("repro", *chosen) == ["churn train"], (
        "its report is the same, so the gate need not run"
    )

    project.run("push")
    before = project.files()
    assert len(before) > 100, "the landed transactions are among them"
    shutil.rmtree(project.root / ".dvc" / "cache")
    for folder in TRACKED.values():
        shutil.rmtree(project.root / "data_versions" / folder)
    shutil.rmtree(project.root / "data_versions" / "training_sets" / "fraud")
    project.run("pull")
    assert project.files() == before

    version = dvc_version(Path(os.environ["DATA_DIR"]), "fraud")
    project.run("fetch", version, str(tmp_path / "fetched"))
    assert f"transactions:{data_versions.dvc_name(tmp_path / 'fetched')}" == version

    written = [path for path in project.root.rglob("*") if path.is_file() and ".dvc/cache" not in str(path)]
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in written if secret in path.read_bytes()]
    ignored = subprocess.run(
        ["git", "-C", str(project.root), "status", "--porcelain", "--untracked-files=all", "data_versions"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert {Path(line.split()[-1]).suffix for line in ignored.splitlines()} <= {".dvc", ""}, ignored
