"""The runner of notebooks, and the rule that none is kept with output."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from common_ml_utils import notebooks
from common_ml_utils.errors import NotebookError

ROOT = Path(__file__).parents[1]
KEPT = sorted([*ROOT.glob("models/*/notebooks/*.ipynb"), *ROOT.glob("research_and_poc/*.ipynb")])


def write(path: Path, *cells: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = new_notebook(cells=[new_markdown_cell("# A notebook"), *map(new_code_cell, cells)])
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_notebook_is_kept_without_output(path: Path) -> None:
    assert notebooks.stored_output(path) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"outputs": [new_output("stream", text="1")]}, "cell 2 has output"),
        ({"execution_count": 3}, "cell 2 has an execution count"),
        ({"metadata": {"collapsed": True}}, "cell 2 has metadata"),
    ],
)
def test_output_of_an_earlier_run_is_refused(tmp_path: Path, change: dict, complaint: str) -> None:
    path = write(tmp_path / "01.ipynb", "1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].update(change)
    nbformat.write(notebook, path)
    assert notebooks.stored_output(path) == [complaint]
    with pytest.raises(NotebookError, match=f"01.ipynb holds what an earlier run left: {complaint}"):
        notebooks.execute(path)


def test_a_run_uses_this_python_the_projects_folder_and_both_paths_and_leaves_the_file_as_it_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "src" / "__init__.py").write_text("ANSWER = 42\n")
    path = write(
        tmp_path / "project" / "notebooks" / "01.ipynb",
        "import os, sys\nimport common_ml_utils, src\nprint(sys.executable, os.getcwd(), src.ANSWER)",
    )
    before = path.read_bytes()
    assert notebooks.main([str(path.parent), "--out", str(tmp_path / "out")]) == 0
    [output] = nbformat.read(tmp_path / "out" / "01.ipynb", as_version=4).cells[1].outputs
    assert output.text.split() == [sys.executable, str(tmp_path / "project"), "42"]
    assert path.read_bytes() == before


def test_failures_name_notebook_and_cell_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "01.ipynb", "1", "{}['absent']")
    write(tmp_path / "02.ipynb", "1 + 1")
    assert notebooks.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "NotebookError: 01.ipynb, cell 3: KeyError: 'absent'" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["02.ipynb"]


def test_the_time_limit_ends_a_notebook(tmp_path: Path) -> None:
    path = write(tmp_path / "01.ipynb", "import time; time.sleep(60)")
    with pytest.raises(NotebookError, match=r"01.ipynb, cell 2: not done within the 1 seconds"):
        notebooks.execute(path, seconds=1)


@pytest.mark.parametrize("content", ["", "{}", '{"cells": 3, "nbformat": 4}', "not json"])
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "01.ipynb").write_text(content)
    with pytest.raises(NotebookError, match=r"01.ipynb is not a notebook"):
        notebooks.execute(tmp_path / "01.ipynb")


def test_an_empty_folder_and_the_notebooks_own_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebooks.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    write(tmp_path / "01.ipynb", "1")
    assert notebooks.main([str(tmp_path), "--out", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "holds no notebook" in errors
    assert "is the notebooks' own folder" in errors
