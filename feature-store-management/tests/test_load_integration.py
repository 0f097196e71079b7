"""Connector and loaders against a real PostgreSQL, in a schema of the test's own.

What ends in the tables is compared with the landing files read apart, and by checksum with one clean load.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from data_source_connectors.binary_copy import Column, encode
from data_source_connectors.database_connector import (
    Connection,
    DatabaseSettings,
    connect,
    copy_columns,
    copy_rows,
    read_chunks,
)
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast import (
    load_settings,
    load_subscribers,
    load_transactions,
    simulate_transactions,
)
from data_transformation_pipelines.python_scripts_feast.clean_user_demographics import (
    DEFAULT_SOURCE,
    FEATURES,
    clean,
    read_source,
)
from data_transformation_pipelines.python_scripts_feast.label_maturity import LabelMaturity
from data_transformation_pipelines.python_scripts_feast.landing_files import LABELS_SCHEMA, read_manifest
from data_transformation_pipelines.python_scripts_feast.raw_tables import (
    LoadRunningError,
    RawSettings,
    open_raw_tables,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SMALL = ["--customers", "120", "--terminals", "1500", "--days", "12"]
DAY = date(2018, 4, 5)
TRANSACTION_TABLES = ("transactions", "transaction_labels", "loaded_file")
SUBSCRIBER_TABLES = ("subscribers", "subscriber_labels")


@pytest.fixture(scope="module")
def database() -> DatabaseSettings:
    try:
        return read_settings(DatabaseSettings)
    except SettingsError as error:
        pytest.fail(f"the stack's environment is not loaded: {error}")


@pytest.fixture
def connection(database: DatabaseSettings) -> Iterator[Connection]:
    with connect(database, application_name="test") as connection:
        yield connection


class Warehouse:
    """A schema of the test's own, the loaders pointed at it, and what they left there."""

    def __init__(self, connection: Connection, schema: str, reports: Path) -> None:
        self.connection = connection
        self.schema = schema
        self.reports = reports

    def load(self, source: Path, *options: str) -> int:
        return load_transactions.main(["--source", str(source), *options])

    def report(self, name: str = "load_transactions") -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.reports / f"{name}.json").read_text())
        return report

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        self.connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(self.schema)))
        return self.connection.execute(query.encode()).fetchall()

    def checksums(self, tables: tuple[str, ...] = TRANSACTION_TABLES) -> dict[str, tuple[int, str]]:
        """Count and hash of each table's rows, whatever their order on disk."""
        return {
            table: self.rows(
                f"select count(*), md5(string_agg(t::text, '|' order by t::text)) from {table} t"
            )[0]
            for table in tables
        }

    def dataset_id(self) -> str:
        [(dataset_id,)] = self.rows("select dataset_id from dataset")
        return str(dataset_id)


@pytest.fixture
def warehouses(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Warehouse]]:
    """Give empty warehouses; the loaders write to the one made last."""
    made: list[str] = []

    def make() -> Warehouse:
        schema = f"raw_test_{uuid4().hex[:12]}"
        made.append(schema)
        reports = tmp_path / "reports" / schema
        monkeypatch.setenv("FEATURE_STORE_RAW_SCHEMA", schema)
        monkeypatch.setenv("REPORTS_DIR", str(reports))
        return Warehouse(connection, schema, reports)

    yield make
    for schema in made:
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema)))


@pytest.fixture
def warehouse(warehouses: Callable[[], Warehouse]) -> Warehouse:
    return warehouses()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    assert simulate_transactions.main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def landing(simulated: Path, tmp_path: Path) -> Path:
    """A copy of the simulated set that a test may spoil."""
    return Path(shutil.copytree(simulated, tmp_path / "landing"))


@pytest.fixture
def clean_load(warehouses: Callable[[], Warehouse], simulated: Path) -> dict[str, tuple[int, str]]:
    """Checksums of one clean load into a warehouse apart."""
    apart = warehouses()
    assert apart.load(simulated) == 0
    return apart.checksums()


@pytest.fixture
def target(clean_load: dict[str, tuple[int, str]], warehouses: Callable[[], Warehouse]) -> Warehouse:
    """An empty warehouse made after the clean load, so that the loaders write to it."""
    return warehouses()


def transactions_path(folder: Path, day: date = DAY) -> Path:
    return folder / f"transactions_{day}.parquet"


