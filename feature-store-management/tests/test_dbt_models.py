"""The dbt project: how its files are written, and what its tables hold on a real PostgreSQL.

The tables are compared with an oracle in Python, after a full build and after each way in which a day can go
wrong; at the end a full build must give the same tables bit for bit.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from common_test_utils import (
    DAY,
    DBT_DIR,
    MICROSECOND,
    Rehearsal,
    Transaction,
    assert_same_rows,
    expected_daily,
    expected_today,
    transaction,
)

MODELS = sorted((DBT_DIR / "models").glob("*/*.sql"))
MACROS = sorted((DBT_DIR / "macros").glob("*.sql"))
SCHEMA_OF_MARTS = {
    "fct_fraud_labels": "labels",
    "fct_churn_labels": "labels",
    "fct_movie_ratings": "labels",
}
BUILD = "run_dbt_for_feast.sh"
FIRST_DAY = pd.Timestamp("2026-02-10", tz="UTC")


def model_id(path: Path) -> str:
    return path.stem


def test_models_follow_their_layers():
    prefixes = {"staging": "stg_", "intermediate": "int_", "marts": "fct_"}
    assert {path.parent.name for path in MODELS} == set(prefixes)
    assert all(path.name.startswith(prefixes[path.parent.name]) for path in MODELS)


@pytest.mark.parametrize("path", MODELS, ids=model_id)
def test_model_ends_with_its_final_step(path: Path):
    assert path.read_text().rstrip().endswith("select * from final")


@pytest.mark.parametrize("path", MODELS, ids=model_id)
def test_model_has_a_description_of_grain_and_owner_and_of_every_column(path: Path):
    model = yaml.safe_load(path.with_suffix(".yml").read_text())["models"][0]
    assert model["name"] == path.stem
    assert model["description"].startswith("Grain: ")
    assert "Owner: " in model["description"]
    assert all(column["description"] for column in model["columns"])


@pytest.mark.parametrize("path", [p for p in MODELS if p.parent.name != "staging"], ids=model_id)
def test_tables_key_is_tested(path: Path):
    model = yaml.safe_load(path.with_suffix(".yml").read_text())["models"][0]
    invariants = [test["invariants"] for test in model["data_tests"] if "invariants" in test]
    assert any(test["arguments"].get("key") for test in invariants)


def test_every_aggregate_has_a_unit_test():
    tested = {
        test["model"]
        for path in DBT_DIR.glob("models/*/*.yml")
        for test in yaml.safe_load(path.read_text()).get("unit_tests", [])
    }
    aggregates = {path.stem for path in MODELS if re.search(r"\b(sum|count|max)\(", path.read_text())}
    assert aggregates <= tested


@pytest.mark.parametrize("path", [*MODELS, *MACROS], ids=model_id)
def test_no_table_knows_the_clock(path: Path):
    assert not re.search(
        r"\b(now\(|current_timestamp|current_date|clock_timestamp|localtime)", path.read_text(), re.I
    )


def test_the_delay_of_labels_is_written_nowhere_but_in_its_table():
    rows = (DBT_DIR / "seeds" / "label_maturity.csv").read_text().splitlines()
    assert rows == ["label_name,delay_days,policy_version", "fraud,7,1", "churn,30,1"]
    labels = (DBT_DIR / "models" / "intermediate" / "int_terminal_daily_labels.sql").read_text()
    assert not re.search(r"\b7\b", labels)


# On the running stack.


def random_transactions(days: range, seed: int, first_id: int) -> list[Transaction]:
    """Return a few hundred transactions with what goes wrong in real ones.

    Simultaneous transactions of one customer, times at both ends of a day, some to the microsecond, entities
    that come late and pause for weeks, labels that never come, transactions and labels that come in out of
    order, at midnight itself and days late.
    """
    draw = random.Random(seed)
    rows = []
    for day in days:
        midnight = FIRST_DAY + day * DAY
        times = [float(draw.randrange(86_400)) for _ in range(draw.randrange(8, 16))]
        times += [times[0], times[0], 0, 1e-6, 86_399, 86_399.999999]
        for second in times:
            customer = draw.randrange(1 + min(day, 11))
            if customer == 3 and 10 < day < 42:  # away for more than a month
                customer = 0
            late = draw.choice([0] * 12 + [1800, 7200, 86_400 - second, 86_400, 3 * 86_400, 40 * 86_400])
            moment = midnight + pd.Timedelta(microseconds=round(second * 1e6))
            made = transaction(
                first_id + len(rows),
                moment,
                customer,
                draw.randrange(100, 107 + min(day, 20)),
                draw.randrange(1, 50_000),
                draw.choice([0, 0, 0, 1, None]),
            )
            late_label = draw.choice([0] * 9 + [2 * 86_400])
            rows.append(
                replace(
                    made,
                    known_at=moment + pd.Timedelta(microseconds=round(late * 1e6)),
                    label_known_at=made.label_known_at + late_label * pd.Timedelta(seconds=1),
                )
            )
    return rows


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    made = Rehearsal(tmp_path_factory.mktemp("dbt"))
    try:
        yield made
    finally:
        made.close()


class Loaded:
    """The raw rows that the tables must now stand for; tests of this module build on each other's."""

    rows: list[Transaction] = []  # noqa: RUF012 (one for the module)


