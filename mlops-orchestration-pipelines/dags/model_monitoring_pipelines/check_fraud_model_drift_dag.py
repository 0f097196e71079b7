"""### Check the fraud model for drift

**What.** Compares a scored day with the champion's reference statistics (features, score), and the champion's
quality on days whose labels are known with its holdout. Leaves `$REPORTS_DIR/drift/<model>-<date>.html`.

**When.** When a day is scored (asset `fraud_batch_decisions`): the day of that event. By hand: the parameter
`date`, else the last full day.

**Safe to rerun?** Yes: the report of the day is replaced.

**On failure.** An alert is a result, not a failure. It fails when the day has no scores or the champion's
bundle is damaged; the log says which. Score the day again, or roll the champion back.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import FRAUD_BATCH_DECISIONS
from scheduling.run_dates import EVENT_DAY
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "check_fraud_model_drift",
    doc_md=__doc__,
    schedule=FRAUD_BATCH_DECISIONS,
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    default_args=TASK_DEFAULTS,
    tags=["monitoring", "fraud"],
    params={
        "date": Param(None, type=["null", "string"], format="date", description="The scored day to check")
    },
):
    RootCommandOperator(
        task_id="calculate_drift",
        root="ml-reporting-and-monitoring-logic",
        command=["python", "-m", "advanced_monitoring_scripts.calculate_concept_drift_scores"],
        options={"--model": "fraud-detection-model", "--date": EVENT_DAY},
    )
