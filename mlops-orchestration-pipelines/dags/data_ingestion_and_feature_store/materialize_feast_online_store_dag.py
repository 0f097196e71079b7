"""### Bring the online store up to date

**What.** Copies every feature value that is still valid from the feature tables to Redis.

**When.** Whenever the asset `feature_tables` is published.

**Safe to rerun?** Yes: a row is written again with the same value; the newest row of an entity wins.

**On failure.** Until it succeeds the APIs serve the previous day's totals, then (older than the view's TTL)
the declared defaults, labelled in each reply. Check that Redis answers and has memory, then rerun; nothing is
lost: each run writes every value still valid, and one that was killed continues.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from operators.feast_materialize_operator import FeastMaterializeOperator
from scheduling.assets import FEATURE_TABLES
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "materialize_feast_online_store",
    doc_md=__doc__,
    schedule=FEATURE_TABLES,
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["feature-store"],
):
    FeastMaterializeOperator(task_id="materialize_incremental")
