"""Backfills on the running stack: whatever was damaged, killed or new, the tables end as a full build leaves
them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from common_test_utils import DAY, MICROSECOND, ROOT_DIR, Rehearsal
from feast import FeatureStore
from test_dbt_models import FIRST_DAY, random_transactions

from backfill import __main__ as command
from backfill.build_lock import BuildRunningError, BuildSettings, build_lock
from backfill.run import Backfill
from data_source_connectors.database_connector import DatabaseSettings
from data_source_connectors.settings import read_settings
from lineage.dbt_models import Project
from materialize import materialize

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DAYS = 40
# Late ones only among the first days, so that the last windows are known by their midnight.
ROWS = [
    row if row.day < FIRST_DAY + 8 * DAY else replace(row, known_at=row.moment)
    for row in random_transactions(range(DAYS), seed=11, first_id=0)
]
EVERYTHING = (FIRST_DAY, FIRST_DAY + DAYS * DAY)
Checksums = dict[str, tuple[int, int]]


class Store(Rehearsal):
    """A rehearsal that knows all of its tables, and runs backfills in this process."""

    def checksums(self) -> Checksums:
        """Return count and hash of every table that dbt builds, and of what it remembers of them."""
        names = [
            model.relation
            for model in Project(prefix=self.prefix).models.values()
            if model.materialized in ("table", "incremental")
        ]
        statement = "select count(*), coalesce(bit_xor(hash_record_extended(t, 0)), 0) from {} as t"
        return {
            name: self.connection.execute(statement.format(name)).fetchone()  # type: ignore[misc, arg-type]
            for name in [*names, self.table("intermediate.built_days")]
        }

    def backfill(self, days: tuple[pd.Timestamp, pd.Timestamp], *options: str) -> None:
        """Run a backfill that must succeed."""
        first, last = (str(day.date()) for day in days)
        assert command.main(["--from", first, "--to", last, *options]) == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("backfill"))
    environment = {
        "FEATURE_STORE_SCHEMA_PREFIX": made.prefix,
        "REPORTS_DIR": str(made.folder / "reports"),
        "FEATURE_STORE_BUILD_LOCK_WAIT_SECONDS": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            made.load(ROWS)
            draw = random.Random(3)
            made.connection.execute(
                f"insert into {made.table('raw.movies')}"
                " select n, 'Movie', 1990, 'Drama' from generate_series(1, 5) as n"
            )
            with made.connection.cursor().copy(f"copy {made.table('raw.ratings')} from stdin") as copy:
                for viewer in range(20):
                    for movie in draw.sample(range(1, 6), 3):
                        moment = FIRST_DAY + draw.randrange(DAYS * 86_400) * pd.Timedelta(seconds=1)
                        copy.write_row((viewer, movie, draw.randrange(1, 11) / 2, moment, moment))
            made.succeed("run_dbt_for_feast.sh")
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def full_build(store: Store) -> Checksums:
    """What the full build left."""
    return store.checksums()


def test_models_are_rendered_as_dbt_compiles_them(store: Store, full_build: Checksums) -> None:
    manifest = json.loads((store.folder / "target" / "manifest.json").read_text())
    compiled = {
        node["name"]: node["compiled_code"].replace(f'"{os.environ["FEATURE_STORE_DB_NAME"]}".', "")
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
    }
    own = {name: model.sql for name, model in Project(prefix=store.prefix).models.items() if model.sql}
    assert {name: sql.replace('"', "").split() for name, sql in compiled.items()} == {
        name: sql.replace('"', "").split() for name, sql in own.items()
    }


@pytest.mark.parametrize("options", [("--workers", "3"), ("--workers", "2", "--batch-days", "5")])
def test_damaged_tables_are_rebuilt_bit_for_bit(
    store: Store, full_build: Checksums, options: tuple[str, ...]
) -> None:
    execute = store.connection.execute
    for name in ("customer_daily", "terminal_daily", "customer_today", "terminal_today"):
        table = store.table(f"features.fct_{name}")
        execute(f"delete from {table} as t where hash_record_extended(t, 1) % 3 = 0")
    execute(f"update {store.table('intermediate.int_customer_daily_totals')} set tx_count = 99")
    execute(f"truncate {store.table('intermediate.int_transaction_days')}")
    execute(f"truncate {store.table('features.fct_viewer_taste')}")
    execute(f"delete from {store.table('labels.fct_fraud_labels')} where transaction_id % 2 = 0")
    assert store.checksums() != full_build
    first, last = EVERYTHING
    store.backfill((first, last + 366 * DAY), *options)
    assert store.checksums() == full_build


def test_only_the_days_asked_for_are_touched(store: Store, full_build: Checksums) -> None:
    table = store.table("features.fct_customer_daily")
    days = (FIRST_DAY + 20 * DAY, FIRST_DAY + 24 * DAY)
    outside = f"select ctid, * from {table} where event_timestamp < %s or event_timestamp >= %s order by 1"
    bounds = [days[0], days[1] + DAY]
    before = store.connection.execute(outside, bounds).fetchall()
    store.connection.execute(f"delete from {table} where event_timestamp between %s and %s", list(days))
    store.backfill(days, "--views", "customer_daily")
    assert store.connection.execute(outside, bounds).fetchall() == before
    assert store.checksums() == full_build


def test_a_killed_backfill_continues(store: Store, full_build: Checksums) -> None:
    table = store.table("features.fct_terminal_daily")
    store.connection.execute(f"update {table} set terminal_fraud_risk_7d = 0.5")
    first, last = (str(day.date()) for day in EVERYTHING)
    options = ["--from", first, "--to", last, "--views", "terminal_daily"]
    options += ["--workers", "1", "--batch-days", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "backfill", *options],
        cwd=ROOT_DIR,
        env=os.environ | {"PYTHONPATH": str(ROOT_DIR)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    ledger = store.table("intermediate.backfill_batches")
    done, deadline = 0, time.monotonic() + 60
    while done < 10:
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        exists = store.connection.execute("select to_regclass(%s)", [ledger]).fetchone()
        if exists and exists[0]:
            row = store.connection.execute(f"select count(*) from {ledger}").fetchone()
            done = row[0] if row else 0
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_for_lock(store)
    assert command.main(options) == 0
    report = json.loads((Path(os.environ["REPORTS_DIR"]) / "backfill.json").read_text())
    assert done <= report["batches_done_before"] < report["batches"]
    assert store.checksums() == full_build
    assert store.connection.execute(f"select count(*) from {ledger}").fetchone() == (0,)


def wait_for_lock(store: Store) -> None:
    """Wait until the database has noticed that the holder is gone."""
    settings = BuildSettings(build_lock_wait_seconds=30).model_copy(update={"schema_prefix": store.prefix})
    with build_lock(read_settings(DatabaseSettings), settings, builder="the test"):
        pass


def test_days_of_the_stream_stay(store: Store, full_build: Checksums) -> None:
    """A day whose raw rows have not landed belongs to the stream, though it lies in the days rebuilt."""
    table = store.table("features.fct_customer_today")
    streamed = EVERYTHING[1] + 9 * pd.Timedelta(hours=1)
    store.connection.execute(f"insert into {table} values (1, %s, %s, 1, 2.5, 20000)", [streamed, streamed])
    try:
        store.backfill((FIRST_DAY, EVERYTHING[1] + DAY), "--views", "customer_today")
        rows = store.rows("features.fct_customer_today")
        assert sum(row["event_timestamp"] == streamed for row in rows) == 1
    finally:
        store.connection.execute(f"delete from {table} where event_timestamp = %s", [streamed])
    assert store.checksums() == full_build


def test_a_second_builder_is_turned_away_and_told_who_builds(
    store: Store, full_build: Checksums, capsys: pytest.CaptureFixture[str]
) -> None:
    database, settings = read_settings(DatabaseSettings), read_settings(BuildSettings)
    assert settings.schema_prefix == store.prefix
    with build_lock(database, settings, builder="the first builder"):
        with (
            pytest.raises(BuildRunningError, match="built by the first builder"),
            build_lock(database, settings, builder="the second"),
        ):
            pytest.fail("two builders at once")
        assert command.main(["--from", "2026-02-10", "--to", "2026-02-11"]) == 1
        assert "are being built by the first builder (session " in capsys.readouterr().err
        refused = store.run("run_dbt_for_feast.sh")
        assert refused.returncode == 1
        assert "run_dbt: the feature tables are being built by the first builder" in refused.stderr
        other = settings.model_copy(update={"schema_prefix": "another_"})
        with build_lock(database, other, builder="of other tables"):
            pass
    assert store.checksums() == full_build


def test_raw_rows_that_come_in_meanwhile_are_noticed(
    store: Store, full_build: Checksums, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batches before and after would be of different data, so the backfill does not count as done."""
    late = random_transactions(range(DAYS, DAYS + 1), seed=12, first_id=50_000)
    remembered = Backfill._side_by_side

    def load_first(self: Backfill, *arguments: object) -> object:
        store.load(late)
        return remembered(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Backfill, "_side_by_side", load_first)
    try:
        days = ["--from", "2026-03-01", "--to", "2026-03-02", "--views", "fraud_labels"]
        assert command.main(days) == 1
        assert "raw rows changed while the backfill ran" in capsys.readouterr().err
    finally:
        store.remove_days({row.day.date() for row in late})
    monkeypatch.undo()


