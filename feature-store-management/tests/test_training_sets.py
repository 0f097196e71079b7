"""Training sets against a brute-force oracle, and what the builder refuses; without a database."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from common_test_utils import CONTRACTS_DIR
from hypothesis import given
from hypothesis import strategies as st

import feature_views
from feature_contract import FeatureContract, load_contract, parse_contract
from training_sets.build import TrainingSetBuilder, main, manifest_path
from training_sets.errors import EntityRowsError, FeatureTableError, MissingFeatureError
from training_sets.feature_tables import Extract, ParquetTables, PostgresTables
from training_sets.point_in_time import NOTHING, History, latest_known

TTL = 10  # seconds
SECOND = 1_000_000
MOMENT = pa.timestamp("us", "UTC")


def default(value: float | str) -> dict[str, Any]:
    return {"on_missing": "default", "default": value}


SHOP: dict[str, Any] = {
    "name": "shop_v1",
    "version": 1,
    "entities": [
        {"name": "buyer", "join_key": "buyer_id", "type": "int64"},
        {"name": "shop", "join_key": "shop_id", "type": "int64"},
    ],
    "request": [{"name": "amount", "type": "float64"}, {"name": "asked_at", "type": "unix_timestamp"}],
    "views": [
        {
            "name": "buyer_habits",
            "entity": "buyer",
            "ttl_seconds": TTL,
            "fields": [
                {"name": "buyer_visits", "type": "int64"},
                {"name": "buyer_spent", "type": "float64"},
                {"name": "buyer_mood", "type": "string"},
            ],
        },
        {
            "name": "shop_today",
            "entity": "shop",
            "ttl_seconds": 1_000_000,
            "fields": [{"name": "shop_visits", "type": "int64"}],
        },
    ],
    "on_demand": {
        "view": "basket",
        "features": [
            {"name": "amount", "type": "float64", "expression": "amount"},
            {
                "name": "spent_with_this",
                "type": "float64",
                "expression": "coalesce(buyer_spent, 0) + amount + 0 * asked_at",
            },
            {"name": "visits_ratio", "type": "float64", "expression": "buyer_visits / shop_visits"},
        ],
    },
    "features": [
        {"name": "amount", "source": "basket", "type": "float64"},
        {"name": "buyer_visits", "source": "buyer_habits", "type": "int64", "on_missing": "null"},
        {"name": "spent_with_this", "source": "basket", "type": "float64"},
        {"name": "buyer_spent", "source": "buyer_habits", "type": "float64", **default(-1.5)},
        {"name": "buyer_mood", "source": "buyer_habits", "type": "string", **default("?")},
        {"name": "visits_ratio", "source": "basket", "type": "float64"},
        {"name": "shop_visits", "source": "shop_today", "type": "int64", **default(0)},
    ],
}


def contract_with(policies: Mapping[str, Mapping[str, Any]]) -> FeatureContract:
    """Return the shop's contract with other words on missing and stale values, feature by feature."""
    content = {**SHOP, "features": [{**each, **policies.get(each["name"], {})} for each in SHOP["features"]]}
    return parse_contract(yaml.safe_dump(content), "shop")


@dataclass
class MemoryTables:
    """Feature tables in memory; an extract is all of a table, so that only the join can leave a row out."""

    tables: Mapping[str, pa.Table]
    row_estimate: int = 0

    def name(self, view: str) -> str:
        return f"memory.{view}"

    def rows(self, view: str) -> int:
        return self.row_estimate

    def read(self, view: str, extract: Extract) -> pa.Table:
        return self.tables[view].select(extract.columns)


def moments(seconds: Sequence[float]) -> pa.Array:
    return pa.array([round(value * SECOND) for value in seconds], MOMENT)


Row = tuple[int, float, float, int | None, float | None, str | None]


