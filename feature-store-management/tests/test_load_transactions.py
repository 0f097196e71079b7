"""The transaction loader without a database: planned days, refused files, settings, label delays."""

import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_transformation_pipelines.python_scripts_feast import load_subscribers, load_transactions
from data_transformation_pipelines.python_scripts_feast.label_maturity import (
    LabelMaturityError,
    read_label_maturity,
)
from data_transformation_pipelines.python_scripts_feast.landing_files import (
    LABELS_SCHEMA,
    TRANSACTIONS_SCHEMA,
    file_name,
)
from data_transformation_pipelines.python_scripts_feast.load_subscribers import label_times
from data_transformation_pipelines.python_scripts_feast.load_transactions import LoadedFile, days_to_load
from data_transformation_pipelines.python_scripts_feast.transaction_files import (
    RefusedFileError,
    label_known_at,
    parse_labels,
    parse_transactions,
)

DAY = date(2018, 4, 2)
MIDNIGHT = datetime(2018, 4, 2, tzinfo=UTC)
IDS = np.array([10, 11, 12], dtype=np.int64)
Rows = dict[str, list[Any]]


def transactions(**changes: list[Any]) -> Rows:
    rows: Rows = {
        "transaction_id": [10, 11, 12],
        "tx_datetime": [
            MIDNIGHT,
            MIDNIGHT + timedelta(hours=5),
            MIDNIGHT + timedelta(days=1, microseconds=-1),
        ],
        "customer_id": [1, 2, 1],
        "terminal_id": [7, 7, 8],
        "tx_amount": [0.0, 12.5, 300.0],
    }
    return rows | changes


def labels(**changes: list[Any]) -> Rows:
    rows: Rows = {"transaction_id": [10, 11, 12], "is_fraud": [0, 1, 1], "fraud_scenario": [0, 2, 1]}
    return rows | changes


def parquet(rows: Rows, schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    nullable = pa.schema([pa.field(name, schema.field(name).type) for name in rows])
    pq.write_table(pa.table(rows, schema=nullable), sink, write_page_checksum=True)
    return sink.getvalue()


def table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_good_day_is_accepted_at_its_very_edges() -> None:
    parsed = parse_transactions(parquet(transactions(), TRANSACTIONS_SCHEMA), DAY)
    assert parsed.transaction_id.tolist() == [10, 11, 12]
    assert parsed.tx_datetime[0] == np.datetime64("2018-04-02T00:00:00.000000")
    assert parsed.tx_datetime[2] == np.datetime64("2018-04-02T23:59:59.999999")
    assert parsed.tx_amount.tolist() == [0.0, 12.5, 300.0]
    assert parse_labels(parquet(labels(), LABELS_SCHEMA), DAY, IDS).is_fraud.tolist() == [0, 1, 1]


def test_a_day_without_transactions_is_accepted() -> None:
    parsed = parse_transactions(table_bytes(TRANSACTIONS_SCHEMA.empty_table()), DAY)
    assert len(parsed.transaction_id) == 0
    assert (
        len(parse_labels(table_bytes(LABELS_SCHEMA.empty_table()), DAY, parsed.transaction_id).is_fraud) == 0
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transaction_id": [10, 11, 10]}, "transaction_id is not unique: 10"),
        ({"tx_amount": [1.0, -0.01, 3.0]}, "tx_amount is negative: transaction 11"),
        ({"tx_amount": [float("nan"), 1.0, 2.0]}, "tx_amount is not finite: transaction 10"),
        ({"tx_amount": [1.0, 1.0, float("inf")]}, "tx_amount is not finite: transaction 12"),
        ({"tx_amount": [1.0, None, 1.0]}, "tx_amount is missing in 1 rows"),
        ({"customer_id": [None, None, 1]}, "customer_id is missing in 2 rows"),
        (
            {"tx_datetime": [MIDNIGHT - timedelta(microseconds=1), MIDNIGHT, MIDNIGHT]},
            "tx_datetime is not on 2018-04-02",
        ),
        (
            {"tx_datetime": [MIDNIGHT, MIDNIGHT, MIDNIGHT + timedelta(days=1)]},
            "tx_datetime is not on .*transaction 12",
        ),
    ],
)
def test_wrong_transactions_are_refused_with_the_reason(changes: Rows, reason: str) -> None:
    with pytest.raises(RefusedFileError, match=reason) as refused:
        parse_transactions(parquet(transactions(**changes), TRANSACTIONS_SCHEMA), DAY)
    assert refused.value.file == "transactions_2018-04-02.parquet"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transaction_id": [10, 11, 11]}, "transaction_id is not unique: 11"),
        ({"transaction_id": [10, 11, 13]}, "no such transaction that day: transaction 13"),
        ({"is_fraud": [0, 2, 1]}, "is_fraud is neither 0 nor 1: transaction 11"),
        ({"fraud_scenario": [0, -1, 1]}, "fraud_scenario is negative"),
        ({"fraud_scenario": [3, 2, 1]}, "a good transaction has a fraud_scenario: transaction 10"),
        ({"is_fraud": [0, None, 1]}, "is_fraud is missing in 1 rows"),
    ],
)
def test_wrong_labels_are_refused_with_the_reason(changes: Rows, reason: str) -> None:
    with pytest.raises(RefusedFileError, match=reason) as refused:
        parse_labels(parquet(labels(**changes), LABELS_SCHEMA), DAY, IDS)
    assert refused.value.file == "labels_2018-04-02.parquet"


