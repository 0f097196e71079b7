"""Training sets on the running stack's PostgreSQL: equal to Feast's join value for value, without a leak."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from common_test_utils import DAY, MICROSECOND, ROOT_DIR, Rehearsal
from feast import FeatureService, FeatureStore

from feature_contract import load_contract
from training_sets.build import main, manifest_path

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FRAUD = load_contract("fraud_detection_v1")
VECTOR = [feature.name for feature in FRAUD.features]
TYPES = {"int64": "bigint", "float64": "double precision"}
START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 12
KEYS = range(1, 9)
POISON = 666_666.5
KNOWN_AS_OF = START + timedelta(days=15)


def history(draw: random.Random, key: int) -> list[tuple[datetime, datetime]]:
    """Return the two times of an entity's rows: in time, late, corrected, overtaken; one row of the first."""
    times = set()
    for day in range(DAYS):
        for _ in range(draw.randrange(4)):
            event = START + day * DAY + timedelta(seconds=draw.choice([0, 0, 3_600, draw.randrange(86_400)]))
            late = draw.choice([0, 0, 0, 1e-6, 7_200, 86_400, 3 * 86_400])
            times.add((event, event + timedelta(seconds=late)))
    rows = sorted(times, key=lambda _: draw.random())
    return rows if key > 1 else rows[:1]


def make_tables(rehearsal: Rehearsal) -> list[datetime]:
    """Create the four feature tables with random histories; return every time in them."""
    draw, times = random.Random(7), []
    rehearsal.connection.execute(f"create schema {rehearsal.prefix}features")
    for view in FRAUD.views:
        [key] = [entity.join_key for entity in FRAUD.entities if entity.name == view.entity]
        fields = ", ".join(f"{field.name} {TYPES[field.type]}" for field in view.fields)
        table = rehearsal.table(f"features.fct_{view.name}")
        rehearsal.connection.execute(
            f"create table {table} "
            f"({key} bigint, event_timestamp timestamptz, created_timestamp timestamptz, {fields}, "
            f"unique ({key}, event_timestamp, created_timestamp))"
        )
        with rehearsal.connection.cursor() as cursor, cursor.copy(f"copy {table} from stdin") as copy:
            for each in KEYS:
                for event, created in history(draw, each):
                    values = [value_of(field.name, field.type, event, draw) for field in view.fields]
                    copy.write_row((each, event, created, *values))
                    times += [event, created]
    return times


def value_of(name: str, kind: str, event: datetime, draw: random.Random) -> float | None:
    if name.endswith("_today_day"):
        return (event - datetime(1970, 1, 1, tzinfo=UTC)) // DAY
    if draw.random() < 0.1:
        return None
    return draw.randrange(500) if kind == "int64" else draw.random() * 100


