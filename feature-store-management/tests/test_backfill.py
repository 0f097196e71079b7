"""A backfill's plan: which days of which tables, in which order, and what a batch may read."""

import doctest
import re
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlglot
from common_test_utils import DBT_DIR
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp

import backfill.plan
from backfill.__main__ import main, target_models
from backfill.plan import (
    DayTable,
    PlanError,
    Step,
    batch_sql,
    day_table,
    default_batch_days,
    plan_steps,
    read_day_tables,
)
from lineage.dbt_models import ModelError, Project

PROJECT = Project()
ENTRIES = read_day_tables()
ALL = target_models(PROJECT, None)
DAY = timedelta(days=1)
FIRST, LAST = date(2026, 3, 1), date(2026, 3, 10)


def steps_of(*targets: str, batch_days: int = 4, **options: object) -> dict[str, Step]:
    steps = plan_steps(PROJECT, ENTRIES, targets, (FIRST, LAST), lambda _: batch_days, **options)  # type: ignore[arg-type]
    return {step.model.name: step for step in steps}


def test_doctests_hold():
    assert doctest.testmod(backfill.plan).failed == 0


def test_every_entry_is_of_a_table_and_every_table_of_days_has_one():
    assert set(ENTRIES) <= set(PROJECT.models)
    for model in PROJECT.models.values():
        if model.materialized in ("table", "incremental"):
            assert day_table(model, ENTRIES) is not None or model.materialized == "table"


def test_a_table_comes_after_what_it_is_made_from():
    steps = list(steps_of(*ALL))
    for name in steps:
        for read in PROJECT.model(name).refs & set(steps):
            assert steps.index(read) < steps.index(name)


def test_windows_are_rebuilt_from_the_days_they_reach():
    steps = steps_of("fct_terminal_daily")
    first = {name: step.batches[0].first for name, step in steps.items()}
    assert first["fct_terminal_daily"] == FIRST
    assert first["int_terminal_daily_totals"] == first["int_terminal_daily_labels"] == FIRST - 37 * DAY
    assert {step.batches[-1].last for step in steps.values()} == {LAST}


def test_a_table_that_is_new_and_read_by_another_gets_all_of_history():
    steps = steps_of("fct_customer_daily", missing=["int_customer_daily_totals"], history=date(2025, 1, 1))
    assert steps["int_customer_daily_totals"].batches[0].first == date(2025, 1, 1)
    assert steps["fct_customer_daily"].batches[0].first == FIRST


@given(days=st.integers(1, 400), batch_days=st.integers(1, 50))
def test_batches_cover_every_day_once(days: int, batch_days: int):
    last = FIRST + (days - 1) * DAY
    (step,) = [
        step
        for step in plan_steps(PROJECT, ENTRIES, ["fct_fraud_labels"], (FIRST, last), lambda _: batch_days)
        if step.model.name == "fct_fraud_labels"
    ]
    covered = [
        batch.first + n * DAY for batch in step.batches if batch.first is not None for n in range(batch.days)
    ]
    assert covered == [FIRST + n * DAY for n in range(days)]
    assert max(batch.days for batch in step.batches) <= batch_days


