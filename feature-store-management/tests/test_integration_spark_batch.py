"""The daily windows on real Spark: against dbt's tables of the running stack, and against the oracle."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from common_test_utils import (
    DAY,
    FRAUD_DELAY_DAYS,
    Rehearsal,
    Row,
    Transaction,
    assert_same_rows,
    expected_daily,
    require_stack,
    transaction,
)
from test_dbt_models import FIRST_DAY, random_transactions

from data_transformation_pipelines.python_scripts_feast.landing_files import (
    LABELS_SCHEMA,
    TRANSACTIONS_SCHEMA,
    file_name,
)
from data_transformation_pipelines.spark_jobs_feast.build_daily_windows import main
from data_transformation_pipelines.spark_jobs_feast.raw_sources import LandingSource, SourceError
from data_transformation_pipelines.spark_jobs_feast.spark_session import SparkSettings, spark_session

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def spark() -> Iterator[Any]:
    """One JVM for the module; the command uses the session that runs."""
    require_stack()
    with spark_session("test", SparkSettings(driver_memory="1g")) as session:
        yield session


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    return tmp_path / "reports" / "build_daily_windows.json"


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Rehearsal]:
    made = Rehearsal(tmp_path)
    monkeypatch.setenv("FEATURE_STORE_SCHEMA_PREFIX", made.prefix)
    monkeypatch.delenv("FEATURE_STORE_RAW_SCHEMA", raising=False)
    try:
        yield made
    finally:
        made.close()


def parquet_rows(folder: Path, table: str) -> list[Row]:
    rows = ds.dataset(folder / table, format="parquet", partitioning="hive").to_table()
    return rows.drop_columns(["event_date"]).to_pylist()


def assert_folder_holds(folder: Path, rows: list[Transaction]) -> None:
    for entity in ("customer", "terminal"):
        assert_same_rows(
            parquet_rows(folder, f"fct_{entity}_daily"),
            expected_daily(rows, entity),
            f"{entity}_id",
            "event_timestamp",
        )


def assert_schema_holds(rehearsal: Rehearsal, rows: list[Transaction]) -> None:
    for entity in ("customer", "terminal"):
        assert_same_rows(
            rehearsal.rows(f"features.fct_{entity}_daily"),
            expected_daily(rows, entity),
            f"{entity}_id",
            "event_timestamp",
        )


def test_windows_equal_those_of_dbt_on_the_stacks_data(reports: Path):
    assert main(["--source", "postgresql", "--check-against-tables"]) == 0
    tables = json.loads(reports.read_text())["tables"]
    assert set(tables) == {"fct_customer_daily", "fct_terminal_daily"}
    for found in tables.values():
        assert found["rows"] > 10_000
        assert (found["missing"], found["surplus"], found["different"]) == (0, 0, 0)


def test_late_rows_and_labels_count_as_the_oracle_says(rehearsal: Rehearsal, reports: Path, tmp_path: Path):
    """From PostgreSQL to both targets; then some days again after a correction, and once more."""
    rows = random_transactions(range(45), seed=7, first_id=0)
    rehearsal.load(rows)
    folder = tmp_path / "out"
    assert main(["--source", "postgresql", "--out", str(folder)]) == 0
    assert_folder_holds(folder, rows)
    assert main(["--source", "postgresql", "--out", "postgresql:features", "--check-against-tables"]) == 0
    assert_schema_holds(rehearsal, rows)

    changed = FIRST_DAY + 20 * DAY
    corrected = [replace(row, cents=row.cents + 1) if row.day == changed else row for row in rows]
    rehearsal.load([row for row in corrected if row.day == changed])
    days = ["--from-date", str((changed + DAY).date()), "--to-date", str((changed + 30 * DAY).date())]
    for out in (str(folder), "postgresql:features", "postgresql:features"):
        assert main(["--source", "postgresql", "--out", out, *days]) == 0
    assert_folder_holds(folder, corrected)
    assert_schema_holds(rehearsal, corrected)


def test_days_whose_transactions_are_gone_lose_their_rows(
    rehearsal: Rehearsal, reports: Path, tmp_path: Path
):
    rows = random_transactions(range(6), seed=8, first_id=0)
    rehearsal.load(rows)
    folder = tmp_path / "out"
    for out in (str(folder), "postgresql:features"):
        assert main(["--source", "postgresql", "--out", out]) == 0
    rehearsal.remove_days([(FIRST_DAY + 5 * DAY).date()])
    left = [row for row in rows if row.day < FIRST_DAY + 5 * DAY]
    for out in (str(folder), "postgresql:features"):
        assert main(["--source", "postgresql", "--out", out, "--from-date", str(FIRST_DAY.date())]) == 0
    assert_folder_holds(folder, left)
    assert_schema_holds(rehearsal, left)


def test_a_comparison_finds_a_bit_a_missing_row_and_one_too_many(
    rehearsal: Rehearsal, reports: Path, capsys: pytest.CaptureFixture[str]
):
    rehearsal.load(random_transactions(range(6), seed=9, first_id=0))
    assert main(["--source", "postgresql", "--out", "postgresql:features"]) == 0
    table = rehearsal.table("features.fct_customer_daily")
    last = str((FIRST_DAY + 6 * DAY).date())
    sums = "customer_tx_amount_sum_full_30d"
    rehearsal.connection.execute(
        f"update {table} set {sums} = {sums} * (1 + 2.3e-16)"
        f" where event_timestamp = '{last}' and customer_id = 0"
    )
    rehearsal.connection.execute(f"delete from {table} where event_timestamp = '{last}' and customer_id = 1")
    rehearsal.connection.execute(
        f"insert into {table} select 999, event_timestamp + interval '400 days', created_timestamp,"
        f" 0, 0, 0, 0, 0, 0 from {table} limit 1"
    )
    assert main(["--source", "postgresql", "--check-against-tables"]) == 1
    tables = json.loads(reports.read_text())["tables"]
    found = tables["fct_customer_daily"]
    assert (found["missing"], found["surplus"], found["different"]) == (1, 1, 1)
    assert tables["fct_terminal_daily"]["different"] == 0
    assert "customer_tx_amount_sum_full_30d" in capsys.readouterr().out


# From landing files.


def land(folder: Path, rows: list[Transaction]) -> None:
    """Write the day files of transactions that have a label."""
    folder.mkdir(exist_ok=True)
    for day in sorted({row.day for row in rows}):
        own = [row for row in rows if row.day == day]
        transactions = [
            [row.transaction_id for row in own],
            [row.moment for row in own],
            [row.customer_id for row in own],
            [row.terminal_id for row in own],
            [row.cents / 100 for row in own],
        ]
        labels = [
            [row.transaction_id for row in own],
            [row.is_fraud for row in own],
            [row.is_fraud for row in own],
        ]
        write(folder, "transactions", day.date(), transactions)
        write(folder, "labels", day.date(), labels)


def write(folder: Path, kind: Any, day: date, columns: list[list[Any]]) -> None:
    schema = TRANSACTIONS_SCHEMA if kind == "transactions" else LABELS_SCHEMA
    pq.write_table(pa.table(columns, schema=schema), folder / file_name(kind, day))


def on_time(rows: list[Transaction]) -> list[Transaction]:
    """Return the rows as files have them: known at once, each with a label that matures in time."""
    return [
        replace(
            row,
            is_fraud=row.is_fraud or 0,
            known_at=row.moment,
            label_known_at=row.moment + FRAUD_DELAY_DAYS * DAY,
        )
        for row in rows
    ]


def test_landing_files_give_the_same_windows(reports: Path, tmp_path: Path):
    rows = on_time(random_transactions(range(40), seed=10, first_id=0))
    land(tmp_path / "landing", rows)
    assert main(["--source", str(tmp_path / "landing"), "--out", str(tmp_path / "out")]) == 0
    assert_folder_holds(tmp_path / "out", rows)


DAY_ONE = "2026-02-10 10:00"
GOOD = transaction(1, DAY_ONE, 1, 100, 500)
BROKEN = {
    "its amount is negative": [replace(GOOD, cents=-1)],
    "comes more than once": [GOOD, GOOD],
    "is_fraud is neither 0 nor 1": [replace(GOOD, is_fraud=2)],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_landing_files_are_refused(reason: str, spark: Any, tmp_path: Path):
    land(tmp_path / "landing", BROKEN[reason])
    with pytest.raises(SourceError, match=f"transaction 1:? {reason}"):
        LandingSource(spark, str(tmp_path / "landing"), FRAUD_DELAY_DAYS).transactions(0, 30_000)


def test_files_that_do_not_belong_together_are_refused(spark: Any, tmp_path: Path):
    folder, day = tmp_path / "landing", GOOD.day.date()
    land(folder, [GOOD, transaction(2, DAY_ONE, 1, 100, 500)])
    write(folder, "labels", day, [[1], [0], [0]])
    with pytest.raises(SourceError, match="transaction 2: it has no label"):
        LandingSource(spark, str(folder), FRAUD_DELAY_DAYS).transactions(0, 30_000)
    write(folder, "labels", day, [[1, 2, 3], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(SourceError, match="transaction 3: its label belongs to no transaction"):
        LandingSource(spark, str(folder), FRAUD_DELAY_DAYS).transactions(0, 30_000)
    write(folder, "labels", day, [[1, 2], [0, 0], [0, 0]])
    (folder / file_name("transactions", day)).rename(folder / "transactions_2026-02-11.parquet")
    (folder / file_name("labels", day)).rename(folder / "labels_2026-02-11.parquet")
    with pytest.raises(SourceError, match="it is not on its file's day"):
        LandingSource(spark, str(folder), FRAUD_DELAY_DAYS).transactions(0, 30_000)
    (folder / "labels_2026-02-11.parquet").unlink()
    with pytest.raises(SourceError, match="2026-02-11 has transactions or labels, not both"):
        LandingSource(spark, str(folder), FRAUD_DELAY_DAYS)


def test_a_source_that_is_not_there_is_told_in_one_line(
    reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--source", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "nowhere can't be read" in told
    assert told.count("\n") == 1
