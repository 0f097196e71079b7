"""Feast on the running stack: what training and serving read, compared with an oracle over the raw rows."""

import json
import math
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from common_test_utils import (
    MICROSECOND,
    ROOT_DIR,
    Rehearsal,
    Transaction,
    expected_vector,
    transaction,
)
from feast import FeatureStore

from feature_contract import load_contract
from materialize import materialize, parse_time

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FRAUD, CHURN = load_contract("fraud_detection_v1"), load_contract("customer_churn_v1")
MATERIALIZE = "run_feast_materialize_incremental.sh"

# Customer 1 and terminal 100 have, around March 11th, every row that a careless join would let through.
BEFORE_MIDNIGHT = transaction(1, "2026-03-10 23:59:59", 1, 100, 10_000, is_fraud=1)
AFTER_MIDNIGHT = transaction(2, "2026-03-11 00:00:01", 1, 100, 1_000)
AT_NOON = transaction(3, "2026-03-11 12:00:00", 1, 100, 2_000)
AT_NOON_TOO = transaction(4, "2026-03-11 12:00:00", 1, 101, 4_000)
AFTER_NOON = transaction(5, "2026-03-11 12:00:01", 1, 100, 8_000)
DAY_BEFORE_MATURITY = transaction(6, "2026-03-17 23:59:59", 2, 100, 500)
DAY_OF_MATURITY = transaction(7, "2026-03-18 00:00:01", 2, 100, 500)
CAME_LATE = transaction(8, "2026-03-20 10:00:00", 50, 150, 700, known_at="2026-03-22 12:00:00")
BEFORE_IT_CAME = transaction(9, "2026-03-21 13:00:00", 50, 150, 300)
AFTER_IT_CAME = transaction(10, "2026-03-22 13:00:00", 50, 150, 500)
LAST = transaction(11, "2026-03-24 20:00:00", 1, 100, 1_234)
# Customer 60: one that comes an hour late, others before and after; the last microsecond, and midnight.
FIRST_OF_DAY = transaction(12, "2026-03-23 10:00:00", 60, 160, 100)
DELAYED = transaction(13, "2026-03-23 10:30:00", 60, 160, 200, known_at="2026-03-23 11:30:00")
WHILE_DELAYED = transaction(14, "2026-03-23 11:00:00", 60, 160, 400)
AFTER_DELAY = transaction(15, "2026-03-23 11:30:00.000001", 60, 160, 800)
LAST_MICROSECOND = transaction(16, "2026-03-23 23:59:59.999999", 60, 160, 1_600)
AT_MIDNIGHT = transaction(17, "2026-03-24 00:00:00", 60, 160, 3_200)
BY_HAND = [
    *(BEFORE_MIDNIGHT, AFTER_MIDNIGHT, AT_NOON, AT_NOON_TOO, AFTER_NOON),
    *(DAY_BEFORE_MATURITY, DAY_OF_MATURITY, CAME_LATE, BEFORE_IT_CAME, AFTER_IT_CAME, LAST),
    *(FIRST_OF_DAY, DELAYED, WHILE_DELAYED, AFTER_DELAY, LAST_MICROSECOND, AT_MIDNIGHT),
]
HAND_DAYS = {"2026-03-09", "2026-03-10", "2026-03-11"}
ORDINARY = [
    transaction(
        100 + n,
        pd.Timestamp("2026-02-01 09:00", tz="UTC") + n * pd.Timedelta(hours=7, minutes=13),
        n % 5,
        100 + n % 3,
        137 * n % 20_000,
        int(n % 9 == 0),
    )
    for n in range(170)
]
ROWS = BY_HAND + [row for row in ORDINARY if str(row.day.date()) not in HAND_DAYS]
SNAPSHOT = datetime(2026, 3, 1, tzinfo=UTC)


def subscriber(subscriber_id: int, tenure: int, charges: float) -> dict[str, Any]:
    words = {
        field.name: "No" if field.type == "string" else 0 for field in CHURN.view("subscriber_profile").fields
    }
    return {
        "subscriber_id": subscriber_id,
        **words,
        "subscriber_tenure_months": tenure,
        "subscriber_contract": "Two year",
        "subscriber_monthly_charges_usd": charges,
        "subscriber_total_charges_usd": tenure * charges,
        "snapshot_at": SNAPSHOT,
        "known_at": SNAPSHOT,
        "churned": subscriber_id % 2,
        "event_timestamp": SNAPSHOT,
    }


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    made = Rehearsal(tmp_path_factory.mktemp("feast"))
    try:
        made.load(ROWS)
        made.load_subscribers([subscriber(1, 12, 20.5), subscriber(2, 0, 99.0)])
        made.succeed("run_dbt_for_feast.sh")
        made.succeed("run_feast_apply.sh")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def store(rehearsal: Rehearsal) -> FeatureStore:
    """Feast as a client has it: configuration and registry, none of the definitions."""
    return FeatureStore(fs_yaml_file=rehearsal.feature_store_yaml)