def buyer_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of (buyer, event second, created second, visits, spent, mood)."""
    keys, event, created, visits, spent, mood = zip(*rows, strict=True) if rows else ((),) * 6
    return pa.table(
        {
            "buyer_id": pa.array(keys, pa.int64()),
            "event_timestamp": moments(event),
            "created_timestamp": moments(created),
            "buyer_visits": pa.array(visits, pa.int64()),
            "buyer_spent": pa.array(spent, pa.float64()),
            "buyer_mood": pa.array(mood, pa.string()),
        }
    )


def shop_table(rows: Sequence[tuple[int, float, float, int | None]]) -> pa.Table:
    keys, event, created, visits = zip(*rows, strict=True) if rows else ((),) * 4
    return pa.table(
        {
            "shop_id": pa.array(keys, pa.int64()),
            "event_timestamp": moments(event),
            "created_timestamp": moments(created),
            "shop_visits": pa.array(visits, pa.int64()),
        }
    )


def asked(rows: Sequence[tuple[int, int, float, float]]) -> pa.Table:
    """Entity rows of (buyer, shop, second, amount), with a column that is none of the builder's business."""
    buyers, shops, seconds, amounts = zip(*rows, strict=True)
    return pa.table(
        {
            "row": pa.array(range(len(rows)), pa.int32()),
            "buyer_id": pa.array(buyers, pa.int64()),
            "shop_id": pa.array(shops, pa.int32()),
            "event_timestamp": moments(seconds),
            "amount": pa.array(amounts, pa.float32()),
        }
    )


def built(contract: FeatureContract, tables: Any, entities: pa.Table, **options: Any) -> list[dict[str, Any]]:
    return TrainingSetBuilder(contract, tables, **options).build(entities).table.to_pylist()


# The oracle: one entity row at a time, by looking at every row of the tables.


def oracle_row(rows: Sequence[tuple[Any, ...]], key: int, second: float, ttl: float) -> tuple[Any, str]:
    """Return the values of the newest row known, and whether it is fresh, stale or missing."""
    known = [row for row in rows if row[0] == key and row[1] <= second and row[2] <= second]
    if not known:
        return None, "missing"
    newest = max(known, key=lambda row: (row[1], row[2]))
    return newest[3:], "fresh" if newest[1] >= second - ttl else "stale"


def oracle_feature(contract: FeatureContract, name: str, value: Any, status: str) -> Any:
    [feature] = [each for each in contract.features if each.name == name]
    word = feature.on_missing
    if status == "stale":
        word = feature.on_stale or feature.on_missing
        if word == "use_stale":
            word = feature.on_missing
        else:
            value = None
    if value is None or (feature.type == "float64" and math.isnan(value)):
        value = feature.default if word == "default" else None
    return value


def oracle(
    contract: FeatureContract, buyers: Sequence[Row], shops: Sequence[Any], row: tuple[int, int, float, float]
) -> dict[str, Any]:
    buyer, shop, second, amount = row
    habits, status = oracle_row(buyers, buyer, second, TTL)
    today, shop_status = oracle_row(shops, shop, second, 1_000_000)
    visits, spent, mood = habits or (None, None, None)
    shop_visits = today[0] if today else None
    fresh_visits, fresh_spent = (visits, spent) if status == "fresh" else (None, None)
    known_spent = 0 if fresh_spent is None or math.isnan(fresh_spent) else fresh_spent
    ratio = None
    if fresh_visits is not None and shop_visits is not None:
        ratio = float(np.float64(fresh_visits) / np.float64(shop_visits)) if shop_visits else math.nan
        if not shop_visits and fresh_visits:
            ratio = math.copysign(math.inf, fresh_visits)
    return {
        "amount": amount,
        "buyer_visits": oracle_feature(contract, "buyer_visits", visits, status),
        "spent_with_this": known_spent + amount,
        "buyer_spent": oracle_feature(contract, "buyer_spent", spent, status),
        "buyer_mood": oracle_feature(contract, "buyer_mood", mood, status),
        "visits_ratio": None if ratio is None or math.isnan(ratio) else ratio,
        "shop_visits": oracle_feature(contract, "shop_visits", shop_visits, shop_status),
    }


SECONDS = st.integers(0, 40)
AMOUNTS = st.sampled_from([0.0, 0.5, 12.25])
WORDS = st.fixed_dictionaries(
    {
        "buyer_visits": st.sampled_from([{}, {"on_stale": "use_stale"}, {"on_stale": "null"}]),
        "buyer_spent": st.sampled_from(
            [
                {},
                {"on_stale": "use_stale"},
                {"on_stale": "null"},
                {"on_missing": "null", "on_stale": "default"},
            ]
        ),
        "buyer_mood": st.sampled_from([{}, {"on_stale": "use_stale"}, {"on_stale": "null"}]),
    }
)


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    """Rows of a few buyers: in time, late, corrected, simultaneous, with nulls; no two of the same times."""
    times = draw(st.sets(st.tuples(st.integers(1, 3), SECONDS, SECONDS), max_size=14))
    rows: list[Row] = []
    for buyer, event, created in draw(st.permutations(sorted(times))):
        visits = draw(st.sampled_from([None, 0, 3, 2**53 - 1]))
        spent = draw(st.sampled_from([None, 0.0, 7.5, math.nan]))
        rows.append((buyer, event, created, visits, spent, draw(st.sampled_from([None, "calm", ""]))))
    return rows


