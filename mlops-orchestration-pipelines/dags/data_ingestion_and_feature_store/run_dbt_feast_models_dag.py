"""### Build the feature tables

**What.** Loads landed transactions and movies (a snapshot of subscribers if `snapshot_date` names its day);
builds the feature tables with dbt; applies the Feast definitions. Checks the raw rows before and the features
after the build. Publishes `feature_tables`.

**When.** Daily at 01:00 UTC, after the last full day has landed in `$DATA_DIR/landing/transactions`.

**Safe to rerun?** Yes: loading is idempotent by day, dbt rebuilds the days it touches, apply is declarative.

**On failure.** `load_transactions`: a landing file is missing, damaged or of another data set; repair it and
rerun (another data set on purpose: `replace_dataset`). `check_raw`, `check_features`: the log names what is
broken, `$REPORTS_DIR/quality` shows rows; yesterday's features stay. `build_feature_tables`: the log names
the dbt test and the rows. Repair the source, then rerun with `from_date` set to the first wrong day.
"""

from datetime import UTC, datetime, timedelta
from functools import partial

from airflow.sdk import DAG, CronTriggerTimetable, Param, TriggerRule

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import FEATURE_TABLES
from scheduling.task_defaults import TASK_DEFAULTS

day = partial(Param, None, type=["null", "string"], format="date")
command = partial(RootCommandOperator, root="feature-store-management")
SCRIPTS = "data_transformation_pipelines.python_scripts_feast"

with DAG(
    "run_dbt_feast_models",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("0 1 * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=TASK_DEFAULTS,
    tags=["feature-store", "daily"],
    params={
        "replace_dataset": Param(False, type="boolean", description="Replace the loaded data set"),
        "from_date": day(description="Rebuild from this day on"),
        "snapshot_date": day(description="Day of the subscribers' snapshot to load"),
    },
):
    load_transactions = command(
        task_id="load_transactions",
        command=["python", "-m", f"{SCRIPTS}.load_transactions"],
        options={
            "--source": "${DATA_DIR}/landing/transactions",
            "--replace-dataset": "{{ params.replace_dataset }}",
        },
    )
    load_subscribers = command(
        task_id="load_subscribers",
        command=["python", "-m", f"{SCRIPTS}.load_subscribers"],
        options={"--snapshot-date": "{{ params.snapshot_date }}"},
        only_if="{{ params.snapshot_date }}",
    )
    load_movies = command(task_id="load_movies", command=["python", "-m", f"{SCRIPTS}.load_movies"])
    check_raw = command(
        task_id="check_raw",
        command=["python", "-m", "data_quality.check", "--level", "raw"],
        trigger_rule=TriggerRule.NONE_FAILED,
    )
    build_feature_tables = command(
        task_id="build_feature_tables",
        command=["scripts/run_dbt_for_feast.sh"],
        options={"--from-date": "{{ params.from_date }}", "--full-refresh": "{{ params.replace_dataset }}"},
    )
    check_features = command(
        task_id="check_features",
        command=["python", "-m", "data_quality.check", "--level", "staging", "--level", "features"],
    )
    apply_feast = command(
        task_id="apply_feast", command=["scripts/run_feast_apply.sh"], outlets=[FEATURE_TABLES]
    )
    [load_transactions, load_subscribers, load_movies] >> check_raw >> build_feature_tables
    build_feature_tables >> check_features >> apply_feast
