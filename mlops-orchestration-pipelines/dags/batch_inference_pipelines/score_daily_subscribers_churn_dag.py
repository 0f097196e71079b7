"""### Score and decide all subscribers as of a day

**What.** Scores every subscriber known at the end of a day with the champion (`scoring.batch_scores`), then
passes the scores through the label engine, the same policy file as the API (`decisions.batch_decisions`).
Publishes the asset `churn_batch_decisions` with the day in its event.

**When.** When the gate has decided (asset `churn_champion`), and at 06:10 UTC whatever became of it.
The day is the last full one before the run, or the parameter `date`.

**Safe to rerun?** Yes: the day's rows are replaced at once; a run that was killed continues.

**On failure.** `predict_batch`: no champion yet (run `train_customer_churn_lightgbm`), or no snapshot of
subscribers was known on that day (run `run_dbt_feast_models` with `snapshot_date`). `decide`: a policy that
does not compile; the scores stand, repair the policy and clear from `decide`.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import CHURN_BATCH_DECISIONS, CHURN_CHAMPION
from scheduling.run_dates import LAST_FULL_DAY
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "score_daily_subscribers_churn",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("10 6 * * *", timezone="UTC"), assets=CHURN_CHAMPION
    ),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["scoring", "churn", "daily"],
    params={
        "date": Param(
            None, type=["null", "string"], format="date", description="The day to score subscribers as of"
        )
    },
):
    predict_batch = RootCommandOperator(
        task_id="predict_batch",
        root="ml-model-development",
        workdir="models/customer_churn_lightgbm",
        command=["python", "-m", "src.predict_batch", "--date", LAST_FULL_DAY],
    )
    decide = RootCommandOperator(
        task_id="decide",
        root="ml-model-services",
        workdir="services/customer_churn_api",
        command=["python", "-m", "common_service_libs.batch_door", "--service", "customer_churn_api"],
        options={"--date": LAST_FULL_DAY},
        outlets=[CHURN_BATCH_DECISIONS],
        event_extra={"date": LAST_FULL_DAY},
    )
    predict_batch >> decide
