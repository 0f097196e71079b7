"""The proof of concept in research_and_poc, executed on the running stack."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from common_ml_utils import notebooks

pytestmark = pytest.mark.integration
FOLDER = Path(__file__).parents[1] / "research_and_poc"


def test_the_documented_proof_of_concept_runs_and_shows_its_result() -> None:
    [path] = notebooks.notebooks_in(FOLDER)
    assert path.name == "new_nlp_approach.ipynb"
    executed = notebooks.execute(path)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    [image] = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(base64.b64decode(image)) > 5000
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    table = outputs[-1].data["text/plain"]
    assert all(name in table for name in ("most liked films", "title and genres"))