@given(days=st.integers(1, 10_000), workers=st.integers(1, 64))
def test_the_default_gives_every_worker_batches_of_its_own(days: int, workers: int):
    size = default_batch_days((FIRST, FIRST + (days - 1) * DAY), workers)
    assert size >= 1
    assert -(-days // size) <= 8 * workers


@pytest.mark.parametrize("name", sorted(set(ENTRIES)))
def test_a_batch_reads_nothing_but_what_its_entry_limits(name: str):
    """No relation of the query is read outside a limit, unless the entry says that all of it is."""
    step = steps_of(name)[name]
    query = sqlglot.parse_one(batch_sql(PROJECT, step, step.batches[0]), dialect="postgres")
    assert step.table is not None
    steps = {cte.alias for cte in query.find_all(exp.CTE)}
    for table in query.find_all(exp.Table):
        if table.name in steps and not table.db:
            continue
        condition = step.table.inputs[table.name]
        select = table.parent_select
        assert select is not None
        if condition == "all":
            continue
        limit = str(step.batches[0].last)
        assert limit in (select.sql() if condition == "calendar" else select.args["where"].sql()), table.name
    assert str(FIRST) in query.args["where"].sql()
    assert "-infinity" not in query.sql()


def test_a_whole_table_is_its_model():
    step = steps_of("fct_movie_profile")["fct_movie_profile"]
    assert step.table is None
    assert batch_sql(PROJECT, step, step.batches[0]) == step.model.sql


def test_a_version_has_the_entry_of_the_table_it_came_from():
    daily = PROJECT.model("fct_customer_daily")
    version = replace(daily, name="fct_customer_daily_v2")
    assert day_table(version, ENTRIES) is ENTRIES["fct_customer_daily"]
    beside = replace(version, refs=daily.refs | {"int_customer_daily_totals_v2"})
    assert day_table(beside, ENTRIES) is ENTRIES["fct_customer_daily"]


def test_a_table_of_days_without_an_entry_is_refused():
    with pytest.raises(PlanError, match="fct_customer_daily is incremental: say in"):
        day_table(PROJECT.model("fct_customer_daily"), {})


@pytest.mark.parametrize("inputs", [{}, {"stg_transactions": "all", "stg_ratings": "all"}])
def test_an_entry_that_does_not_limit_what_the_model_reads_is_refused(inputs: dict[str, str]):
    entry = DayTable(day="tx_date", changed_day=0, inputs=inputs)
    with pytest.raises(PlanError, match="fct_customer_today reads stg_transactions, but"):
        day_table(PROJECT.model("fct_customer_today"), {"fct_customer_today": entry})


def test_an_unknown_view_is_refused_and_the_known_ones_named():
    with pytest.raises(PlanError, match=r"no view is named customer_dayly: there are .*customer_daily,"):
        target_models(PROJECT, ["customer_daily", "customer_dayly"])


def test_wrong_options_leave_in_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["--from", "2026-02-02", "--to", "2026-02-01"])
    assert left.value.code == 2
    assert "--from 2026-02-02 is after --to 2026-02-01" in capsys.readouterr().err


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("FEATURE_STORE_DB_HOST", raising=False)
    assert main(["--from", "2026-02-01", "--to", "2026-02-01"]) == 2
    assert "FEATURE_STORE_DB_HOST is not set" in capsys.readouterr().err


def test_models_are_rendered_as_they_are_written():
    model = PROJECT.model("stg_transactions")
    written = model.path.read_text().replace("{{ source('raw', 'transactions') }}", "raw.transactions")
    assert model.sql == written.strip()
    assert (model.relation, model.materialized) == ("staging.stg_transactions", "view")
    assert (model.refs, model.sources) == (frozenset(), {"transactions"})
    assert Project(prefix="test_").model("fct_fraud_labels").relation == "test_labels.fct_fraud_labels"
    assert not [name for name, model in PROJECT.models.items() if "{{" in model.sql or "{%" in model.sql]
    assert set(PROJECT.models) == {path.stem for path in DBT_DIR.glob("models/*/*.sql")} | {"label_maturity"}


def test_a_model_that_cannot_be_rendered_is_named(tmp_path: Path):
    (tmp_path / "models" / "staging").mkdir(parents=True)
    (tmp_path / "dbt_project.yml").write_text((DBT_DIR / "dbt_project.yml").read_text())
    path = tmp_path / "models" / "staging" / "stg_wrong.sql"
    for text, message in (
        ("select * from {{ ref('nowhere') }}", "no dbt model or seed is named nowhere"),
        ("select {{ no_such_macro() }}", "model stg_wrong can't be rendered: 'no_such_macro' is undefined"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=re.escape(message)):
            Project(tmp_path)