SHOPS = st.lists(
    st.tuples(st.integers(1, 2), SECONDS, SECONDS, st.sampled_from([None, 0, 4])),
    unique_by=lambda row: row[:3],
    max_size=6,
)
QUESTIONS = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 55), AMOUNTS)


@given(
    words=WORDS,
    buyers=histories(),
    shops=SHOPS,
    rows=st.lists(QUESTIONS, min_size=1, max_size=12),
    slice_rows=st.sampled_from([1, 5, 1000]),
)
def test_a_training_set_is_what_looking_at_every_row_gives(
    words: dict[str, dict[str, str]],
    buyers: list[Row],
    shops: list[tuple[int, int, int, int | None]],
    rows: list[tuple[int, int, float, float]],
    slice_rows: int,
):
    contract = contract_with(words)
    tables = MemoryTables(
        {"buyer_habits": buyer_table(buyers), "shop_today": shop_table(shops)}, row_estimate=20
    )
    got = built(contract, tables, asked(rows), slice_rows=slice_rows)
    assert [row["row"] for row in got] == list(range(len(rows)))
    for found, row in zip(got, rows, strict=True):
        assert {name: found[name] for name in oracle(contract, buyers, shops, row)} == oracle(
            contract, buyers, shops, row
        )


KEYS = st.sampled_from([-(2**62), -1, 0, 1, 2**62])
TIMES = st.sampled_from([-(2**50), 0, 1, 2, 2**50])


@given(
    rows=st.sets(st.tuples(KEYS, TIMES, TIMES), max_size=12),
    questions=st.lists(st.tuples(KEYS | st.just(5), TIMES | st.just(-(2**55))), min_size=1, max_size=12),
)
def test_keys_and_times_of_any_range_are_told_apart(
    rows: set[tuple[int, int, int]], questions: list[tuple[int, int]]
):
    listed = sorted(rows)
    columns = np.array(listed, dtype=np.int64).reshape(-1, 3).T
    keys, times = np.array(questions, dtype=np.int64).T
    expected = []
    for key, time in questions:
        known = [row for row in listed if row[0] == key and max(row[1], row[2]) <= time]
        expected.append(listed.index(max(known, key=lambda row: row[1:])) if known else NOTHING)
    assert latest_known(History(*columns), keys, times).tolist() == expected


# By hand.


def one(second: float, tables: MemoryTables, contract: FeatureContract | None = None) -> dict[str, Any]:
    [row] = built(contract or contract_with({}), tables, asked([(1, 1, second, 1.0)]))
    return row


def habits(*rows: Row) -> MemoryTables:
    return MemoryTables({"buyer_habits": buyer_table(rows), "shop_today": shop_table([])})


POISON = 666.0


def without_created_filter(tables: MemoryTables) -> MemoryTables:
    """The same tables, known as soon as they are true: what a join on event_timestamp alone sees."""
    return MemoryTables(
        {
            view: table.set_column(2, "created_timestamp", table["event_timestamp"])
            for view, table in tables.tables.items()
        }
    )


def test_a_poisoned_row_that_came_late_is_in_no_training_set():
    """The canary: true since second 5, but known only from second 12 on; a join on one shows it early."""
    tables = habits((1, 4, 4, 1, 1.0, "calm"), (1, 5, 12, 1, POISON, "calm"))
    seconds = [4, 5, 6, 11.999999]
    assert [one(second, tables)["buyer_spent"] for second in seconds] == [1.0] * 4
    assert one(12, tables)["buyer_spent"] == POISON
    leaking = without_created_filter(tables)
    assert [one(second, leaking)["buyer_spent"] for second in seconds] == [1.0] + [POISON] * 3


def test_a_late_row_of_an_earlier_time_supersedes_nothing():
    tables = habits((1, 8, 8, 1, 8.0, None), (1, 5, 9, 1, 5.0, None), (1, 8, 12, 1, 8.5, None))
    assert [one(second, tables)["buyer_spent"] for second in (7.999999, 8, 9, 11, 12)] == [-1.5, 8, 8, 8, 8.5]