def test_a_transaction_without_label_is_refused() -> None:
    with pytest.raises(RefusedFileError, match="the transaction has no label: transaction 13"):
        parse_labels(parquet(labels(), LABELS_SCHEMA), DAY, np.array([10, 11, 12, 13], dtype=np.int64))


def without(table: pa.Table) -> bytes:
    return table_bytes(table.drop_columns(["terminal_id"]))


def with_more(table: pa.Table) -> bytes:
    return table_bytes(table.append_column("note", [["x"] * len(table)]))


def with_text_ids(table: pa.Table) -> bytes:
    return table_bytes(table.set_column(2, "customer_id", table["customer_id"].cast(pa.string())))


def with_local_times(table: pa.Table) -> bytes:
    return table_bytes(table.set_column(1, "tx_datetime", table["tx_datetime"].cast(pa.timestamp("us"))))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without, "has the columns .* instead of"),
        (with_more, "has the columns .*note instead of"),
        (with_text_ids, "customer_id is string instead of int64"),
        (with_local_times, r"tx_datetime is timestamp\[us\] instead of timestamp\[us, tz=UTC\]"),
        (lambda table: b"", "not a readable Parquet file"),
        (lambda table: b"no parquet at all", "not a readable Parquet file"),
        (lambda table: table_bytes(table)[:-20], "not a readable Parquet file"),
    ],
    ids=["a column less", "a column more", "text ids", "times without zone", "empty", "text", "truncated"],
)
def test_a_file_of_another_shape_is_refused(spoil: Callable[[pa.Table], bytes], reason: str) -> None:
    table = pa.table(transactions(), schema=TRANSACTIONS_SCHEMA)
    with pytest.raises(RefusedFileError, match=reason) as refused:
        parse_transactions(spoil(table), DAY)
    assert "\n" not in str(refused.value)


def test_a_flipped_bit_in_the_data_is_refused() -> None:
    content = bytearray(parquet(transactions(tx_amount=[1.0, 2.0, 3.0]), TRANSACTIONS_SCHEMA))
    metadata = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(0).column(4)
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    content[start + metadata.total_compressed_size - 2] ^= 1
    with pytest.raises(RefusedFileError, match="not a readable Parquet file"):
        parse_transactions(bytes(content), DAY)


@given(st.data())
def test_labels_follow_their_transactions_whatever_the_order_of_rows(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(-(2**40), 2**40), unique=True, max_size=30))
    truth = {number: data.draw(st.integers(0, 3)) for number in ids}
    shuffled = data.draw(st.permutations(ids))
    content = parquet(
        labels(
            transaction_id=shuffled,
            is_fraud=[int(truth[number] > 0) for number in shuffled],
            fraud_scenario=[truth[number] for number in shuffled],
        ),
        LABELS_SCHEMA,
    )
    parsed = parse_labels(content, DAY, np.array(ids, dtype=np.int64))
    assert parsed.fraud_scenario.tolist() == [truth[number] for number in ids]
    assert parsed.is_fraud.tolist() == [int(truth[number] > 0) for number in ids]


def test_a_label_becomes_known_the_delay_after_its_transaction() -> None:
    times = np.array(["2018-04-02T10:00:00.000001"], dtype="datetime64[us]")
    assert label_known_at(times, timedelta(days=7)).tolist() == [datetime(2018, 4, 9, 10, 0, 0, 1)]  # noqa: DTZ001


DAYS = [date(2018, 4, 1) + timedelta(days=n) for n in range(4)]
NAMES = [file_name(kind, day) for day in DAYS for kind in load_transactions.KINDS]


def ledger_of(landed: dict[str, str], delay_days: int = 7) -> dict[str, LoadedFile]:
    return {
        name: LoadedFile(sha256, delay_days if name.startswith("labels") else None)
        for name, sha256 in landed.items()
    }


LANDED = dict.fromkeys(NAMES, "a")


def test_new_days_are_loaded() -> None:
    assert days_to_load(LANDED, {}, set(), 7) == DAYS


def test_loaded_days_are_not_loaded_again() -> None:
    assert days_to_load(LANDED, ledger_of(LANDED), set(DAYS), 7) == []


@pytest.mark.parametrize("kind", load_transactions.KINDS)
def test_a_changed_file_brings_its_day_back(kind: Any) -> None:
    assert days_to_load(LANDED | {file_name(kind, DAYS[2]): "b"}, ledger_of(LANDED), set(DAYS), 7) == [
        DAYS[2]
    ]