def entity_rows(rows: list[Transaction], ask_later: timedelta = timedelta(0)) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "transaction_id": [row.transaction_id for row in rows],
            "customer_id": [row.customer_id for row in rows],
            "terminal_id": [row.terminal_id for row in rows],
            "event_timestamp": [row.moment + ask_later for row in rows],
            "tx_amount": [row.cents / 100 for row in rows],
            "tx_timestamp": [row.moment.timestamp() for row in rows],
        }
    )


def training_rows(
    store: FeatureStore,
    rows: list[Transaction],
    ask_later: timedelta = timedelta(0),
    known_only: bool = True,
) -> dict[int, dict[str, float]]:
    """Return the vectors by transaction, with the contract's word on missing values applied."""
    frame = store.get_historical_features(
        entity_df=entity_rows(rows, ask_later),
        features=store.get_feature_service("fraud_detection_v1"),
        filter_by_created_timestamp=known_only,
    ).to_df()
    assert frame.columns.is_unique
    for feature in FRAUD.features:
        if feature.on_missing == "default":
            frame[feature.name] = frame[feature.name].fillna(feature.default)
    names = [feature.name for feature in FRAUD.features]
    return {
        int(row["transaction_id"]): {name: row[name] for name in names}
        for row in frame.to_dict(orient="records")
    }


def test_contract_is_published_with_its_service(store: FeatureStore):
    for contract in (FRAUD, CHURN):
        assert store.get_feature_service(contract.name).tags["contract"] == contract.canonical_json()


def test_applying_again_changes_nothing(rehearsal: Rehearsal, store: FeatureStore):
    def updates() -> dict[str, datetime | None]:
        store.refresh_registry()
        views = store.registry.list_all_feature_views(store.project)
        return {view.name: view.last_updated_timestamp for view in views}

    before = updates()
    rehearsal.succeed("run_feast_apply.sh")
    assert {view.name for contract in (FRAUD, CHURN) for view in contract.views} < set(before)
    assert updates() == before


def test_training_rows_equal_the_oracle(store: FeatureStore):
    """Every transaction, to the last bit, but the one before the late row came: it is looked at below."""
    rows = [row for row in ROWS if row is not BEFORE_IT_CAME]
    assert len(rows) > 150
    assert training_rows(store, rows) == {row.transaction_id: expected_vector(ROWS, row) for row in rows}


def test_a_transaction_sees_neither_itself_nor_its_twin_nor_yesterdays_total(store: FeatureStore):
    """By hand: 100.00 at 23:59:59, then 10.00 at 00:00:01, 20.00 and 40.00 at noon, 80.00 a second later.

    A microsecond later a transaction's own row is true: the two at noon would see each other and themselves.
    A join that takes the latest running total whatever its day counts the 100.00 twice at 00:00:01.
    """
    scored = [AFTER_MIDNIGHT, AT_NOON, AT_NOON_TOO, AFTER_NOON]
    vectors = training_rows(store, scored)
    counts = [vectors[row.transaction_id]["customer_tx_count_1d"] for row in scored]
    means = [vectors[row.transaction_id]["customer_tx_amount_mean_1d"] for row in scored]
    assert counts == [2, 3, 3, 5]
    assert means == [110 / 2, 130 / 3, 150 / 3, 250 / 5]

    later = training_rows(store, scored, ask_later=MICROSECOND)
    assert [later[row.transaction_id]["customer_tx_count_1d"] for row in scored] == [3, 5, 5, 6]


def test_totals_hold_what_had_arrived_when_it_had_arrived(store: FeatureStore):
    """By hand: 1.00, 2.00 that comes an hour late, 4.00 meanwhile, 8.00 right after it, 16.00 in the last
    microsecond, and 32.00 at midnight, for which the 31.00 before it are a full day.
    """
    scored = [FIRST_OF_DAY, WHILE_DELAYED, AFTER_DELAY, LAST_MICROSECOND, AT_MIDNIGHT]
    vectors = training_rows(store, scored)
    counts = [vectors[row.transaction_id]["customer_tx_count_1d"] for row in scored]
    means = [vectors[row.transaction_id]["customer_tx_amount_mean_1d"] for row in scored]
    assert counts == [1, 2, 4, 5, 6]
    assert means == [1, 5 / 2, 15 / 4, 31 / 5, 63 / 6]


