"""Points Airflow at this root before anything imports it; unit tests never reach a database."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if "AIRFLOW_HOME" not in os.environ:
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-unit-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(ROOT / "dags")
os.environ["AIRFLOW__CORE__PLUGINS_FOLDER"] = str(ROOT / "plugins")
for folder in ("plugins", "scripts"):
    sys.path.insert(0, str(ROOT / folder))


@pytest.fixture(scope="session")
def dag_bag():
    """The DAG files, parsed as the DAG processor does, with the network out of reach."""
    import socket  # noqa: PLC0415

    from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415

    def refuse(*_args, **_kwargs):
        raise AssertionError("a DAG file reached for the network while it was parsed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert bag.import_errors == {}
    return bag
