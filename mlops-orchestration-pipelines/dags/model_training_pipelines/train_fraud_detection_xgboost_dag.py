"""### Train the fraud model and let the gate decide

**What.** Trains a challenger on labels known at the run's moment and registers it as `staging`; the gate
compares it with the champion on the same matured, later days and promotes or refuses; the published
evaluation of the Handbook is measured beside it. The gate publishes the asset `fraud_champion`.

**When.** Whenever the asset `feature_tables` is published.

**Safe to rerun?** Yes: a rerun registers one more version of the same model; the gate keeps the champion
unless the challenger is better. A refusal is a result, not a failure.

**On failure.** `train`: too few labelled days, or a feature service that differs from its contract; the log
says which. `gate`: the champion stays as it is; repair and clear from `gate`. `evaluate_handbook` measures
only and decides nothing.
"""

from datetime import UTC, datetime, timedelta
from functools import partial

from airflow.sdk import DAG, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import FEATURE_TABLES, FRAUD_CHAMPION
from scheduling.run_dates import AS_OF
from scheduling.task_defaults import TASK_DEFAULTS

ModelCommand = partial(
    RootCommandOperator, root="ml-model-development", workdir="models/fraud_detection_xgboost"
)

with DAG(
    "train_fraud_detection_xgboost",
    doc_md=__doc__,
    schedule=FEATURE_TABLES,
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    # Each task uses every core: one after the other is faster than both at once.
    max_active_tasks=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=TASK_DEFAULTS,
    tags=["training", "fraud"],
    params={
        "as_of": Param(
            None, type=["null", "string"], description="Train on what was known at this moment (UTC)"
        )
    },
):
    train = ModelCommand(task_id="train", command=["python", "-m", "src.train"], options={"--as-of": AS_OF})
    gate = ModelCommand(
        task_id="gate", command=["python", "-m", "src.evaluate", "gate"], outlets=[FRAUD_CHAMPION]
    )
    evaluate_handbook = ModelCommand(
        task_id="evaluate_handbook", command=["python", "-m", "src.evaluate", "handbook"]
    )
    train >> [gate, evaluate_handbook]