def test_a_value_is_fresh_up_to_and_including_its_time_to_live():
    """Feast's offline join and the services' reader have the same edge: stale is older than that."""
    tables = habits((1, 5, 5, 3, 2.0, "calm"))
    at_the_edge, past_it = one(5 + TTL, tables), one(5 + TTL + 1e-6, tables)
    assert (at_the_edge["buyer_spent"], at_the_edge["spent_with_this"]) == (2.0, 3.0)
    assert (past_it["buyer_spent"], past_it["spent_with_this"]) == (-1.5, 1.0)


def test_an_old_value_stands_where_the_contract_says_so_but_feeds_no_expression():
    contract = contract_with({"buyer_spent": {"on_stale": "use_stale"}, "buyer_mood": {"on_stale": "null"}})
    row = one(500, habits((1, 5, 5, 3, 2.0, "calm")), contract)
    assert (row["buyer_spent"], row["buyer_mood"], row["spent_with_this"]) == (2.0, None, 1.0)
    assert one(500, habits(), contract)["buyer_mood"] == "?"


@pytest.mark.parametrize(
    ("words", "tables"),
    [
        ({"on_missing": "fail"}, habits()),
        ({"on_missing": "fail"}, habits((1, 499, 499, None, 2.0, None))),
        ({"on_stale": "fail"}, habits((1, 5, 5, 3, 2.0, None))),
    ],
    ids=["missing", "null", "stale"],
)
def test_a_feature_that_may_not_be_missing_stops_the_build(words: dict[str, str], tables: MemoryTables):
    contract = contract_with({"buyer_visits": words})
    with pytest.raises(MissingFeatureError, match=r"shop_v1: buyer_visits .* in 1 of 1 rows, first row 0"):
        one(500, tables, contract)


def test_rows_asked_for_twice_come_twice_and_strangers_come_with_defaults():
    tables = habits((1, 5, 5, 3, 2.0, "calm"))
    first, again, stranger = built(
        contract_with({}), tables, asked([(1, 1, 6, 1.0), (1, 1, 6, 1.0), (99, 99, 6, 1.0)])
    )
    assert first | {"row": 1} == again
    assert (stranger["buyer_visits"], stranger["buyer_mood"], stranger["shop_visits"]) == (None, "?", 0)


def test_columns_stand_in_order_and_have_the_contracts_types():
    table = TrainingSetBuilder(contract_with({}), habits()).build(asked([(1, 1, 6, 1.0)])).table
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("row", "int32"),
        ("buyer_id", "int64"),
        ("shop_id", "int32"),
        ("event_timestamp", "timestamp[us, tz=UTC]"),
        ("asked_at", "double"),
        ("amount", "double"),
        ("buyer_visits", "int64"),
        ("spent_with_this", "double"),
        ("buyer_spent", "double"),
        ("buyer_mood", "string"),
        ("visits_ratio", "double"),
        ("shop_visits", "int64"),
    ]
    assert table["asked_at"].to_pylist() == [6.0]


def test_a_finer_time_than_the_tables_have_sees_what_its_microsecond_sees():
    tables = habits((1, 5, 5, 3, 2.0, "calm"), (1, 5.000002, 5.000002, 4, 2.0, "calm"))
    rows = asked([(1, 1, 5.000001, 1.0)])
    finer = pa.array([5_000_001_999], pa.timestamp("ns", "UTC"))
    [row] = built(contract_with({}), tables, rows.set_column(3, "event_timestamp", finer))
    assert row["buyer_visits"] == 3


def replaced(name: str, values: pa.Array) -> pa.Table:
    table = asked([(1, 1, 6, 1.0), (1, 1, 7, 1.0)])
    return table.set_column(table.column_names.index(name), name, values)


