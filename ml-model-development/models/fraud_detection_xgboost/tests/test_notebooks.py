"""The notebooks are kept as they should be: without output, under their documented names."""

from __future__ import annotations

from pathlib import Path

import pytest
from src import exploration

from common_ml_utils.notebooks import notebooks_in, stored_output

FOLDER = Path(exploration.__file__).parents[1] / "notebooks"


def test_the_documented_notebooks_are_there() -> None:
    assert [path.name for path in notebooks_in(FOLDER)] == [
        "01_data_exploration.ipynb",
        "02_feature_selection_and_preprocessing.ipynb",
        "03_xgboost_training_and_evaluation.ipynb",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_nothing_of_an_earlier_run_is_stored(path: Path) -> None:
    assert stored_output(path) == []
