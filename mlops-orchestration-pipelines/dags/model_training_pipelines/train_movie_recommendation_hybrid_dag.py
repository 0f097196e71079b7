"""### Train the movie recommender and let the gate decide

**What.** Trains a challenger on the ratings known at the run's moment and registers it as `staging`; the gate
compares it with the champion on the same later ratings of the same viewers and promotes or refuses.
Publishes the asset `recommendation_champion`.

**When.** Whenever the asset `feature_tables` is published.

**Safe to rerun?** Yes: a rerun registers one more version of the same model; the gate keeps the champion
unless the challenger earns its place. A refusal is a result, not a failure.

**On failure.** `train`: no ratings are loaded, or the feature tables lack them; run `run_dbt_feast_models`.
`gate`: the champion stays as it is; repair and clear from `gate`.
"""

from datetime import UTC, datetime, timedelta
from functools import partial

from airflow.sdk import DAG, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import FEATURE_TABLES, RECOMMENDATION_CHAMPION
from scheduling.run_dates import AS_OF
from scheduling.task_defaults import TASK_DEFAULTS

ModelCommand = partial(
    RootCommandOperator, root="ml-model-development", workdir="models/movie_recommendation_hybrid"
)

with DAG(
    "train_movie_recommendation_hybrid",
    doc_md=__doc__,
    schedule=FEATURE_TABLES,
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["training", "recommendation"],
    params={
        "as_of": Param(
            None, type=["null", "string"], description="Train on what was known at this moment (UTC)"
        )
    },
):
    train = ModelCommand(task_id="train", command=["python", "-m", "src.train"], options={"--as-of": AS_OF})
    gate = ModelCommand(
        task_id="gate", command=["python", "-m", "src.evaluate", "gate"], outlets=[RECOMMENDATION_CHAMPION]
    )
    train >> gate