def test_a_fraud_raises_the_terminals_risk_only_once_its_label_is_known(store: FeatureStore):
    """The fraud of March 10th at terminal 100 is known on the 17th at 23:59:59, and counts from the 18th."""
    vectors = training_rows(store, [DAY_BEFORE_MATURITY, DAY_OF_MATURITY])
    before, after = vectors[DAY_BEFORE_MATURITY.transaction_id], vectors[DAY_OF_MATURITY.transaction_id]
    assert (before["terminal_labelled_tx_count_1d"], before["terminal_fraud_risk_1d"]) == (0, 0.0)
    assert (after["terminal_labelled_tx_count_1d"], after["terminal_fraud_risk_1d"]) == (1, 1.0)


def test_a_row_that_came_late_is_not_seen_before_it_came(store: FeatureStore):
    """One of the 20th came on the 22nd at noon: unknown to one of the 21st, known to one of the 22nd."""
    scored = [BEFORE_IT_CAME, AFTER_IT_CAME]
    known, naive = training_rows(store, scored), training_rows(store, scored, known_only=False)
    before, after = BEFORE_IT_CAME.transaction_id, AFTER_IT_CAME.transaction_id
    assert (known[before]["customer_tx_count_7d"], known[after]["customer_tx_count_7d"]) == (1, 3)
    assert known[after]["customer_tx_amount_mean_7d"] == 5.0
    assert naive[before]["customer_tx_count_7d"] == 2


def test_unknown_entities_have_empty_windows(store: FeatureStore):
    stranger = transaction(999, "2026-03-24 10:00:00", 777, 888, 5_000)
    assert training_rows(store, [stranger])[999] == expected_vector(ROWS, stranger)


def test_churn_rows_are_the_profiles(store: FeatureStore):
    frame = store.get_historical_features(
        entity_df=pd.DataFrame({"subscriber_id": [1, 2], "event_timestamp": [SNAPSHOT, SNAPSHOT]}),
        features=store.get_feature_service("customer_churn_v1"),
        filter_by_created_timestamp=True,
    ).to_df()
    got = frame.set_index("subscriber_id").sort_index()
    assert got["subscriber_tenure_months"].tolist() == [12, 0]
    assert got["subscriber_monthly_charges_usd"].tolist() == [20.5, 99.0]
    assert set(got["subscriber_contract"]) == {"Two year"}
    assert {feature.name for feature in CHURN.features} <= set(frame.columns)


def online_vector(store: FeatureStore, scored: Transaction) -> dict[str, float]:
    response = store.get_online_features(
        features=store.get_feature_service("fraud_detection_v1"),
        entity_rows=[
            {
                "customer_id": scored.customer_id,
                "terminal_id": scored.terminal_id,
                "tx_amount": scored.cents / 100,
                "tx_timestamp": scored.moment.timestamp(),
            }
        ],
    ).to_dict()
    return {
        feature.name: scored.cents / 100 if feature.name == "tx_amount" else response[feature.name][0]
        for feature in FRAUD.features
    }


def as_of(time: str) -> Transaction:
    """A request at a time on the last day, of the customer and terminal that were active on it."""
    return transaction(1_000, time, LAST.customer_id, LAST.terminal_id, 4_321)


def test_served_vector_equals_the_oracle_as_of_each_materialization(
    rehearsal: Rehearsal, store: FeatureStore
):
    """Before and after the last transaction of the day, and just past midnight; a rerun changes nothing."""
    for end in ("2026-03-24T12:00:00Z", "2026-03-24T21:00:00Z", "2026-03-25T00:00:00Z"):
        request = as_of((pd.Timestamp(end) + pd.Timedelta(seconds=5)).strftime("%Y-%m-%d %H:%M:%S"))
        for _ in range(2 if end.endswith("T21:00:00Z") else 1):
            materialize(store, parse_time(end), None)
            assert online_vector(store, request) == expected_vector(ROWS, request)


