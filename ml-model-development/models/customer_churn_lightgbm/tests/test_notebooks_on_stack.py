"""The churn notebooks, executed on the running stack."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from common_ml_utils import notebooks

pytestmark = pytest.mark.integration
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = [
    "01_data_exploration.ipynb",
    "02_feature_selection_and_preprocessing.ipynb",
    "03_lightgbm_training_and_evaluation.ipynb",
]
PLOTS = [3, 1, 4]


def test_the_documented_notebooks_run_and_show_their_plots() -> None:
    paths = notebooks.notebooks_in(FOLDER)
    assert [path.name for path in paths] == NAMES
    for path, expected in zip(paths, PLOTS, strict=True):
        executed = notebooks.execute(path)
        outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert len(images) == expected, path.name
        assert all(len(base64.b64decode(image)) > 5000 for image in images), "an empty plot"
        warned = [output.text for output in outputs if output.get("name") == "stderr"]
        assert warned == [], path.name