def make_labels(rehearsal: Rehearsal, times: list[datetime]) -> pd.DataFrame:
    """Create the label tables; the labels stand at the tables' times, their edges, and anywhere."""
    draw = random.Random(8)
    edges = [
        time + age + off
        for time in times
        for age in (timedelta(0), DAY)
        for off in (-MICROSECOND, timedelta(0), MICROSECOND)
    ]
    moments = draw.sample(edges, 900) + [
        START + timedelta(seconds=draw.random() * 86_400 * DAYS) for _ in range(300)
    ]
    rows = pd.DataFrame(
        {
            "transaction_id": range(len(moments)),
            "customer_id": [draw.randrange(0, 10) for _ in moments],
            "terminal_id": [draw.randrange(0, 10) for _ in moments],
            "tx_amount": [draw.randrange(10_000) / 100 for _ in moments],
            "event_timestamp": pd.to_datetime(moments, utc=True).floor("us"),
            "is_fraud": [draw.randrange(2) for _ in moments],
        }
    )
    late = pd.Series([draw.choice([0, 0, 0, 5]) for _ in moments])
    rows["label_known_at"] = rows["event_timestamp"] + 7 * DAY + pd.to_timedelta(late, unit="D")
    # At the very edge of maturity, and a microsecond past it.
    rows.loc[0, ["event_timestamp", "label_known_at"]] = [KNOWN_AS_OF - 7 * DAY, KNOWN_AS_OF]
    past = KNOWN_AS_OF - 7 * DAY + MICROSECOND
    rows.loc[1, ["event_timestamp", "label_known_at"]] = [past, past + 7 * DAY]
    # Known at once, as a chargeback may be, but younger than labels must be.
    rows.loc[2, ["event_timestamp", "label_known_at"]] = [past, past]
    execute = rehearsal.connection.execute
    execute(f"create schema {rehearsal.prefix}labels")
    execute(
        f"create table {rehearsal.table('labels.label_maturity')} as "
        "select 'fraud' as label_name, 7 as delay_days, 1 as policy_version"
    )
    table = rehearsal.table("labels.fct_fraud_labels")
    execute(
        f"create table {table} (transaction_id bigint, customer_id bigint, terminal_id bigint, "
        "tx_amount float8, event_timestamp timestamptz, is_fraud smallint, label_known_at timestamptz)"
    )
    with rehearsal.connection.cursor() as cursor, cursor.copy(f"copy {table} from stdin") as copy:
        for row in rows.itertuples(index=False):
            copy.write_row(tuple(row))
    return rows


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    made = Rehearsal(tmp_path_factory.mktemp("training"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def labels(rehearsal: Rehearsal) -> pd.DataFrame:
    made = make_labels(rehearsal, make_tables(rehearsal))
    rehearsal.succeed("run_feast_apply.sh")
    return made


@pytest.fixture(scope="module")
def service(rehearsal: Rehearsal, labels: pd.DataFrame) -> tuple[FeatureStore, FeatureService]:
    store = FeatureStore(fs_yaml_file=rehearsal.feature_store_yaml)
    return store, store.get_feature_service(FRAUD.name)


@pytest.fixture
def in_rehearsal(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_STORE_SCHEMA_PREFIX", rehearsal.prefix)


def by_feast(
    service: tuple[FeatureStore, FeatureService], table: str, known_only: bool = True
) -> pd.DataFrame:
    """Return Feast's training rows for a label table, by transaction, with the contract's defaults."""
    store, features = service
    frame = store.get_historical_features(
        entity_df="select transaction_id, customer_id, terminal_id, event_timestamp, tx_amount, "
        f"extract(epoch from event_timestamp)::float8 as tx_timestamp from {table}",
        features=features,
        filter_by_created_timestamp=known_only,
    ).to_df()
    for feature in FRAUD.features:
        if feature.on_missing == "default":
            frame[feature.name] = frame[feature.name].fillna(feature.default)
    return frame.set_index("transaction_id").sort_index()[VECTOR].astype("float64")


def by_builder(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).set_index("transaction_id").sort_index()[VECTOR].astype("float64")


def write_entities(path: Path, labels: pd.DataFrame) -> Path:
    columns = ["transaction_id", "customer_id", "terminal_id", "event_timestamp", "tx_amount"]
    pq.write_table(pa.Table.from_pandas(labels[columns], preserve_index=False), path)
    return path


def build(out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["--service", FRAUD.name, *arguments, "--out", str(out)]) == 0
    return json.loads(manifest_path(out).read_text())


@pytest.mark.usefixtures("in_rehearsal")
def test_every_value_is_feasts_at_every_edge(
    rehearsal: Rehearsal, labels: pd.DataFrame, service: tuple[FeatureStore, FeatureService], tmp_path: Path
):
    """Late, corrected and overtaken rows, both edges of a time to live, nulls, unknown entities."""
    out = tmp_path / "set.parquet"
    manifest = build(out, "--entities", str(write_entities(tmp_path / "asked.parquet", labels)))
    found, expected = by_builder(out), by_feast(service, rehearsal.table("labels.fct_fraud_labels"))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert manifest["rows"] == len(labels) == len(found)
    assert all(0 < view["entity_rows_without_value"] < len(labels) for view in manifest["views"].values())
    naive = by_feast(service, rehearsal.table("labels.fct_fraud_labels"), known_only=False)
    assert not found.equals(naive), "the histories hold rows that a join on one time lets through"


@pytest.mark.usefixtures("in_rehearsal")
def test_only_labels_that_were_known_and_mature_are_in_the_set(labels: pd.DataFrame, tmp_path: Path):
    out = tmp_path / "set.parquet"
    first, last = START + 2 * DAY, START + 9 * DAY
    window = ["--from", f"{first:%F}", "--to", f"{last:%F}", "--known-as-of", KNOWN_AS_OF.isoformat()]
    manifest = build(out, "--labels", "fraud", *window)
    times, known = labels["event_timestamp"], labels["label_known_at"]
    in_window = (times >= first) & (times < last + DAY)
    wanted = labels[in_window & (known <= KNOWN_AS_OF) & (times + 7 * DAY <= KNOWN_AS_OF)]
    found = pd.read_parquet(out)
    assert sorted(found["transaction_id"]) == sorted(wanted["transaction_id"])
    assert {0} == {0, 1, 2} & set(found["transaction_id"]), (
        "mature at the very moment, and a microsecond too young"
    )
    assert found["event_timestamp"].is_monotonic_increasing
    assert manifest["labels"] == {
        "name": "fraud",
        "from": "2026-03-03",
        "to": "2026-03-10",
        "known_as_of": "2026-03-16T00:00:00+00:00",
        "delay_days": 7,
        "policy_version": 1,
    }
    same = tmp_path / "same.parquet"
    build(same, "--entities", str(write_entities(tmp_path / "asked.parquet", wanted)))
    pd.testing.assert_frame_equal(by_builder(out), by_builder(same), check_exact=True)


@pytest.mark.usefixtures("in_rehearsal")
def test_a_poisoned_row_that_came_late_is_in_no_training_set(
    rehearsal: Rehearsal, labels: pd.DataFrame, service: tuple[FeatureStore, FeatureService], tmp_path: Path
):
    """The canary: newer than any other row at noon, known a week later; a join on one time alone shows it."""
    noon = START + 5 * DAY + timedelta(hours=12)
    scored = labels[:3].assign(
        customer_id=[1, 2, 3], event_timestamp=[noon, noon + timedelta(hours=6), noon + timedelta(hours=11)]
    )
    asked = rehearsal.table("raw.asked")
    rehearsal.connection.execute(
        f"create table {asked} (transaction_id bigint, customer_id bigint, terminal_id bigint, "
        "tx_amount double precision, event_timestamp timestamptz)"
    )
    columns = ["transaction_id", "customer_id", "terminal_id", "tx_amount", "event_timestamp"]
    with rehearsal.connection.cursor() as cursor, cursor.copy(f"copy {asked} from stdin") as copy:
        for row in scored[columns].itertuples(index=False):
            copy.write_row(tuple(row))
    today = rehearsal.table("features.fct_customer_today")
    day = (noon - datetime(1970, 1, 1, tzinfo=UTC)) // DAY
    for customer in (1, 2, 3):
        rehearsal.connection.execute(
            f"insert into {today} values (%s, %s, %s, 1, %s, %s)",
            [customer, noon, noon + 7 * DAY, POISON, day],
        )
    out, entities = tmp_path / "set.parquet", write_entities(tmp_path / "asked.parquet", scored)
    build(out, "--entities", str(entities))
    assert by_builder(out)["customer_tx_amount_mean_1d"].max() < POISON / 100
    naive = by_feast(service, asked, known_only=False)
    assert naive["customer_tx_amount_mean_1d"].min() > POISON / 1000, (
        "the canary sings where time is one column"
    )
    rehearsal.connection.execute(
        f"update {today} set created_timestamp = event_timestamp where event_timestamp = %s", [noon]
    )
    build(out, "--entities", str(entities))
    known_at_once = by_builder(out)
    assert known_at_once["customer_tx_amount_mean_1d"].min() > POISON / 1000, "it sings in the builder too"


def test_the_stacks_own_labels_get_feasts_values(rehearsal: Rehearsal, tmp_path: Path):
    """Three days of the loaded data set, through the real tables and the real registry."""
    newest = rehearsal.connection.execute("select max(tx_date) from labels.fct_fraud_labels").fetchone()
    if newest is None or newest[0] is None:
        pytest.fail(
            "labels.fct_fraud_labels is empty: load transactions and run scripts/run_dbt_for_feast.sh"
        )
    last, first = newest[0] - timedelta(days=10), newest[0] - timedelta(days=12)
    out = tmp_path / "set.parquet"
    manifest = build(
        out,
        "--labels",
        "fraud",
        "--from",
        str(first),
        "--to",
        str(last),
        "--known-as-of",
        str(newest[0] + DAY),
    )
    store = FeatureStore(repo_path=str(ROOT_DIR / "feast_repository"))
    rows = f"(select * from labels.fct_fraud_labels where tx_date between '{first}' and '{last}') as labels"
    expected = by_feast((store, store.get_feature_service(FRAUD.name)), rows)
    assert len(expected) > 1_000
    pd.testing.assert_frame_equal(by_builder(out), expected, check_exact=True)
    [dataset] = rehearsal.connection.execute("select dataset_id::text from raw.dataset").fetchone() or [None]
    assert manifest["data_version"] == dataset
