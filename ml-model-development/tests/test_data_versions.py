"""Names of raw files: those DVC itself gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree

from common_ml_utils import data_versions
from common_ml_utils.data_versions import UNKNOWN, dvc_name, dvc_version


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "landing" / "transactions"
    contents = {"a/b.csv": b"1", "a.csv": b"2", "a-b/c.csv": b"3", ".hidden": b"", "z.csv": "é".encode()}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_folder_has_the_name_dvc_gives_it(files: Path) -> None:
    tree = Tree()
    for path in files.rglob("*"):
        if path.is_file():
            tree.add(path.relative_to(files).parts, Meta(), HashInfo("md5", dvc_name(path)))
    tree.digest()
    assert dvc_name(files) == tree.hash_info.value


def test_one_changed_byte_or_name_changes_the_version(files: Path, tmp_path: Path) -> None:
    before = dvc_version(tmp_path, "fraud")
    assert before == f"transactions:{dvc_name(files)}"
    (files / "a.csv").write_bytes(b"3")
    changed = dvc_version(tmp_path, "fraud")
    (files / "a.csv").rename(files / "b.csv")
    assert len({before, changed, dvc_version(tmp_path, "fraud")}) == 3


def test_each_project_names_its_own_raw_data(tmp_path: Path) -> None:
    assert dvc_version(tmp_path, "churn").startswith("subscribers:")
    assert dvc_version(tmp_path, "recommendation").startswith("movies:")


def test_files_that_are_not_here_have_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dvc_version(tmp_path, "fraud") == UNKNOWN
    assert dvc_version(tmp_path, "a project of its own") == UNKNOWN
    monkeypatch.setattr(data_versions, "FEATURE_STORE", tmp_path)
    assert dvc_version(tmp_path, "churn") == UNKNOWN