def test_an_earlier_end_leaves_a_later_online_store_alone_unless_it_is_told_from_when(
    rehearsal: Rehearsal, store: FeatureStore
):
    noon, night = as_of("2026-03-24 12:00:05"), as_of("2026-03-25 00:00:05")
    output = rehearsal.succeed(MATERIALIZE, "2026-03-24T12:00:00Z")
    assert "stands later than 2026-03-24T12:00:00+00:00: customer_daily" in output
    assert online_vector(store, night) == expected_vector(ROWS, night)
    rehearsal.succeed(MATERIALIZE, "2026-03-24T12:00:00Z", "--from", "2026-03-23")
    assert online_vector(store, noon) == expected_vector(ROWS, noon)


def test_a_corrected_day_reaches_the_online_store(rehearsal: Rehearsal, store: FeatureStore):
    """Feast's incremental command would not look back, and its writer would skip a row of a known time."""
    end, request = "2026-03-25T01:00:00Z", as_of("2026-03-25 01:00:05")
    materialize(store, parse_time(end), None)
    assert online_vector(store, request) == expected_vector(ROWS, request)
    day = [row for row in ROWS if row.day == LAST.day]
    corrected = [
        transaction(
            row.transaction_id, row.moment, row.customer_id, row.terminal_id, row.cents + 100, row.is_fraud
        )
        for row in day
    ]
    rows = [row for row in ROWS if row.day != LAST.day] + corrected
    try:
        rehearsal.load(corrected)
        rehearsal.succeed("run_dbt_for_feast.sh")
        materialize(store, parse_time(end), None)
        served = online_vector(store, request)
        assert served == expected_vector(rows, request)
        assert served != expected_vector(ROWS, request)
    finally:
        rehearsal.load(day)
        rehearsal.succeed("run_dbt_for_feast.sh")
        materialize(store, parse_time(end), None)


def test_profiles_are_served(store: FeatureStore):
    response = store.get_online_features(
        features=store.get_feature_service("customer_churn_v1"),
        entity_rows=[{"subscriber_id": 1}, {"subscriber_id": 555}],
    ).to_dict()
    assert response["subscriber_tenure_months"] == [12, None]
    assert response["subscriber_contract"] == ["Two year", None]


CLIENT = """
import json, sys
import pandas as pd
from feast import FeatureStore
ours = ("feast_repository", "feature-store-management")
assert not [path for path in sys.path if path.endswith(ours)], sys.path
store = FeatureStore(fs_yaml_file=sys.argv[1])
view = store.get_on_demand_feature_view("transaction_on_demand")
rows = pd.DataFrame(json.load(open(sys.argv[2])))
print(json.dumps(view.feature_transformation.udf(rows).to_dict(orient="list")))
"""


def test_another_roots_environment_computes_on_demand_features_from_the_registry(
    rehearsal: Rehearsal, tmp_path: Path
):
    """It has Feast, NumPy and pandas, of its own versions, and none of this root's modules."""
    local_dir = Path(os.environ.get("LOCAL_DIR", ROOT_DIR.parent / ".local"))
    python = local_dir / "venvs" / "ml-model-development" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing: run `make setup` in ml-model-development")
    cases = [
        case
        for case in json.loads((ROOT_DIR / "contracts" / "expression_vectors.json").read_text())["cases"]
        if case["name"].startswith("fraud_detection_v1 customer_tx_amount_mean_7d")
    ]
    names = {name for case in cases for name in case["inputs"]}
    unrelated = {
        f"{entity}_{measure}_full_{days}d": 0
        for entity, measure in (
            ("customer", "tx_count"),
            ("customer", "tx_amount_sum"),
            ("terminal", "tx_count"),
        )
        for days in (1, 7, 30)
    } | {"terminal_tx_count_today": 0, "terminal_today_day": 0}
    rows = [unrelated | dict.fromkeys(names) | case["inputs"] for case in cases]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    environment = {k: v for k, v in rehearsal.environment().items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # The client's own description of the store: its environment may lack the online store's client.
    text = rehearsal.feature_store_yaml.read_text()
    online = text.index("online_store:"), text.index("materialization:")
    configuration = tmp_path / "feature_store.yaml"
    configuration.write_text(text[: online[0]] + "online_store: null\n" + text[online[1] :])
    done = subprocess.run(
        [str(python), "-I", "-c", CLIENT, str(configuration), str(tmp_path / "rows.json")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    values = json.loads(done.stdout.splitlines()[-1])["customer_tx_amount_mean_7d"]
    assert len(values) == len(cases) > 4
    for case, value in zip(cases, values, strict=True):
        expected = math.nan if case["expected"] is None else case["expected"]
        assert value == expected or (math.isnan(value) and math.isnan(expected)), case["name"]
