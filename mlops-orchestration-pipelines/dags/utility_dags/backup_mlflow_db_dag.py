"""### Back up MLflow's database

**What.** A logical backup (`pg_dump`) of experiments, runs and the model registry: read back, every table's
rows counted against the snapshot it was taken of, kept encrypted. The last 14 stay. It restores the registry
alone, into any PostgreSQL; the cluster's own backup (base backup and WAL) is not its business.

**When.** Every day at 00:20 UTC, before the day's work begins.

**Safe to rerun?** Yes: a rerun adds one more version.

**On failure.** What was kept stays, and no half dump is kept. The log says what: the database can't be read
(is PostgreSQL up? Role or password refused: `make up-server1` sets `mlflow_backup` right), restic's password
is not the one that the dumps were begun with, the folder is full, or the dump does not hold what the database
held: then check the database (`pg_amcheck`) before anything else.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from operators.root_command_operator import RootCommandOperator
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "backup_mlflow_db",
    doc_md=__doc__,
    schedule="20 0 * * *",
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["utility", "backup"],
):
    RootCommandOperator(
        task_id="dump_and_verify",
        root="mlops-platform-infrastructure",
        command=["python", "-m", "server_tools.backup.logical"],
    )
