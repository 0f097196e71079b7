"""### Bring today's totals up to date from the stream

**What.** Processes what the log of transactions holds: today's totals per customer and terminal go to Redis
and to the offline tables, refused messages to `transactions.dead-letter.v1`. Ends when the log is read.

**When.** Every quarter of an hour, where no processor runs all the time. Where one does, leave this DAG
paused: the two would share the partitions, and hand them over twice in each run.

**Safe to rerun?** Yes, at any moment, also after a kill: totals are rebuilt from the log, events are counted
once.

**On failure.** Outages of broker, Redis or database are waited out, so a run that is too long names the one
in its log. A missing table: run `run_dbt_feast_models` first. A log that no longer reaches back to the days
that are kept: the message names the partition; raise the topic's retention, and begin with another
`STREAM_CONSUMER_GROUP`.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from operators.root_command_operator import RootCommandOperator
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "stream_market_data_to_feast",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC"),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["feature-store", "stream"],
):
    RootCommandOperator(
        task_id="process_stream",
        root="feature-store-management",
        command=[
            "python",
            "-m",
            "data_transformation_pipelines.stream_jobs_feast.process_transaction_stream",
            "--until-caught-up",
        ],
    )