def rewrite(path: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Change a column of a Parquet file in place."""
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    values = pa.array(change(table[column].to_pylist()), field.type)
    pq.write_table(table.set_column(index, field, values), path)


def test_the_tables_hold_what_the_files_hold(warehouse: Warehouse, simulated: Path) -> None:
    assert warehouse.load(simulated) == 0
    landed = pd.concat(pd.read_parquet(path) for path in sorted(simulated.glob("transactions_*")))
    labels = pd.concat(pd.read_parquet(path) for path in sorted(simulated.glob("labels_*")))
    moments = [moment.to_pydatetime() for moment in landed["tx_datetime"]]
    assert warehouse.rows(
        "select transaction_id, tx_datetime, tx_date, customer_id, terminal_id, tx_amount, known_at"
        " from transactions order by transaction_id"
    ) == list(
        zip(
            landed["transaction_id"],
            moments,
            [moment.date() for moment in moments],
            landed["customer_id"],
            landed["terminal_id"],
            landed["tx_amount"],
            moments,
            strict=True,
        )
    )
    assert warehouse.rows(
        "select transaction_id, tx_date, is_fraud, fraud_scenario, known_at"
        " from transaction_labels order by transaction_id"
    ) == list(
        zip(
            labels["transaction_id"],
            [moment.date() for moment in moments],
            labels["is_fraud"],
            labels["fraud_scenario"],
            [moment + timedelta(days=7) for moment in moments],
            strict=True,
        )
    )
    manifest = read_manifest(simulated)
    assert manifest is not None
    assert warehouse.dataset_id() == manifest.dataset_id
    report = warehouse.report()
    assert (report["transactions"], report["frauds"]) == (manifest.transactions, manifest.frauds)
    assert report["days_loaded"] == [str(date(2018, 4, 1) + timedelta(days=n)) for n in range(12)]
    assert report["refused"] == []


def test_a_second_run_loads_nothing_and_changes_nothing(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    assert target.load(simulated) == 0
    loaded_at = target.rows("select loaded_at from dataset")
    assert target.load(simulated) == 0
    assert (target.report()["days_loaded"], target.report()["days_unchanged"]) == ([], 12)
    assert target.checksums() == clean_load
    assert target.rows("select loaded_at from dataset") == loaded_at


def test_an_unchanged_day_asked_for_is_loaded_again_without_a_difference(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    assert target.load(simulated) == 0
    assert target.load(simulated, "--date", str(DAY), "--date", str(DAY)) == 0
    assert target.report()["days_loaded"] == [str(DAY)]
    assert target.checksums() == clean_load


def test_days_loaded_one_by_one_in_any_order_give_the_tables_of_one_load(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    for number in (7, 0, 11):
        assert target.load(simulated, "--date", str(date(2018, 4, 1) + timedelta(days=number))) == 0
    assert target.rows("select count(distinct tx_date) from transactions") == [(3,)]
    assert target.load(simulated) == 0
    assert target.checksums() == clean_load


def test_a_duplicate_file_under_another_name_is_refused_and_changes_nothing(
    target: Warehouse,
    landing: Path,
    clean_load: dict[str, tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    duplicate = landing / f"transactions_{DAY} (1).parquet"
    shutil.copy(transactions_path(landing), duplicate)
    assert target.load(landing) == 1
    assert [refused["file"] for refused in target.report()["refused"]] == [duplicate.name]
    assert duplicate.name in capsys.readouterr().err
    assert target.checksums() == clean_load
    duplicate.unlink()
    assert target.load(landing) == 0
    assert target.checksums() == clean_load


def test_a_day_delivered_as_another_day_is_refused_until_it_is_right(
    target: Warehouse, landing: Path, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    shutil.copy(transactions_path(landing, DAY - timedelta(days=1)), transactions_path(landing))
    assert target.load(landing) == 1
    [refused] = target.report()["refused"]
    assert refused["path"] == str(transactions_path(landing))
    assert f"tx_datetime is not on {DAY}" in refused["reason"]
    assert target.rows(f"select count(*) from transactions where tx_date = '{DAY}'") == [(0,)]
    assert target.rows("select count(distinct tx_date) from transactions") == [(11,)]
    shutil.copy(transactions_path(simulated), transactions_path(landing))
    assert target.load(landing) == 0
    assert target.report()["days_loaded"] == [str(DAY)]
    assert target.checksums() == clean_load


@pytest.mark.parametrize(
    "options", [[], ["--date", str(DAY)]], ids=["found by its hash", "asked for by date"]
)
def test_a_wrong_day_is_repaired_by_the_corrected_file(
    options: list[str],
    target: Warehouse,
    landing: Path,
    simulated: Path,
    clean_load: dict[str, tuple[int, str]],
) -> None:
    rewrite(transactions_path(landing), "tx_amount", lambda amounts: [2 * amount for amount in amounts])
    for kind in ("transactions", "labels"):
        table = pq.read_table(landing / f"{kind}_{DAY}.parquet")
        pq.write_table(table.slice(3), landing / f"{kind}_{DAY}.parquet")
    assert target.load(landing) == 0
    assert target.checksums() != clean_load
    for kind in ("transactions", "labels"):
        shutil.copy(simulated / f"{kind}_{DAY}.parquet", landing)
    assert target.load(landing, *options) == 0
    assert target.report()["days_loaded"] == [str(DAY)]
    assert target.checksums() == clean_load


def break_third_day(monkeypatch: pytest.MonkeyPatch, fail: Callable[[Connection], None]) -> None:
    """Let `fail` happen after the transactions of the third day are copied, before its labels are."""
    copied: list[str] = []

    def copy(connection: Connection, table: str, columns: list[Column]) -> None:
        copy_columns(connection, table, columns)
        copied.append(table)
        if copied.count("transactions") == 3 and table == "transactions":
            fail(connection)

    monkeypatch.setattr(load_transactions, "copy_columns", copy)


def test_a_lost_connection_in_the_middle_of_a_day_is_repaired_by_a_rerun(
    target: Warehouse,
    simulated: Path,
    clean_load: dict[str, tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def terminate(connection: Connection) -> None:
        target.rows(f"select pg_terminate_backend({connection.info.backend_pid}, 5000)")

    with pytest.MonkeyPatch.context() as patch:
        break_third_day(patch, terminate)
        assert target.load(simulated) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert "terminating connection" in target.report()["error"]
    assert target.report()["days_loaded"] == ["2018-04-01", "2018-04-02"]
    assert target.rows("select distinct tx_date from transactions order by 1") == [
        (date(2018, 4, 1),),
        (date(2018, 4, 2),),
    ]
    assert target.load(simulated) == 0
    assert len(target.report()["days_loaded"]) == 10
    assert target.checksums() == clean_load


def test_a_replacement_that_fails_leaves_the_day_as_it_was(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    def crash(connection: Connection) -> None:
        raise KeyboardInterrupt

    assert target.load(simulated) == 0
    days = [option for number in range(1, 5) for option in ("--date", f"2018-04-0{number}")]
    with pytest.MonkeyPatch.context() as patch:
        break_third_day(patch, crash)
        with pytest.raises(KeyboardInterrupt):
            target.load(simulated, *days)
    assert target.checksums() == clean_load


def test_another_data_set_is_refused_with_both_names_and_replaced_on_request(
    warehouses: Callable[[], Warehouse], simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    simulate_transactions.main([*SMALL[:-1], "5", "--out", str(other)])
    apart = warehouses()
    assert apart.load(other) == 0
    expected = apart.checksums()

    warehouse = warehouses()
    assert warehouse.load(simulated) == 0
    before = warehouse.checksums()
    held, offered = read_manifest(simulated), read_manifest(other)
    assert held is not None
    assert offered is not None
    capsys.readouterr()
    assert warehouse.load(other) == 2
    error = capsys.readouterr().err
    assert held.dataset_id in error
    assert offered.dataset_id in error
    assert warehouse.checksums() == before
    assert warehouse.load(other, "--replace-dataset") == 0
    assert warehouse.checksums() == expected
    assert warehouse.dataset_id() == offered.dataset_id


def test_replace_dataset_keeps_the_tables_of_the_same_data_set(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    assert target.load(simulated) == 0
    assert target.load(simulated, "--replace-dataset") == 0
    assert target.report()["days_loaded"] == []
    assert target.checksums() == clean_load


def test_an_id_of_another_day_is_refused_and_the_loaded_version_stays(
    target: Warehouse, landing: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    assert target.load(landing) == 0
    for kind in ("transactions", "labels"):
        rewrite(landing / f"{kind}_{DAY}.parquet", "transaction_id", lambda ids: [0, *ids[1:]])
    assert target.load(landing) == 1
    [refused] = target.report()["refused"]
    assert refused["file"] == transactions_path(landing).name
    assert refused["reason"] == "transaction 0 is already loaded on another day"
    assert target.checksums() == clean_load


@pytest.mark.parametrize("kind", ["transactions", "labels"])
def test_a_missing_file_of_a_pair_is_refused_by_name(warehouse: Warehouse, landing: Path, kind: str) -> None:
    (landing / f"{kind}_{DAY}.parquet").unlink()
    assert warehouse.load(landing) == 1
    [refused] = warehouse.report()["refused"]
    assert refused["file"] == f"{kind}_{DAY}.parquet"
    assert refused["reason"] == "can't be read: No such file or directory"
    assert warehouse.rows("select count(distinct tx_date) from transactions") == [(11,)]


def test_a_day_that_has_not_landed_is_refused(warehouse: Warehouse, simulated: Path) -> None:
    assert warehouse.load(simulated, "--date", "2018-05-01") == 1
    assert warehouse.report()["refused"][0]["file"] == "transactions_2018-05-01.parquet"
    assert warehouse.rows("select count(*) from transactions") == [(0,)]


def test_several_refused_files_do_not_stop_the_other_days(warehouse: Warehouse, landing: Path) -> None:
    rewrite(transactions_path(landing), "tx_amount", lambda amounts: [-1.0, *amounts[1:]])
    broken = landing / "labels_2018-04-07.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    empty = landing / "labels_2018-04-08.parquet"
    pq.write_table(LABELS_SCHEMA.empty_table(), empty)
    assert warehouse.load(landing) == 1
    reasons = {refused["file"]: refused["reason"] for refused in warehouse.report()["refused"]}
    assert set(reasons) == {transactions_path(landing).name, broken.name, empty.name}
    assert "tx_amount is negative" in reasons[transactions_path(landing).name]
    assert "not a readable Parquet file" in reasons[broken.name]
    assert "the transaction has no label" in reasons[empty.name]
    for table in ("transactions", "transaction_labels"):
        assert warehouse.rows(f"select count(distinct tx_date) from {table}") == [(9,)]


def test_a_changed_delay_recomputes_when_every_label_became_known(
    target: Warehouse,
    simulated: Path,
    clean_load: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert target.load(simulated) == 0
    with monkeypatch.context() as patch:
        patch.setattr(load_settings, "read_label_maturity", lambda label: LabelMaturity(label, 9, 2))
        assert target.load(simulated) == 0
    assert len(target.report()["days_loaded"]) == 12
    assert target.report()["label_policy_version"] == 2
    assert target.rows(
        "select distinct l.known_at - t.tx_datetime"
        " from transaction_labels l join transactions t using (transaction_id)"
    ) == [(timedelta(days=9),)]
    assert target.load(simulated) == 0
    assert target.checksums() == clean_load


def test_two_loads_at_once_leave_the_tables_of_one(
    target: Warehouse, simulated: Path, clean_load: dict[str, tuple[int, str]]
) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(target.load(simulated))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert target.checksums() == clean_load


def test_a_load_does_not_wait_for_another_without_end(
    database: DatabaseSettings, warehouse: Warehouse
) -> None:
    raw = read_settings(RawSettings)
    with (
        open_raw_tables(database, raw, application_name="test"),
        pytest.raises(LoadRunningError, match="another load still runs after 1 s"),
        open_raw_tables(database, raw, application_name="test", wait_seconds=1),
    ):
        pass


def test_subscribers_are_the_cleaned_file_with_ids_in_file_order(warehouse: Warehouse) -> None:
    assert load_subscribers.main(["--snapshot-date", "2026-11-21"]) == 0
    expected = clean(read_source(DEFAULT_SOURCE))
    midnight = datetime(2026, 11, 21, tzinfo=UTC)
    columns = [expected.profiles[name].to_pylist() for name in FEATURES]
    assert warehouse.rows(
        f"select subscriber_id, {', '.join(FEATURES)}, snapshot_at, known_at from subscribers order by 1"
    ) == [
        (number, *values, midnight, midnight)
        for number, values in enumerate(zip(*columns, strict=True), start=1)
    ]
    assert warehouse.rows("select * from subscriber_labels order by subscriber_id") == [
        (number, churned, midnight, midnight + timedelta(days=30))
        for number, churned in enumerate(expected.churned, start=1)
    ]
    report = warehouse.report("load_subscribers")
    assert (report["subscribers"], report["churned"], report["missing_totals_set_to_zero"]) == (
        7043,
        1869,
        11,
    )


def test_a_snapshot_loaded_again_changes_nothing_and_another_replaces_it(warehouse: Warehouse) -> None:
    load_subscribers.main(["--snapshot-date", "2026-11-21"])
    first = warehouse.checksums(SUBSCRIBER_TABLES)
    load_subscribers.main(["--snapshot-date", "2026-11-21"])
    assert warehouse.checksums(SUBSCRIBER_TABLES) == first
    assert load_subscribers.main(["--snapshot-date", "2026-11-22"]) == 0
    assert warehouse.rows("select distinct snapshot_at from subscribers") == [
        (datetime(2026, 11, 22, tzinfo=UTC),)
    ]
    assert warehouse.rows("select count(*) from subscriber_labels") == [(7043,)]
    load_subscribers.main(["--snapshot-date", "2026-11-21"])
    assert warehouse.checksums(SUBSCRIBER_TABLES) == first


def test_a_refused_or_broken_off_snapshot_leaves_the_former_one(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_subscribers.main(["--snapshot-date", "2026-11-21"])
    first = warehouse.checksums(SUBSCRIBER_TABLES)
    (tmp_path / "wrong.csv").write_text("churn,tenure\nNo,1\n")
    assert (
        load_subscribers.main(["--snapshot-date", "2026-11-22", "--source", str(tmp_path / "wrong.csv")]) == 1
    )

    def copy(connection: Connection, table: str, *rest: Any) -> None:
        if table == "subscriber_labels":
            raise psycopg.OperationalError("gone")
        copy_rows(connection, table, *rest)

    monkeypatch.setattr(load_subscribers, "copy_rows", copy)
    assert load_subscribers.main(["--snapshot-date", "2026-11-22"]) == 1
    assert warehouse.checksums(SUBSCRIBER_TABLES) == first


MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))  # noqa: DTZ001 (UTC without saying so)
ROWS = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.integers(-(2**15), 2**15 - 1),
        st.floats(),
        st.dates(),
        MOMENTS,
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_a_binary_stream_is_byte_for_byte_the_one_of_postgresql(
    connection: Connection, rows: list[tuple[Any, ...]]
) -> None:
    ids, flags, amounts, days, moments = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    columns = [
        Column("id", "bigint", np.array(ids, dtype=np.int64)),
        Column("flag", "smallint", np.array(flags, dtype=np.int16)),
        Column("amount", "double precision", np.array(amounts, dtype=np.float64)),
        Column("day", "date", np.array(days, dtype="datetime64[D]")),
        Column("moment", "timestamptz", np.array(moments, dtype="datetime64[us]")),
    ]
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create temp table stream (place serial, id bigint, flag smallint, amount double precision,"
            " day date, moment timestamptz) on commit drop"
        )
        copy_columns(connection, "stream", columns)
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "copy (select id, flag, amount, day, moment from stream order by place) to stdout binary"
            ) as copy,
        ):
            assert b"".join(bytes(part) for part in copy) == encode(columns)
        read = connection.execute(
            "select id, flag, amount, day, moment from stream order by place"
        ).fetchall()
    assert [repr(row[2]) for row in read] == [repr(amount) for amount in amounts]
    assert [(row[0], row[1], row[3], row[4]) for row in read] == [
        (row[0], row[1], row[3], row[4].replace(tzinfo=UTC)) for row in rows
    ]


def test_text_rows_keep_nulls_quotes_and_line_breaks(connection: Connection) -> None:
    rows = [(1, None), (2, 'tab\tbreak\nquote"back\\slash'), (3, "\\N"), (4, "")]
    with connection.transaction(force_rollback=True):
        connection.execute("create temp table texts (id bigint, words text) on commit drop")
        copy_rows(connection, "texts", ["id", "words"], rows)
        assert connection.execute("select id, words from texts order by id").fetchall() == rows


@pytest.mark.parametrize(("rows", "sizes"), [(0, []), (4, [4]), (10, [4, 4, 2])])
def test_a_chunked_read_yields_every_row_once(connection: Connection, rows: int, sizes: list[int]) -> None:
    chunks = list(read_chunks(connection, "select generate_series(1, %s)", (rows,), chunk_rows=4))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [number for chunk in chunks for (number,) in chunk] == list(range(1, rows + 1))


def test_a_connection_speaks_utc_and_limits_statements(database: DatabaseSettings) -> None:
    short = database.model_copy(update={"statement_timeout_seconds": 1})
    with connect(short, application_name="the test") as connection:
        assert connection.execute("show timezone").fetchone() == ("UTC",)
        assert connection.execute("show application_name").fetchone() == ("the test",)
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(20)")