def on_days(rows: list[Transaction], *days: int) -> list[Transaction]:
    return [row for row in rows if (row.day - FIRST_DAY) // DAY in days]


def assert_tables_stand_for(rehearsal: Rehearsal, rows: list[Transaction]) -> None:
    for entity in ("customer", "terminal"):
        daily, today = (rehearsal.rows(f"features.fct_{entity}_{window}") for window in ("daily", "today"))
        key = f"{entity}_id", "event_timestamp"
        assert_same_rows(daily, expected_daily(rows, entity), *key)
        assert_same_rows(today, expected_today(rows, entity), *key, "created_timestamp")
    labels = {row["transaction_id"]: row for row in rehearsal.rows("labels.fct_fraud_labels")}
    assert labels == {
        row.transaction_id: {
            "transaction_id": row.transaction_id,
            "customer_id": row.customer_id,
            "terminal_id": row.terminal_id,
            "tx_amount": row.cents / 100,
            "event_timestamp": row.moment,
            "tx_date": row.day.date(),
            "is_fraud": row.is_fraud,
            "label_known_at": row.label_known_at,
        }
        for row in rows
        if row.is_fraud is not None
    }


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_full_build_equals_the_oracle_and_passes_every_test(rehearsal: Rehearsal):
    Loaded.rows = random_transactions(range(45), seed=1, first_id=0)
    rehearsal.load(Loaded.rows)
    output = rehearsal.succeed(BUILD, "--unit-tests")
    assert "ERROR=0 SKIP=0" in output
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_new_days_are_added_without_touching_the_old(rehearsal: Rehearsal):
    table = rehearsal.table("features.fct_customer_daily")
    places = f"select ctid, event_timestamp from {table} where event_timestamp <= %s order by ctid"
    last_built = FIRST_DAY + 45 * DAY
    before = rehearsal.connection.execute(places, [last_built]).fetchall()
    fresh = random_transactions(range(45, 48), seed=2, first_id=10_000)
    rehearsal.load(fresh)
    Loaded.rows = Loaded.rows + fresh
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)
    assert rehearsal.connection.execute(places, [last_built]).fetchall() == before


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_day_that_changed_is_found_and_repaired(rehearsal: Rehearsal):
    """An amount, a label, a time of arrival; a transaction moved, one gone; a day without any left."""
    twentieth = on_days(Loaded.rows, 20)
    wrong, flipped, late, moved, _gone, *others = twentieth
    corrected = [
        replace(wrong, cents=wrong.cents + 1),
        replace(flipped, is_fraud=1 - (flipped.is_fraud or 0)),
        replace(late, known_at=late.known_at + 5 * DAY),
        replace(moved, terminal_id=moved.terminal_id + 1),
        *others,
    ]
    rehearsal.load(corrected)
    emptied = FIRST_DAY + 30 * DAY
    rehearsal.remove_days([emptied.date()])
    untouched = [row for row in Loaded.rows if row not in twentieth and row.day != emptied]
    Loaded.rows = untouched + corrected
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_failed_build_is_made_good_by_the_next(rehearsal: Rehearsal):
    """A negative amount stops the build; what it left is no trap for the next run."""
    good = random_transactions(range(48, 50), seed=3, first_id=20_000)
    rehearsal.load([replace(good[0], cents=-good[0].cents), *good[1:]])
    failed = rehearsal.run(BUILD)
    assert failed.returncode != 0
    assert "FAIL 1 stg_transactions_invariants" in failed.stdout
    assert_tables_stand_for(rehearsal, Loaded.rows)
    rehearsal.load(good)
    Loaded.rows = Loaded.rows + good
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_build_that_breaks_off_between_two_tables_is_made_good_by_the_next(rehearsal: Rehearsal):
    """A table in the way of one model: the models beside it are built from the new rows, it is not."""
    fresh = random_transactions(range(50, 51), seed=4, first_id=30_000)
    rehearsal.load(fresh)
    Loaded.rows = Loaded.rows + fresh
    table = rehearsal.table("features.fct_terminal_daily")
    rehearsal.connection.execute(
        f"alter table {table} add constraint in_the_way check (terminal_id < 0) not valid"
    )
    failed = rehearsal.run(BUILD)
    assert failed.returncode != 0
    assert "in_the_way" in failed.stdout
    customer_daily = rehearsal.rows("features.fct_customer_daily")
    assert_same_rows(
        customer_daily, expected_daily(Loaded.rows, "customer"), "customer_id", "event_timestamp"
    )
    rehearsal.connection.execute(f"alter table {table} drop constraint in_the_way")
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_from_date_repairs_tables_that_were_damaged(rehearsal: Rehearsal):
    """Damage to the tables themselves leaves no trace in the raw rows, so only --from-date finds it."""
    damaged_from = FIRST_DAY + 35 * DAY
    for name in ("fct_customer_daily", "fct_terminal_today"):
        table = rehearsal.table(f"features.{name}")
        rehearsal.connection.execute(f"delete from {table} where event_timestamp > %s", [damaged_from])
    rehearsal.succeed(BUILD, "--from-date", str(damaged_from.date()))
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_last_day_can_be_taken_back(rehearsal: Rehearsal):
    rehearsal.remove_days([(FIRST_DAY + 50 * DAY).date()])
    Loaded.rows = [row for row in Loaded.rows if row.day < FIRST_DAY + 50 * DAY]
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_after_all_repairs_a_full_build_gives_the_same_tables_bit_for_bit(rehearsal: Rehearsal):
    repaired = rehearsal.checksums()
    assert all(count > 0 for count, _ in repaired.values())
    rehearsal.succeed(BUILD, "--full-refresh")
    assert rehearsal.checksums() == repaired


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_a_build_of_nothing_new_changes_nothing(rehearsal: Rehearsal):
    before = rehearsal.checksums()
    rehearsal.succeed(BUILD)
    assert rehearsal.checksums() == before


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_rows_of_the_stream_stay_until_their_day_is_built(rehearsal: Rehearsal):
    """Days 50 and 51 have not landed: neither a rebuild of day 48 nor a full one takes what was streamed."""
    totals = {
        "customer": "customer_tx_count_today, customer_tx_amount_sum_today",
        "terminal": "terminal_tx_count_today",
    }
    newest = [
        FIRST_DAY + 50 * DAY,
        FIRST_DAY + 51 * DAY - MICROSECOND,
        FIRST_DAY + 51 * DAY + pd.Timedelta(hours=9),
    ]
    streamed = {}
    for entity, names in totals.items():
        table = rehearsal.table(f"features.fct_{entity}_today")
        for moment in newest:
            rehearsal.connection.execute(
                f"insert into {table} "
                f"({entity}_id, event_timestamp, created_timestamp, {names}, {entity}_today_day) "
                f"values (1, %s, %s, {', '.join('1' for _ in names.split(','))}, %s)",
                [moment + MICROSECOND, moment + 2 * MICROSECOND, day_number(moment)],
            )
        streamed[entity] = (
            f"select * from {table} where event_timestamp > '{newest[0]}' order by event_timestamp"
        )
    written = {entity: rehearsal.connection.execute(query).fetchall() for entity, query in streamed.items()}
    assert [len(rows) for rows in written.values()] == [3, 3]
    for options in (("--from-date", str((FIRST_DAY + 48 * DAY).date())), ("--full-refresh",)):
        rehearsal.succeed(BUILD, *options)
        for entity, query in streamed.items():
            assert rehearsal.connection.execute(query).fetchall() == written[entity]

    landed = random_transactions(range(50, 52), seed=5, first_id=40_000)
    rehearsal.load(landed)
    Loaded.rows = Loaded.rows + landed
    rehearsal.succeed(BUILD)
    assert_tables_stand_for(rehearsal, Loaded.rows)