BAD_ROWS: dict[str, tuple[pa.Table, str]] = {
    "a null key": (
        replaced("buyer_id", pa.array([1, None])),
        "buyer_id is null in 1 entity rows, first row 1",
    ),
    "a key of text": (
        replaced("buyer_id", pa.array(["1", "2"])),
        "the key buyer_id is string, not an integer",
    ),
    "a key that is too large": (
        replaced("buyer_id", pa.array([1, 2**63], pa.uint64())),
        "the key buyer_id: ",
    ),
    "a null time": (replaced("event_timestamp", pa.array([None, 0], MOMENT)), "event_timestamp is null"),
    "a time without a zone": (
        replaced("event_timestamp", pa.array([0, 0], pa.timestamp("us"))),
        r"event_timestamp is timestamp\[us\], not a time with a zone",
    ),
    "a null request value": (replaced("amount", pa.array([1.0, None])), "amount is null in 1 entity rows"),
    "a request value that is no number": (
        replaced("amount", pa.array([1.0, math.nan])),
        "amount is not a number in 1 entity rows, first row 1",
    ),
    "a request value of text": (
        replaced("amount", pa.array(["1", "2"])),
        "amount is string, not a number",
    ),
    "a missing key": (
        asked([(1, 1, 6, 1.0)]).drop_columns("shop_id"),
        "have no column shop_id; they have row, buyer_id",
    ),
    "a feature of its own": (
        asked([(1, 1, 6, 1.0)]).append_column("shop_visits", pa.array([1])),
        "shop_visits: the entity rows have a column of a feature's name",
    ),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_bad_entity_rows_are_refused_and_the_column_named(fault: str):
    rows, message = BAD_ROWS[fault]
    with pytest.raises(EntityRowsError, match=message):
        built(contract_with({}), habits(), rows)


def test_two_rows_of_the_same_times_are_refused():
    tables = habits((1, 5, 5, 3, 2.0, None), (2, 5, 5, 3, 2.0, None), (1, 5, 5, 4, 2.0, None))
    with pytest.raises(
        FeatureTableError, match=r"memory\.buyer_habits: 1 rows .* key 1, event_timestamp 1970"
    ):
        one(6, tables)


def test_a_table_of_other_types_is_refused():
    table = buyer_table([(1, 5, 5, 3, 2.0, "calm")])
    wrong = table.set_column(3, "buyer_visits", pa.array(["three"]))
    with pytest.raises(FeatureTableError, match=r"memory\.buyer_habits: buyer_visits is no int64"):
        one(6, MemoryTables({"buyer_habits": wrong, "shop_today": shop_table([])}))


def test_tables_are_those_of_the_feast_definitions():
    """The builder finds a view's table by its name; the definitions say which it is."""
    folder = Path(next(iter(feature_views.__path__)))
    checked = 0
    for path in sorted(folder.glob("*.py")):
        module = __import__(f"feature_views.{path.stem}", fromlist=[path.stem])
        view = getattr(module, path.stem, None)
        if path.stem == "__init__" or not hasattr(view, "batch_source"):
            continue
        source = view.batch_source
        expected = PostgresTables(None, "features").name(path.stem)  # type: ignore[arg-type]
        assert source.get_table_query_string() == expected
        assert (source.timestamp_field, source.created_timestamp_column) == (
            "event_timestamp",
            "created_timestamp",
        )
        checked += 1
    assert checked >= 5


# The command, on Parquet copies of the tables.

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Copies of the churn service's one table: subscribers 1 and 2; the second became known an hour late."""
    folder = tmp_path / "tables"
    folder.mkdir()
    contract = load_contract("customer_churn_v1")
    columns: dict[str, Any] = {
        "subscriber_id": [1, 2],
        "event_timestamp": [START, START],
        "created_timestamp": [START, START + timedelta(hours=1)],
    }
    for field in contract.view("subscriber_profile").fields:
        columns[field.name] = {"int64": [5, 6], "float64": [5.5, 6.5], "string": ["five", "six"]}[field.type]
    pq.write_table(pa.table(columns), folder / "fct_subscriber_profile.parquet")
    return folder


def write_entities(path: Path, rows: Sequence[tuple[int, datetime]]) -> Path:
    keys, times = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {
            "subscriber_id": pa.array(keys, pa.int64()),
            "event_timestamp": pa.array(times, MOMENT),
            "note": pa.array(["n"] * len(rows), pa.string()),
        }
    )
    pq.write_table(table, path)
    return path


def build(snapshot: Path, entities: Path, *more: str) -> tuple[int, Path]:
    out = snapshot.parent / "sets" / "churn.parquet"
    arguments = ["--service", "customer_churn_v1", "--entities", str(entities), "--tables", str(snapshot)]
    return main([*arguments, "--out", str(out), *more]), out


