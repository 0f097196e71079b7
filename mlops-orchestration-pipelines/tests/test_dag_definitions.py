"""The policy every DAG keeps."""

from __future__ import annotations

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest

from operators.root_command_operator import RootCommandOperator

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = ROOT.parent
DAG_FILES = sorted((ROOT / "dags").rglob("*.py"))
DAG_IDS = [path.stem.removesuffix("_dag") for path in DAG_FILES]
EXPECTED = {
    "run_dbt_feast_models",
    "materialize_feast_online_store",
    "stream_market_data_to_feast",
    "train_fraud_detection_xgboost",
    "train_customer_churn_lightgbm",
    "train_movie_recommendation_hybrid",
    "score_daily_transactions_fraud",
    "score_daily_subscribers_churn",
    "recommend_daily_movies",
    "check_fraud_model_drift",
    "backup_mlflow_db",
}


def test_the_dags_are_the_documented_ones(dag_bag):
    assert set(dag_bag.dags) == set(DAG_IDS) == EXPECTED


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_a_file_holds_one_dag_named_like_it(dag_bag, path):
    assert [dag.dag_id for dag in dag_bag.dags.values() if dag.fileloc == str(path)] == [
        path.stem.removesuffix("_dag")
    ]


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_a_file_fits_on_a_screen_and_imports_only_airflow_and_the_plugins(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 80
    assert _imported(source) <= {"airflow", "datetime", "functools", "operators", "scheduling"}


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.stem)
def test_a_plugin_imports_no_library_of_another_root(path):
    import sys  # noqa: PLC0415

    # The engine's client is a dependency of this root; it is imported where a container is run.
    own = {"airflow", "operators", "scheduling", "runners", "docker", "urllib3"}
    assert _imported(path.read_text(encoding="utf-8")) - own <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "path", [*DAG_FILES, *sorted((ROOT / "plugins").rglob("*.py"))], ids=lambda p: p.stem
)
def test_nothing_asks_for_variables_or_connections(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Name)}
    assert names & {"Variable", "Connection", "BaseHook"} == set()


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_dag_has_a_runbook(dag_bag, dag_id):
    runbook = dag_bag.dags[dag_id].doc_md
    for heading in ("**What.**", "**When.**", "**Safe to rerun?**", "**On failure.**"):
        assert heading in runbook
    simple = {"load_subscribers", "load_movies", "apply_feast"}
    for task in dag_bag.dags[dag_id].tasks:
        if len(dag_bag.dags[dag_id].tasks) > 1 and task.task_id not in simple:
            assert f"`{task.task_id}`" in runbook, f"what to do when {task.task_id} fails"


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_dag_declares_how_it_is_run(dag_bag, dag_id):
    dag = dag_bag.dags[dag_id]
    assert dag.tags
    assert dag.catchup is False
    assert dag.max_active_runs == 1, "two runs would write the same tables"
    assert isinstance(dag.dagrun_timeout, timedelta)
    assert dag.start_date is not None
    assert "catchup=False" in Path(dag.fileloc).read_text(encoding="utf-8")


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_task_is_a_command_with_an_owner_retries_and_a_limit(dag_bag, dag_id):
    dag = dag_bag.dags[dag_id]
    for task in dag.tasks:
        assert isinstance(task, RootCommandOperator)
        assert task.owner == "mlops-platform"
        assert task.retries >= 1
        assert task.retry_delay <= timedelta(minutes=5)
        assert timedelta(0) < task.execution_timeout <= dag.dagrun_timeout


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_a_command_is_documented_in_the_contract_and_exists_in_its_root(dag_bag, dag_id):
    documented = _documented_commands()
    for task in dag_bag.dags[dag_id].tasks:
        words = task.command
        if words[:2] == ["python", "-m"]:
            module = words[2].replace(".", "/") + ".py"
            name = words[2].rpartition(".")[2]
            folders = [REPOSITORY / task.root / task.workdir, REPOSITORY / task.root]
            assert any((folder / module).is_file() for folder in folders), f"{words[2]} in {task.root}"
        else:
            name = words[0]
            assert (REPOSITORY / task.root / task.workdir / name).is_file(), f"{name} in {task.root}"
        text = documented[task.root]
        assert name in text
        for option in [*task.options, *(word for word in words if word.startswith("--"))]:
            assert option in text, f"{option} of {name}"


def _documented_commands() -> dict[str, str]:
    """Return the rows of the contract's table of commands, by root."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## Commands\n")[1]
    commands: dict[str, str] = {}
    root = ""
    for row in re.findall(r"^\|(.*?)\|(.*)\|$", section, flags=re.MULTILINE)[2:]:
        root = row[0].strip().split(" ")[0].split("/")[0] or root
        commands[root] = commands.get(root, "") + row[1] + "\n"
    return commands


def _imported(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    return modules - {"__future__"}
