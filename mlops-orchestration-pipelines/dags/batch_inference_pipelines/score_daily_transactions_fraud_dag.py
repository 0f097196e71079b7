"""### Score and decide a day of transactions

**What.** Scores every transaction of one day with the champion (`scoring.batch_scores`), then passes the
scores through the label engine, the same policy file as the API (`decisions.batch_decisions`). Publishes the
asset `fraud_batch_decisions` with the day in its event.

**When.** When the gate has decided (asset `fraud_champion`), and at 06:00 UTC whatever became of the
training. The day is the last full one before the run, or the parameter `date`.

**Safe to rerun?** Yes: the day's rows are replaced at once; a run that was killed continues.

**On failure.** `predict_batch`: no champion yet (run `train_fraud_detection_xgboost`), or the day is not
loaded (run `run_dbt_feast_models`). `decide`: a policy that does not compile; the scores stand, repair the
policy and clear from `decide`.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import FRAUD_BATCH_DECISIONS, FRAUD_CHAMPION
from scheduling.run_dates import LAST_FULL_DAY
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "score_daily_transactions_fraud",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 6 * * *", timezone="UTC"), assets=FRAUD_CHAMPION
    ),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["scoring", "fraud", "daily"],
    params={"date": Param(None, type=["null", "string"], format="date", description="The day to score")},
):
    predict_batch = RootCommandOperator(
        task_id="predict_batch",
        root="ml-model-development",
        workdir="models/fraud_detection_xgboost",
        command=["python", "-m", "src.predict_batch", "--date", LAST_FULL_DAY],
    )
    decide = RootCommandOperator(
        task_id="decide",
        root="ml-model-services",
        workdir="services/fraud_detection_api",
        command=["python", "-m", "common_service_libs.batch_door", "--service", "fraud_detection_api"],
        options={"--date": LAST_FULL_DAY},
        outlets=[FRAUD_BATCH_DECISIONS],
        event_extra={"date": LAST_FULL_DAY},
    )
    predict_batch >> decide