def test_another_label_delay_brings_every_day_back() -> None:
    assert days_to_load(LANDED, ledger_of(LANDED), set(DAYS), 8) == DAYS


def test_a_loaded_day_may_leave_the_folder() -> None:
    kept = {name: sha256 for name, sha256 in LANDED.items() if "04-01" not in name}
    assert days_to_load(kept, ledger_of(LANDED), set(DAYS), 7) == []


def test_a_day_of_the_manifest_that_never_landed_is_asked_for() -> None:
    assert days_to_load({}, {}, {DAYS[1]}, 7) == [DAYS[1]]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from("ab")), st.sets(st.sampled_from(NAMES)))
def test_what_is_planned_is_exactly_what_differs(landed: dict[str, str], forgotten: set[str]) -> None:
    ledger = {name: line for name, line in ledger_of(LANDED).items() if name not in forgotten}
    planned = days_to_load(landed, ledger, set(DAYS), 7)
    for day in DAYS:
        names = [file_name(kind, day) for kind in load_transactions.KINDS]
        differs = any(name not in ledger or landed.get(name, "a") != "a" for name in names)
        assert (day in planned) == differs
    assert planned == sorted(set(planned))


def test_the_one_table_of_delays_says_seven_and_thirty_days() -> None:
    assert (read_label_maturity("fraud").delay, read_label_maturity("churn").delay) == (
        timedelta(days=7),
        timedelta(days=30),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("label_name,delay_days,policy_version\nchurn,30,1\n", "0 rows for label 'fraud'"),
        ("label_name,delay_days,policy_version\nfraud,7,1\nfraud,8,1\n", "2 rows for label 'fraud'"),
        ("label_name,delay_days,policy_version\nfraud,week,1\n", "needs whole numbers"),
        ("label_name,policy_version\nfraud,1\n", "needs whole numbers"),
        ("label_name,delay_days,policy_version\nfraud,-1,1\n", "negative delay"),
    ],
)
def test_a_table_without_a_clear_delay_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "label_maturity.csv").write_text(text)
    with pytest.raises(LabelMaturityError, match=reason):
        read_label_maturity("fraud", tmp_path / "label_maturity.csv")


def test_an_absent_table_of_delays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelMaturityError, match="can't be read"):
        read_label_maturity("fraud", tmp_path / "absent.csv")


def test_a_snapshot_is_taken_at_midnight_and_its_labels_are_known_after_the_delay() -> None:
    assert label_times(date(2026, 11, 21), read_label_maturity("churn")) == (
        datetime(2026, 11, 21, tzinfo=UTC),
        datetime(2026, 12, 21, tzinfo=UTC),
    )


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in {
        "HOST": "127.0.0.1",
        "PORT": "1",
        "NAME": "f",
        "USER": "u",
        "PASSWORD": "hidden9",
    }.items():
        monkeypatch.setenv(f"FEATURE_STORE_DB_{name}", value)
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    (tmp_path / "landing").mkdir()
    return tmp_path


def test_an_unreachable_database_gives_one_line_and_a_report(
    unreachable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = {"transactions": 0, "frauds": 0, "frauds_by_scenario": {}}
    manifest = {"dataset_id": "d", "parameters": {}, **totals, "files": []}
    (unreachable / "landing" / "dataset.json").write_text(json.dumps(manifest))
    assert load_transactions.main(["--source", str(unreachable / "landing")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("load_transactions: no connection to PostgreSQL u@127.0.0.1:1/f")
    assert error.count("\n") == 1
    assert "hidden9" not in error
    report = json.loads((unreachable / "reports" / "load_transactions.json").read_text())
    assert report["error"] in error
    assert load_subscribers.main(["--snapshot-date", "2026-11-21"]) == 1


def test_a_folder_without_manifest_is_not_loaded(
    unreachable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_transactions.main(["--source", str(unreachable / "landing")]) == 2
    assert "has no dataset.json" in capsys.readouterr().err


def test_missing_settings_give_one_line_and_exit_2(
    unreachable: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEATURE_STORE_DB_PASSWORD")
    assert load_transactions.main(["--source", str(unreachable / "landing")]) == 2
    assert load_subscribers.main(["--snapshot-date", "2026-11-21"]) == 2
    assert capsys.readouterr().err == (
        "load_transactions: FEATURE_STORE_DB_PASSWORD is not set\n"
        "load_subscribers: FEATURE_STORE_DB_PASSWORD is not set\n"
    )


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--source", "/nowhere/at/all"],
        ["--source", ".", "--date", "yesterday"],
        ["--source", ".", "--all"],
    ],
    ids=" ".join,
)
def test_bad_options_give_one_line_and_exit_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        load_transactions.main(options)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_snapshot_whose_labels_lie_past_the_calendar_is_refused() -> None:
    with pytest.raises(OverflowError):
        label_times(date(9999, 12, 31), read_label_maturity("churn"))
