"""How the training pipelines are built, and how the DAGs follow from each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import jinja2
import pytest

from operators.root_command_operator import full_command
from scheduling.run_dates import AS_OF, EVENT_DAY, LAST_FULL_DAY, RUN_MOMENT

MORNING = datetime(2026, 11, 21, 1, 0, tzinfo=UTC)
TRAINING = [
    "train_fraud_detection_xgboost",
    "train_customer_churn_lightgbm",
    "train_movie_recommendation_hybrid",
]
SCORING = {
    "score_daily_transactions_fraud": "0 6 * * *",
    "score_daily_subscribers_churn": "10 6 * * *",
    "recommend_daily_movies": "20 6 * * *",
}


def render(template, *, logical_date=MORNING, run_after=MORNING, params=None, events=(), newest_first=False):
    """Render as Airflow does: strict, and `ds` as its filter of that name."""
    from airflow.sdk.execution_time import macros  # noqa: PLC0415

    env = jinja2.Environment(undefined=jinja2.StrictUndefined)
    env.filters["ds"] = lambda moment: moment.strftime("%Y-%m-%d")
    return env.from_string(template).render(
        dag_run=SimpleNamespace(logical_date=logical_date, run_after=run_after),
        params={"date": None, "as_of": None} | (params or {}),
        macros=macros,
        triggering_asset_events=_triggering(events, newest_first),
    )


def _triggering(extras, newest_first):
    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult  # noqa: PLC0415
    from airflow.sdk.execution_time.context import TriggeringAssetEventsAccessor  # noqa: PLC0415

    name = "fraud_batch_decisions"
    events = [
        AssetEventDagRunReferenceResult(
            asset={"name": name, "uri": name, "extra": {}},
            extra=extra,
            source_task_id="decide",
            source_dag_id="score_daily_transactions_fraud",
            source_run_id="r",
            source_map_index=-1,
            source_aliases=[],
            timestamp=MORNING + timedelta(minutes=minute),
        )
        for minute, extra in enumerate(extras)
    ]
    return TriggeringAssetEventsAccessor.build(events[::-1] if newest_first else events)


@pytest.mark.parametrize("dag_id", TRAINING)
def test_the_gate_follows_training_and_alone_names_the_champion(dag_bag, dag_id):
    dag = dag_bag.dags[dag_id]
    assert dag.task_dict["gate"].upstream_task_ids == {"train"}
    publishers = [task.task_id for task in dag.tasks if task.outlets]
    assert publishers == ["gate"], "training registers a challenger; only the gate decides"


@pytest.mark.parametrize("dag_id", TRAINING)
def test_training_knows_only_what_was_known_at_the_last_midnight(dag_bag, dag_id):
    train = dag_bag.dags[dag_id].task_dict["train"]
    assert render(train.options["--as-of"]) == "2026-11-21T00:00:00+00:00"
    assert render(train.options["--as-of"], params={"as_of": "2026-08-01"}) == "2026-08-01"


def test_the_published_evaluation_decides_nothing(dag_bag):
    evaluation = dag_bag.dags["train_fraud_detection_xgboost"].task_dict["evaluate_handbook"]
    assert evaluation.downstream_task_ids == set()
    assert evaluation.outlets == []


def test_each_dag_is_started_by_the_one_before_it(dag_bag):
    published = {
        asset.name: dag.dag_id
        for dag in dag_bag.dags.values()
        for task in dag.tasks
        for asset in task.outlets
    }
    started = {
        dag.dag_id: {published[name] for name in _asset_names(dag.timetable.asset_condition)}
        for dag in dag_bag.dags.values()
        if _asset_names(getattr(dag.timetable, "asset_condition", None))
    }
    assert started == {
        "materialize_feast_online_store": {"run_dbt_feast_models"},
        "train_fraud_detection_xgboost": {"run_dbt_feast_models"},
        "train_customer_churn_lightgbm": {"run_dbt_feast_models"},
        "train_movie_recommendation_hybrid": {"run_dbt_feast_models"},
        "score_daily_transactions_fraud": {"train_fraud_detection_xgboost"},
        "score_daily_subscribers_churn": {"train_customer_churn_lightgbm"},
        "recommend_daily_movies": {"train_movie_recommendation_hybrid"},
        "check_fraud_model_drift": {"score_daily_transactions_fraud"},
    }


@pytest.mark.parametrize(("dag_id", "cron"), SCORING.items())
def test_scoring_does_not_wait_for_a_training_that_failed(dag_bag, dag_id, cron):
    assert dag_bag.dags[dag_id].timetable.timetable.expression == cron


@pytest.mark.parametrize("dag_id", SCORING)
def test_a_days_event_names_the_day_and_comes_from_the_last_task(dag_bag, dag_id):
    dag = dag_bag.dags[dag_id]
    [publisher] = [task for task in dag.tasks if task.outlets]
    assert publisher.downstream_task_ids == set()
    assert render(publisher.event_extra["date"]) == "2026-11-20"
    first = dag.task_dict["predict_batch"]
    assert render(first.command[-1], params={"date": "2026-01-02"}) == "2026-01-02"


@pytest.mark.parametrize(
    ("dag_id", "service"),
    [
        ("score_daily_transactions_fraud", "fraud_detection_api"),
        ("score_daily_subscribers_churn", "customer_churn_api"),
    ],
)
def test_scores_are_decided_by_the_policy_of_their_service(dag_bag, dag_id, service):
    decide = dag_bag.dags[dag_id].task_dict["decide"]
    assert decide.upstream_task_ids == {"predict_batch"}
    assert decide.command[-2:] == ["--service", service]


@pytest.mark.parametrize(
    ("logical_date", "run_after"),
    [
        (MORNING, MORNING),
        (None, MORNING),
        (datetime(2026, 11, 21, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
    ids=["by the clock", "by an asset: no logical date", "by hand, later, for midnight"],
)
def test_the_day_of_a_run_is_the_last_full_one(logical_date, run_after):
    for template in (LAST_FULL_DAY, EVENT_DAY):
        assert render(template, logical_date=logical_date, run_after=run_after) == "2026-11-20"
        assert (
            render(template, logical_date=logical_date, run_after=run_after, params={"date": "2026-01-02"})
            == "2026-01-02"
        )
    assert render(AS_OF, logical_date=logical_date, run_after=run_after) == "2026-11-21T00:00:00+00:00"


def test_the_moment_of_a_run_is_exact():
    assert render(RUN_MOMENT) == "2026-11-21T01:00:00+00:00"


def test_drift_is_checked_for_the_day_that_was_scored():
    assert render(EVENT_DAY, logical_date=None, events=[{"date": "2026-10-01"}]) == "2026-10-01"
    by_hand = [{}]
    assert render(EVENT_DAY, logical_date=None, events=by_hand) == "2026-11-20", "that event names no day"


def test_of_several_events_the_newest_counts_whatever_their_order():
    days = [{"date": "2026-10-01"}, {"date": "2026-10-02"}]
    assert render(EVENT_DAY, logical_date=None, events=days) == "2026-10-02"
    assert render(EVENT_DAY, logical_date=None, events=days, newest_first=True) == "2026-10-02"


def test_replacing_the_data_set_rebuilds_every_table(dag_bag):
    dag = dag_bag.dags["run_dbt_feast_models"]
    params = {"replace_dataset": True, "from_date": None, "snapshot_date": None}
    words = {
        task.task_id: full_command(
            task.command, {name: render(value, params=params) for name, value in task.options.items()}
        )
        for task in dag.tasks
    }
    assert words["load_transactions"][-1] == "--replace-dataset"
    assert words["build_feature_tables"] == ["scripts/run_dbt_for_feast.sh", "--full-refresh"]
    assert dag.task_dict["apply_feast"].upstream_task_ids == {"check_features"}


def test_nothing_is_built_or_published_before_it_is_checked(dag_bag):
    dag = dag_bag.dags["run_dbt_feast_models"]
    loads = {"load_transactions", "load_subscribers", "load_movies"}
    assert dag.task_dict["check_raw"].upstream_task_ids == loads
    assert dag.task_dict["build_feature_tables"].upstream_task_ids == {"check_raw"}
    assert dag.task_dict["check_features"].upstream_task_ids == {"build_feature_tables"}
    assert [task.task_id for task in dag.tasks if task.outlets] == ["apply_feast"]
    for task in ("build_feature_tables", "check_features", "apply_feast"):
        assert dag.task_dict[task].trigger_rule == "all_success", "a failed check must stop what follows"


def _asset_names(condition) -> set[str]:
    if condition is None:
        return set()
    if hasattr(condition, "name"):
        return {condition.name}
    return set().union(*(_asset_names(part) for part in condition.objects))