def test_dbt_builds_on_what_a_backfill_left(store: Store, full_build: Checksums) -> None:
    """A corrected day, backfilled to the end: dbt finds nothing to do; a full build gives the same tables."""
    day = [row for row in ROWS if row.day == FIRST_DAY + 30 * DAY]
    store.load([replace(row, cents=row.cents + 1) for row in day])
    store.backfill((FIRST_DAY + 30 * DAY, EVERYTHING[1] + 366 * DAY))
    after = store.checksums()
    assert after != full_build
    days, built = store.table("intermediate.int_transaction_days"), store.table("intermediate.built_days")
    stale = store.connection.execute(
        f"select model, tx_date from {built} join {days} using (tx_date) where fingerprint <> "
        "transactions_fingerprint and model in ('fct_customer_daily', 'fct_customer_today')"
    )
    assert stale.fetchall() == []
    store.succeed("run_dbt_for_feast.sh", "--full-refresh")
    assert store.checksums() == after


def test_a_table_that_does_not_exist_is_made(store: Store) -> None:
    before = store.checksums()
    for name in ("fct_terminal_daily", "fct_movie_popularity"):
        store.connection.execute(f"drop table {store.table(f'features.{name}')}")
    store.connection.execute(
        f"delete from {store.table('intermediate.built_days')} where model = 'fct_terminal_daily'"
    )
    store.backfill((FIRST_DAY, EVERYTHING[1] + 366 * DAY), "--views", "terminal_daily", "movie_popularity")
    assert store.checksums() == before
    indexes = store.connection.execute(
        "select count(*) from pg_indexes where schemaname = %s and tablename = 'fct_terminal_daily'"
        " and indexdef like 'CREATE UNIQUE INDEX%%(terminal_id, event_timestamp)'",
        [store.table("features")],
    )
    assert indexes.fetchone() == (1,)