def day_number(moment: pd.Timestamp) -> int:
    return (moment.normalize() - pd.Timestamp(0, tz="UTC")) // DAY


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_broken_tables_fail_their_tests(rehearsal: Rehearsal):
    """The tests of the project can fail: a doubled day, a risk above 1, a missing day, a cent too much."""
    daily, risk = (
        rehearsal.table("features.fct_customer_daily"),
        rehearsal.table("features.fct_terminal_daily"),
    )
    execute = rehearsal.connection.execute
    execute(f"update {daily} set customer_tx_amount_sum_full_1d = customer_tx_amount_sum_full_1d + 0.01, "
            f"customer_tx_amount_sum_full_7d = customer_tx_amount_sum_full_7d + 0.01, "
            f"customer_tx_amount_sum_full_30d = customer_tx_amount_sum_full_30d + 0.01 "
            f"where ctid = (select min(ctid) from {daily} where customer_tx_count_full_1d > 0)")  # fmt: skip
    execute(
        f"delete from {risk} where ctid = (select min(ctid) from {risk} where terminal_tx_count_full_1d > 0)"
    )
    execute(f"update {risk} set terminal_fraud_risk_7d = 1.5 where ctid = (select min(ctid) from {risk})")
    execute(f"drop index {rehearsal.prefix}features.{index_on_key(rehearsal, 'fct_customer_today')}")
    failed = rehearsal.run(BUILD)
    assert failed.returncode != 0
    for test in (
        "customer_days_add_up_to_the_raw_totals",
        "customer_today_ends_as_the_daily_total",
        "terminal_daily_is_dense",
        "terminal_days_add_up_to_the_raw_totals",
        "terminal_today_ends_as_the_daily_total",
        "fct_terminal_daily_invariants",
        "fct_customer_today_invariants",
    ):
        assert re.search(rf"FAIL \d+ {test} ", failed.stdout), test


def index_on_key(rehearsal: Rehearsal, table: str) -> str:
    statement = (
        "select quote_ident(i.relname) from pg_index x join pg_class i on i.oid = x.indexrelid "
        "where x.indrelid = %s::regclass and x.indisunique"
    )
    found = rehearsal.connection.execute(statement, [rehearsal.table(f"features.{table}")]).fetchone()
    assert found is not None
    return found[0]