def test_the_command_writes_a_file_and_a_manifest_and_again_the_same_bytes(snapshot: Path, tmp_path: Path):
    entities = write_entities(tmp_path / "asked.parquet", [(2, START + timedelta(hours=2)), (1, START)])
    status, out = build(snapshot, entities)
    assert status == 0
    table = pq.read_table(out)
    assert table["subscriber_id"].to_pylist() == [2, 1]
    assert table["subscriber_contract"].to_pylist() == ["six", "five"]
    vector = [feature.name for feature in load_contract("customer_churn_v1").features]
    assert table.column_names == ["subscriber_id", "event_timestamp", "note", *vector]
    manifest = json.loads(manifest_path(out).read_text())
    assert manifest["rows"] == 2
    assert manifest["interval"] == {
        "first": "2026-03-01T00:00:00.000000Z",
        "last": "2026-03-01T02:00:00.000000Z",
    }
    assert manifest["entities"] == {"file": "asked.parquet"}
    assert manifest["views"]["subscriber_profile"] == {
        "table": "fct_subscriber_profile.parquet",
        "rows_read": 2,
        "newest_event_timestamp": "2026-03-01T00:00:00.000000Z",
        "newest_created_timestamp": "2026-03-01T01:00:00.000000Z",
        "entity_rows_without_value": 0,
    }
    before = out.read_bytes(), manifest_path(out).read_bytes()
    assert build(snapshot, entities)[0] == 0
    assert (out.read_bytes(), manifest_path(out).read_bytes()) == before


def test_what_is_refused_leaves_the_earlier_training_set_alone(
    snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, out = build(snapshot, write_entities(tmp_path / "good.parquet", [(1, START)]))
    before = out.read_bytes()
    late = write_entities(tmp_path / "early.parquet", [(1, START), (2, START)])
    assert build(snapshot, late)[0] == 1
    assert "subscriber_tenure_months may not be missing" in capsys.readouterr().err
    assert build(snapshot, write_entities(tmp_path / "none.parquet", []))[0] == 1
    assert "there are no entity rows" in capsys.readouterr().err
    assert build(snapshot, tmp_path / "absent.parquet")[0] == 1
    assert "absent.parquet can't be read" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["churn.manifest.json", "churn.parquet"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--labels", "fraud", "--from", "2026-03-01", "--to", "2026-03-02"],
        ["--labels", "fraud", "--from", "2026-03-02", "--to", "2026-03-01", "--known-as-of", "2026-04-01"],
        ["--entities", "a.parquet", "--from", "2026-03-02"],
        ["--entities", "a.parquet", "--labels", "churn"],
        ["--labels", "fraud", "--from", "yesterday", "--to", "2026-03-01", "--known-as-of", "2026-04-01"],
    ],
)
def test_a_call_that_says_too_little_or_too_much_is_refused(arguments: list[str]):
    with pytest.raises(SystemExit) as refusal:
        main(["--service", "fraud_detection_v1", "--out", "x.parquet", *arguments])
    assert refusal.value.code == 2


def test_copies_of_tables_read_like_the_tables(tmp_path: Path):
    rows: list[Row] = [(key, key, 2 * key, key, float(key), "calm") for key in range(30)]
    pq.write_table(buyer_table(rows), tmp_path / "fct_buyer_habits.parquet")
    pq.write_table(shop_table([(1, 0, 0, 4)]), tmp_path / "fct_shop_today.parquet")
    questions = asked([(key % 32, 1, 3 * key % 50, 1.0) for key in range(64)])
    memory = MemoryTables({"buyer_habits": buyer_table(rows), "shop_today": shop_table([(1, 0, 0, 4)])})
    copies = ParquetTables(tmp_path)
    assert copies.rows("buyer_habits") == 30
    expected = built(contract_with({}), memory, questions)
    assert built(contract_with({}), copies, questions) == expected
    assert built(contract_with({}), copies, questions, slice_rows=7) == expected
    (tmp_path / "fct_shop_today.parquet").unlink()
    with pytest.raises(FeatureTableError, match=r"fct_shop_today\.parquet is not there"):
        built(contract_with({}), copies, questions)


def test_every_contract_can_be_built_for(tmp_path: Path):
    """Each view is read by the vector or an expression, so that no field is fetched in vain."""
    for path in sorted((CONTRACTS_DIR / "feature_services").glob("*.yaml")):
        contract = load_contract(path.stem)
        readings = TrainingSetBuilder(contract, ParquetTables(tmp_path)).readings
        assert set(readings) == {view.name for view in contract.views}