def test_a_model_with_other_columns_than_its_table_is_refused(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    table = store.table("features.fct_customer_daily")
    store.connection.execute(f"alter table {table} add column extra integer")
    try:
        assert command.main(["--from", "2026-03-01", "--to", "2026-03-02", "--views", "customer_daily"]) == 1
        assert "make it a new version" in capsys.readouterr().err
    finally:
        store.connection.execute(f"alter table {table} drop column extra")


WEEK = "last_7d as (partition by days.customer_id order by days.day rows between {} preceding"


def test_two_versions_of_a_service_are_served_at_once(store: Store, tmp_path: Path) -> None:
    """In version 2 a customer's week has five days; version 1 is what it was, bit for bit.

    The new version is made as a user makes it, in a working copy of this root.
    """
    root = tmp_path / "root"
    for folder in (*("backfill", "contracts", "data_source_connectors", "data_transformation_pipelines"),
                   *("feast_repository", "lineage", "scripts")):  # fmt: skip
        shutil.copytree(ROOT_DIR / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def run(*command: str) -> None:
        environment = store.environment() | {"PYTHONPATH": str(root)}
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    module = (sys.executable, "-m")
    run(*module, "lineage.versions", "--new-version", "fraud_detection_v1", "--views", "customer_daily")
    models = root / "data_transformation_pipelines" / "dbt_project_feast" / "models" / "marts"
    model = models / "fct_customer_daily_v2.sql"
    assert WEEK.format(7) in model.read_text()
    model.write_text(model.read_text().replace(WEEK.format(7), WEEK.format(5)))
    run(*module, "lineage.versions", "--accept", "a week of five days")
    run(*module, "lineage.versions", "--check")

    before = store.checksums()
    first, last = (str(day.date()) for day in (FIRST_DAY, EVERYTHING[1] + DAY))
    run(*module, "backfill", "--from", first, "--to", last, "--views", "customer_daily_v2")
    assert store.checksums() == before | {
        name: checksum for name, checksum in store.checksums().items() if name.endswith("built_days")
    }
    noted = {
        model: {
            (row["tx_date"], row["fingerprint"])
            for row in store.rows("intermediate.built_days")
            if row["model"] == model
        }
        for model in ("fct_customer_daily", "fct_customer_daily_v2")
    }
    assert noted["fct_customer_daily_v2"] == noted["fct_customer_daily"]
    assert len(noted["fct_customer_daily_v2"]) == DAYS

    tables = {1: store.rows("features.fct_customer_daily"), 2: store.rows("features.fct_customer_daily_v2")}
    old, new = (
        {(row["customer_id"], row["event_timestamp"]): row for row in tables[version]} for version in (1, 2)
    )
    assert old.keys() == new.keys()
    for (customer, midnight), row in new.items():
        days = [old.get((customer, midnight - n * DAY)) for n in range(5)]
        week = sum(day["customer_tx_count_full_1d"] for day in days if day)
        cents = sum(round(day["customer_tx_amount_sum_full_1d"] * 100) for day in days if day)
        changed = {"customer_tx_count_full_7d": week, "customer_tx_amount_sum_full_7d": cents / 100}
        assert row == old[customer, midnight] | changed

    run(str(root / "scripts" / "run_feast_apply.sh"))
    feast = FeatureStore(fs_yaml_file=store.feature_store_yaml)
    midnight = EVERYTHING[1]
    materialize(feast, (midnight + pd.Timedelta(hours=1)).to_pydatetime(), None)
    asked = [
        {
            "customer_id": customer,
            "terminal_id": 100,
            "tx_amount": 12.34,
            "tx_timestamp": midnight.timestamp() + 7,
        }
        for customer, day in old
        if day == midnight
    ]
    when = midnight + pd.Timedelta(seconds=7) - MICROSECOND
    week_1: list[float] = []
    week_2: list[float] = []
    for version, rows, seen in ((1, old, week_1), (2, new, week_2)):
        service = feast.get_feature_service(f"fraud_detection_v{version}")
        assert f'"version":{version}' in service.tags["contract"]
        served = feast.get_online_features(features=service, entity_rows=asked).to_df()
        trained = feast.get_historical_features(
            entity_df=pd.DataFrame(asked).assign(event_timestamp=when), features=service
        ).to_df()
        for frame in (served, trained):
            for row in frame.to_dict(orient="records"):
                full = rows[row["customer_id"], midnight]
                count = full["customer_tx_count_full_7d"] + 1
                mean = (full["customer_tx_amount_sum_full_7d"] + 0.0 + 12.34) / count
                assert (row["customer_tx_count_7d"], row["customer_tx_amount_mean_7d"]) == (count, mean)
                assert row["customer_tx_count_30d"] == full["customer_tx_count_full_30d"] + 1
                seen.append(count)
    assert len(week_1) == len(week_2) == 2 * len(asked) > 16
    assert week_1 != week_2
