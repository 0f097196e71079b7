"""Every critical expectation on the running stack: silent on good rows, loud on a fault planted for it.

A feature store of the test's own: twenty days of sixty customers, built by dbt, without the keys and
constraints that would keep the faults out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from common_test_utils import ROOT_DIR, Rehearsal

from data_quality import check, engine, publication
from data_quality.suites import Schemas, Suite, Window, read_suites
from data_source_connectors.database_connector import DatabaseSettings
from data_source_connectors.settings import read_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LAST = datetime.now(UTC).date() - timedelta(days=1)
FIRST = LAST - timedelta(days=19)
SUITES = {suite.name: suite for suite in read_suites()}
CONTRACT_WORDS = {
    column: part["enum"][0]
    for column, part in json.loads(
        (ROOT_DIR / "contracts" / "schemas" / "raw.subscribers.v1.schema.json").read_text()
    )["properties"].items()
    if part.get("type") == "string" and "enum" in part
}
FLAGS = ["is_female", "is_senior", "has_partner", "has_dependents", "has_phone_service"]

GOOD_ROWS = f"""
insert into {{raw}}.transactions
select
    n,
    (date '{FIRST}' + n / 240)::timestamp at time zone 'UTC' + (n % 240) * interval '350 seconds',
    date '{FIRST}' + n / 240,
    n % 60,
    100 + n % 59,
    (100 + n * 37 % 9000) / 100.0,
    (date '{FIRST}' + n / 240)::timestamp at time zone 'UTC' + (n % 240) * interval '350 seconds'
from generate_series(0, 20 * 240 - 1) as n;
insert into {{raw}}.transaction_labels
select transaction_id, tx_date, (transaction_id % 20 = 0)::int, (transaction_id % 20 = 0)::int,
    tx_datetime + interval '7 days'
from {{raw}}.transactions;
insert into {{raw}}.subscribers (subscriber_id, {", ".join(f"subscriber_{flag}" for flag in FLAGS)},
    subscriber_has_paperless_billing, subscriber_tenure_months, subscriber_monthly_charges_usd,
    subscriber_total_charges_usd, {", ".join(CONTRACT_WORDS)}, snapshot_at, known_at)
select n, 0, 0, 1, 0, 1, 0, 12 + n % 20, 50, 50 * (12 + n % 20),
    {", ".join(f"'{word}'" for word in CONTRACT_WORDS.values())}, '{FIRST} 00:00+00', '{FIRST} 00:00+00'
from generate_series(1, 240) as n;
insert into {{raw}}.subscriber_labels
select subscriber_id, (subscriber_id % 4 = 0)::int, snapshot_at, snapshot_at + interval '30 days'
from {{raw}}.subscribers;
insert into {{raw}}.movies select n, 'Movie ' || n, 1990 + n, 'Drama|Comedy' from generate_series(1, 20) as n;
insert into {{raw}}.ratings select v, m, 3.5, '{FIRST} 00:00+00', '{FIRST} 00:00+00'
from generate_series(1, 5) as v, generate_series(1, 20) as m;
"""


@dataclass
class Store:
    """The rehearsal, Great Expectations on its database, and the names of its schemas."""

    rehearsal: Rehearsal
    checker: engine.Checker
    schemas: Schemas
    reports: Path

    def sql(self, text: str) -> str:
        """Return a statement with the names of the schemas filled in."""
        names = ("raw", "staging", "features", "labels", "quality")
        return text.format(**{name: self.schemas.name(name) for name in names})

    def run(self, text: str) -> None:
        """Run a statement on the rehearsal."""
        self.rehearsal.connection.execute(self.sql(text))  # type: ignore[arg-type]

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the rehearsal."""
        return self.rehearsal.connection.execute(self.sql(text)).fetchall()  # type: ignore[arg-type]

    def not_passed(self, suite: Suite) -> dict[str, engine.Result]:
        """Return what does not pass of a suite, on all days, by name."""
        window = Window(FIRST, LAST + timedelta(days=suite.table.endswith("_daily")))
        results = self.checker.run(suite, self.schemas, window)
        return {result.expectation.name: result for result in results if result.status != "passed"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    rehearsal = Rehearsal(tmp_path_factory.mktemp("quality"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            reports = rehearsal.folder / "reports"
            patch.setenv("FEATURE_STORE_SCHEMA_PREFIX", rehearsal.prefix)
            patch.setenv("REPORTS_DIR", str(reports))
            patch.delenv("FEATURE_STORE_RAW_SCHEMA", raising=False)
            schemas = Schemas(rehearsal.prefix, f"{rehearsal.prefix}raw")
            with engine.opened(read_settings(DatabaseSettings)) as checker:
                made = Store(rehearsal, checker, schemas, reports)
                made.run(GOOD_ROWS)
                rehearsal.succeed("run_dbt_for_feast.sh")
                rehearsal.connection.execute(WITHOUT_GUARDS.replace("PREFIX", f"{rehearsal.prefix}%"))  # type: ignore[arg-type]
                yield made
    finally:
        rehearsal.connection.execute(f"drop schema if exists {rehearsal.prefix}quality cascade")  # type: ignore[arg-type]
        rehearsal.close()


# What PostgreSQL itself would refuse must reach the checks: drop keys, constraints and "not null".
WITHOUT_GUARDS = """
do $$
declare one record;
begin
  for one in select c.conrelid::regclass as tab, c.conname from pg_constraint as c
    join pg_namespace as n on n.oid = c.connamespace
    where n.nspname like 'PREFIX' and c.contype in ('f', 'p', 'u') order by c.contype
  loop execute format('alter table %s drop constraint %I', one.tab, one.conname); end loop;
  for one in select i.indexrelid::regclass as ind from pg_index as i
    join pg_class as t on t.oid = i.indrelid join pg_namespace as n on n.oid = t.relnamespace
    where n.nspname like 'PREFIX' and i.indisunique and t.relkind = 'r'
  loop execute format('drop index %s', one.ind); end loop;
  for one in select a.attrelid::regclass as tab, a.attname from pg_attribute as a
    join pg_class as t on t.oid = a.attrelid join pg_namespace as n on n.oid = t.relnamespace
    where n.nspname like 'PREFIX' and t.relkind = 'r' and a.attnotnull and a.attnum > 0
  loop execute format('alter table %s alter column %I drop not null', one.tab, one.attname); end loop;
end $$
"""


@dataclass(frozen=True)
class Fault:
    """What is planted, and the expectation that must not let it through."""

    suite: str
    expectation: str
    statement: str

    @property
    def table(self) -> str:
        """The table that is changed."""
        words = self.statement.split()
        return words[{"update": 1, "delete": 2, "insert": 2, "view": 1}[words[0]]]


TX, LABELS = "{raw}.transactions", "{raw}.transaction_labels"
FRAUD_LABELS, PROFILE = "{labels}.fct_fraud_labels", "{features}.fct_subscriber_profile"
HISTORY = "{features}.fct_viewer_history"
CUSTOMER, TERMINAL = "{features}.fct_customer_daily", "{features}.fct_terminal_daily"
NEWEST = f"event_timestamp = '{LAST + timedelta(days=1)} 00:00+00'"


def daily(entity: str) -> list[Fault]:
    """The faults that both daily tables can have."""
    table, suite = f"{{features}}.fct_{entity}_daily", f"features_{entity}_daily"
    one = f"{NEWEST} and {entity}_id = (select min({entity}_id) from {table})"
    return [
        Fault(suite, "rows_exist", f"delete from {table}"),
        Fault(suite, "one_row_a_day", f"insert into {table} select * from {table} where {one}"),
        Fault(
            suite, "no_value_is_missing", f"update {table} set {entity}_tx_count_full_7d = null where {one}"
        ),
        Fault(
            suite,
            "days_begin_at_midnight",
            f"update {table} set event_timestamp = event_timestamp + interval '1 hour' where {one}",
        ),
        Fault(
            suite,
            "nothing_is_known_before_it_is_true",
            f"update {table} set created_timestamp = event_timestamp - interval '1 second' where {one}",
        ),
        Fault(
            suite,
            "longer_windows_hold_the_shorter",
            f"update {table} set {entity}_tx_count_full_7d = {entity}_tx_count_full_30d + 1 where {one}",
        ),
        Fault(
            suite,
            "days_add_up_to_the_raw_rows",
            f"update {table} set {entity}_tx_count_full_1d = {entity}_tx_count_full_1d + 1 where {one}",
        ),
        Fault(suite, "everyone_has_a_row", f"delete from {table} where {one}"),
        Fault(suite, "ids_are_those_of_raw_rows", f"update {table} set {entity}_id = -7 where {one}"),
        Fault(suite, "features_are_as_fresh_as_the_raw_rows", f"delete from {table} where {NEWEST}"),
    ]


def today(entity: str) -> list[Fault]:
    """The faults that both tables of running totals can have."""
    table, suite = f"{{features}}.fct_{entity}_today", f"features_{entity}_today"
    one = f"ctid = (select min(ctid) from {table})"
    last = f"(select max(event_timestamp) from {table})"
    return [
        Fault(suite, "one_row_a_moment", f"insert into {table} select * from {table} where {one}"),
        Fault(suite, "no_value_is_missing", f"update {table} set {entity}_tx_count_today = null where {one}"),
        Fault(suite, "totals_count_something", f"update {table} set {entity}_tx_count_today = 0 where {one}"),
        Fault(
            suite,
            "nothing_is_known_before_it_is_true",
            f"update {table} set created_timestamp = event_timestamp - interval '1 second' where {one}",
        ),
        Fault(
            suite,
            "totals_belong_to_the_day_of_their_time",
            f"update {table} set {entity}_today_day = {entity}_today_day - 1 where {one}",
        ),
        Fault(suite, "days_end_as_the_raw_totals", f"delete from {table} where event_timestamp = {last}"),
    ]


def rated(entity: str, name: str) -> list[Fault]:
    """The faults that both tables of ratings can have."""
    table, suite = f"{{features}}.fct_{name}", f"features_{name}"
    one = f"{entity}_id = 1"
    return [
        Fault(suite, "one_row_a_day", f"insert into {table} select * from {table} where {one}"),
        Fault(
            suite,
            "longer_windows_hold_the_shorter",
            f"update {table} set {entity}_rating_count_30d = {entity}_rating_count + 1 where {one}",
        ),
        Fault(suite, "means_are_stars", f"update {table} set {entity}_rating_mean = 7 where {one}"),
        Fault(
            suite,
            "nothing_is_known_before_it_is_true",
            f"update {table} set created_timestamp = event_timestamp - interval '1 second' where {one}",
        ),
        Fault(suite, "ratings_add_up_to_the_raw_rows", f"delete from {table} where {one}"),
    ]


def staged(view: str, columns: str, where: str = "true") -> str:
    """Replace a staging view by one over its former self, `columns` as `name = expression`."""
    return f"view {{staging}}.{view} {columns} where {where}"


FAULTS = [
    Fault("raw_transactions", "rows_exist", f"delete from {TX}"),
    Fault(
        "raw_transactions", "keys_are_unique", f"insert into {TX} select * from {TX} where transaction_id = 7"
    ),
    Fault(
        "raw_transactions",
        "no_delivery_came_twice",
        f"insert into {TX} select transaction_id + 1000000, tx_datetime, tx_date, customer_id, terminal_id,"
        f" tx_amount, known_at from {TX} where tx_date = '{LAST}'",
    ),
    Fault(
        "raw_transactions",
        "amounts_are_numbers",
        f"update {TX} set tx_amount = 'NaN' where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "days_are_those_of_the_times",
        f"update {TX} set tx_date = tx_date - 1 where transaction_id = 700",
    ),
    Fault(
        "raw_transactions",
        "nothing_is_known_before_it_happens",
        f"update {TX} set known_at = tx_datetime - interval '1 second' where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "nothing_lies_in_the_future",
        f"update {TX} set tx_datetime = now() + interval '1 day' where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "no_day_lost_half_of_its_volume",
        f"delete from {TX} where tx_date = '{LAST}' and transaction_id % 3 > 0",
    ),
    Fault(
        "raw_transactions",
        "customers_are_known",
        f"update {TX} set customer_id = customer_id + 5000 where tx_date = '{LAST}'",
    ),
    Fault(
        "raw_transactions",
        "terminals_are_known",
        f"update {TX} set terminal_id = terminal_id + 5000 where tx_date = '{LAST}'",
    ),
    Fault(
        "raw_transactions",
        "contract.customer_id.present",
        f"update {TX} set customer_id = null where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "contract.tx_amount.range",
        f"update {TX} set tx_amount = -5 where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "contract.tx_amount.range",
        f"update {TX} set tx_amount = 2e6 where transaction_id = 7",
    ),
    Fault(
        "raw_transactions",
        "contract.tx_date.present",
        f"update {TX} set tx_date = null where transaction_id = 7",
    ),
    Fault(
        "raw_transaction_labels",
        "keys_are_unique",
        f"insert into {LABELS} select * from {LABELS} where transaction_id = 7",
    ),
    Fault(
        "raw_transaction_labels",
        "labels_belong_to_transactions",
        f"delete from {TX} where transaction_id = 7",
    ),
    Fault(
        "raw_transaction_labels",
        "labels_stand_on_their_transactions_day",
        f"update {LABELS} set tx_date = tx_date - 1 where transaction_id = 700",
    ),
    Fault(
        "raw_transaction_labels",
        "labels_come_after_their_transactions",
        f"update {LABELS} set known_at = known_at - interval '8 days' where transaction_id = 700",
    ),
    Fault(
        "raw_transaction_labels",
        "scenario_and_label_agree",
        f"update {LABELS} set is_fraud = 1 where transaction_id = 7",
    ),
    Fault(
        "raw_transaction_labels",
        "fraud_rate_is_plausible",
        f"update {LABELS} set is_fraud = 1 - is_fraud where tx_date = '{LAST}'",
    ),
    Fault(
        "raw_transaction_labels",
        "contract.is_fraud.values",
        f"update {LABELS} set is_fraud = 2 where transaction_id = 7",
    ),
    Fault(
        "raw_subscribers",
        "keys_are_unique",
        "update {raw}.subscribers set subscriber_id = 1 where subscriber_id = 2",
    ),
    Fault(
        "raw_subscribers",
        "one_snapshot_at_a_time",
        "update {raw}.subscribers set snapshot_at = snapshot_at - interval '1 day' where subscriber_id = 2",
    ),
    Fault(
        "raw_subscribers",
        "nothing_is_known_before_it_is_true",
        "update {raw}.subscribers set known_at = snapshot_at - interval '1 second' where subscriber_id = 2",
    ),
    Fault(
        "raw_subscribers",
        "nothing_lies_in_the_future",
        "update {raw}.subscribers set snapshot_at = now() + interval '1 day'",
    ),
    Fault(
        "raw_subscribers",
        "contract.subscriber_contract.values",
        "update {raw}.subscribers set subscriber_contract = 'For ever' where subscriber_id = 2",
    ),
    Fault(
        "raw_subscriber_labels",
        "keys_are_unique",
        "update {raw}.subscriber_labels set subscriber_id = 1 where subscriber_id = 2",
    ),
    Fault(
        "raw_subscriber_labels",
        "labels_belong_to_subscribers",
        "update {raw}.subscriber_labels set subscriber_id = 9999 where subscriber_id = 2",
    ),
    Fault(
        "raw_subscriber_labels",
        "labels_are_known_after_their_time",
        "update {raw}.subscriber_labels set known_at = event_timestamp - interval '1 second'",
    ),
    Fault(
        "raw_subscriber_labels", "churn_rate_is_plausible", "update {raw}.subscriber_labels set churned = 0"
    ),
    Fault("raw_movies", "keys_are_unique", "update {raw}.movies set movie_id = 1 where movie_id = 2"),
    Fault(
        "raw_movies", "title_and_year_come_together", "update {raw}.movies set year = null where movie_id = 2"
    ),
    Fault("raw_ratings", "one_rating_of_a_movie", "update {raw}.ratings set movie_id = 1 where movie_id = 2"),
    Fault(
        "raw_ratings", "ratings_are_half_stars", "update {raw}.ratings set rating = 3.7 where movie_id = 2"
    ),
    Fault("raw_ratings", "movies_are_known", "update {raw}.ratings set movie_id = 9999 where movie_id = 2"),
    Fault(
        "raw_ratings",
        "nothing_is_known_before_it_happens",
        "update {raw}.ratings set known_at = rated_at - interval '1 second' where movie_id = 2",
    ),
    Fault(
        "raw_ratings",
        "nothing_lies_in_the_future",
        "update {raw}.ratings set rated_at = now() + interval '1 day' where movie_id = 2",
    ),
    Fault("staging_transactions", "rows_exist", staged("stg_transactions", "", "false")),
    Fault(
        "staging_transactions",
        "keys_are_unique",
        staged("stg_transactions", "transaction_id = transaction_id / 2"),
    ),
    Fault(
        "staging_transactions",
        "customers_are_present",
        staged("stg_transactions", "customer_id = nullif(customer_id, 7)"),
    ),
    Fault(
        "staging_transactions",
        "terminals_are_present",
        staged("stg_transactions", "terminal_id = nullif(terminal_id, 107)"),
    ),
    Fault(
        "staging_transactions",
        "cents_are_the_amounts",
        staged("stg_transactions", "tx_amount_cents = tx_amount_cents / 100"),
    ),
    Fault("staging_transactions", "no_row_was_lost", staged("stg_transactions", "", "transaction_id <> 7")),
    Fault(
        "staging_transaction_labels",
        "labels_are_zero_or_one",
        staged("stg_transaction_labels", "is_fraud = (is_fraud * 2)::smallint"),
    ),
    Fault(
        "staging_transaction_labels",
        "labels_have_the_time_they_became_known",
        staged("stg_transaction_labels", "label_known_at = null::timestamptz"),
    ),
    Fault(
        "staging_transaction_labels",
        "no_row_was_lost",
        staged("stg_transaction_labels", "", "transaction_id <> 7"),
    ),
    Fault(
        "staging_subscribers",
        "keys_are_unique",
        staged("stg_subscribers", "subscriber_id = subscriber_id / 2"),
    ),
    Fault("staging_subscribers", "no_row_was_lost", staged("stg_subscribers", "", "subscriber_id <> 7")),
    *daily("customer"),
    Fault(
        "features_customer_daily",
        "sums_need_transactions",
        f"update {CUSTOMER} set customer_tx_amount_sum_full_30d = 'NaN' where {NEWEST}",
    ),
    *daily("terminal"),
    *(
        Fault(
            "features_terminal_daily",
            f"risk_{days}d_is_a_share",
            f"update {TERMINAL} set terminal_fraud_risk_{days}d = 1.5 where {NEWEST}",
        )
        for days in (1, 7, 30)
    ),
    Fault(
        "features_terminal_daily",
        "risk_needs_labels",
        f"update {TERMINAL} set terminal_labelled_tx_count_1d = 0, terminal_fraud_risk_1d = 0.5"
        f" where {NEWEST}",
    ),
    *today("customer"),
    Fault(
        "features_customer_today",
        "sums_are_amounts",
        "update {features}.fct_customer_today set customer_tx_amount_sum_today = -1",
    ),
    *today("terminal"),
    Fault(
        "features_fraud_labels",
        "keys_are_unique",
        f"insert into {FRAUD_LABELS} select * from {FRAUD_LABELS} where transaction_id = 7",
    ),
    Fault(
        "features_fraud_labels",
        "labels_are_zero_or_one",
        f"update {FRAUD_LABELS} set is_fraud = 2 where transaction_id = 7",
    ),
    Fault(
        "features_fraud_labels",
        "labels_are_known_after_their_transactions",
        f"update {FRAUD_LABELS} set label_known_at = null where transaction_id = 7",
    ),
    Fault(
        "features_subscriber_profile",
        "keys_are_unique",
        f"insert into {PROFILE} select * from {PROFILE} where subscriber_id = 7",
    ),
    Fault(
        "features_subscriber_profile",
        "every_subscriber_has_a_profile",
        f"delete from {PROFILE} where subscriber_id = 7",
    ),
    Fault(
        "features_subscriber_profile",
        "charges_are_amounts",
        f"update {PROFILE} set subscriber_monthly_charges_usd = 'NaN' where subscriber_id = 7",
    ),
    *rated("viewer", "viewer_taste"),
    Fault(
        "features_viewer_taste",
        "shares_are_shares",
        "update {features}.fct_viewer_taste set viewer_rating_share_drama = 1.5 where viewer_id = 1",
    ),
    Fault(
        "features_viewer_history",
        "one_row_a_day",
        f"insert into {HISTORY} select * from {HISTORY} where viewer_id = 1",
    ),
    Fault(
        "features_viewer_history",
        "nothing_is_known_before_it_is_true",
        f"update {HISTORY} set created_timestamp = event_timestamp - interval '1 second' where viewer_id = 1",
    ),
    Fault(
        "features_viewer_history",
        "the_last_history_is_that_of_the_raw_rows",
        f"update {HISTORY} set viewer_rated_movie_ids = viewer_rated_movie_ids || ',9999'"
        " where viewer_id = 1",
    ),
    *rated("movie", "movie_popularity"),
    Fault(
        "features_movie_profile",
        "keys_are_unique",
        "update {features}.fct_movie_profile set movie_id = 1 where movie_id = 2",
    ),
    Fault(
        "features_movie_profile",
        "every_movie_has_a_profile",
        "delete from {features}.fct_movie_profile where movie_id = 2",
    ),
    Fault(
        "features_movie_ratings",
        "one_rating_of_a_movie",
        "update {labels}.fct_movie_ratings set movie_id = 1 where movie_id = 2",
    ),
    Fault(
        "features_movie_ratings",
        "ratings_are_stars",
        "update {labels}.fct_movie_ratings set rating = 7 where movie_id = 2",
    ),
    Fault(
        "features_movie_ratings",
        "ratings_are_known_after_they_were_given",
        "update {labels}.fct_movie_ratings set label_known_at = event_timestamp - interval '1 second'"
        " where movie_id = 2",
    ),
]


@pytest.fixture
def plant(store: Store) -> Iterator[Callable[[Fault], None]]:
    """Plant faults, and put everything back after the test."""
    undo: list[str] = []

    def do(fault: Fault) -> None:
        if fault.statement.startswith("view "):
            _, view, *columns = fault.statement.partition(" where ")[0].split(" ", 2)
            [(former,)] = store.rows(f"select pg_get_viewdef('{view}'::regclass)")
            undo.append(f"create or replace view {view} as {former}")
            replaced = dict(part.split(" = ", 1) for part in columns if part)
            [(names,)] = store.rows(
                f"select array_agg(attname order by attnum) from pg_attribute"
                f" where attrelid = '{view}'::regclass and attnum > 0"
            )
            listed = ", ".join(f"{replaced.get(name, name)} as {name}" for name in names)
            where = fault.statement.partition(" where ")[2]
            store.run(
                f"create or replace view {view} as"
                f" select {listed} from ({former.rstrip(';')}) as f where {where}"
            )
            return
        # A transaction's rows are put back as they were, with the ids that a table's scan order may show.
        table = fault.table
        kept = "kept_" + table.replace("{", "").replace("}", "").replace(".", "_")
        store.run(f"create table {{raw}}.{kept} as table {table}")
        undo.append(
            f"truncate {table}; insert into {table} select * from {{raw}}.{kept}; drop table {{raw}}.{kept}"
        )
        store.run(fault.statement)

    yield do
    for statement in reversed(undo):
        store.run(statement)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_good_rows_pass(store: Store, suite: Suite):
    assert {name: r.observed for name, r in store.not_passed(suite).items()} == {}


def test_every_critical_expectation_has_a_fault_that_breaks_it():
    planted = {(fault.suite, fault.expectation) for fault in FAULTS}
    critical = {
        (suite.name, expectation.name)
        for suite in SUITES.values()
        for expectation in suite.expectations
        if expectation.severity == "critical" and not expectation.name.startswith("contract.")
    }
    assert critical - planted == set()
    kinds = {name.rpartition(".")[2] for _, name in planted if name.startswith("contract.")}
    assert kinds == {"present", "values", "range"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.suite}.{fault.expectation}")
def test_a_planted_fault_is_found(store: Store, plant: Callable[[Fault], None], fault: Fault):
    plant(fault)
    suite = SUITES[fault.suite]
    [expectation] = [e for e in suite.expectations if e.name == fault.expectation]
    found = store.not_passed(suite.model_copy(update={"expectations": (expectation,)}))
    assert found, "the fault was let through"
    assert found[fault.expectation].status == "failed", found[fault.expectation].observed
    assert found[fault.expectation].is_critical_failure


def checked(*options: str) -> int:
    return check.main([word for option in options for word in option.split()])


ALL = ("--level raw", "--level staging", "--level features")
BROKEN_RISK = Fault(
    "features_terminal_daily",
    "risk_7d_is_a_share",
    f"update {TERMINAL} set terminal_fraud_risk_7d = 7.5, created_timestamp = now() where {NEWEST}",
)


def test_a_good_store_passes_and_unchanged_days_are_not_checked_again(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    assert checked(*ALL) == 0, capsys.readouterr().out
    assert f"raw: passed: {sum(len(s.expectations) for s in SUITES.values() if s.level == 'raw')}" in (
        said := capsys.readouterr().out
    )
    assert f"on {FIRST} to {LAST}" in said
    for level in ("raw", "staging", "features"):
        written = json.loads((store.reports / "quality" / f"{level}.json").read_text())
        assert (written["status"], written["critical_failures"]) == ("passed", 0)
        assert "data:image/png" in (store.reports / "quality" / f"{level}.html").read_text()
    assert "feature_store_quality_passed" in (store.reports / "quality" / "metrics.prom").read_text()
    assert checked("--level raw") == 0
    assert f"on {LAST} to {LAST}" in capsys.readouterr().out
    publication.require_publishable(store.rehearsal.connection)


def test_a_changed_day_is_checked_again_and_a_warning_stops_nothing(
    store: Store, plant: Callable[[Fault], None], capsys: pytest.CaptureFixture[str]
):
    day = FIRST + timedelta(days=2)
    assert checked("--level raw") == 0
    plant(Fault("raw_transactions", "", f"update {TX} set tx_amount = 20000 where transaction_id = 500"))
    capsys.readouterr()
    assert checked("--level raw") == 0
    said = capsys.readouterr().out
    assert f"on {day} to {day}, 0 critical failures, 1 warnings" in said
    assert "warning raw_transactions.amounts_are_ordinary: failed: 1 of 240 rows, such as 20000.0" in said


def test_what_failed_stays_failed_until_its_days_pass(
    store: Store, plant: Callable[[Fault], None], capsys: pytest.CaptureFixture[str]
):
    assert checked("--level features") == 0
    plant(BROKEN_RISK)
    assert checked("--level features") == 1
    said = capsys.readouterr().out
    assert "CRITICAL features_terminal_daily.risk_7d_is_a_share: failed: 59 of" in said
    assert "such as 7.5" in said
    with pytest.raises(publication.NotPublishableError, match="risk_7d_is_a_share"):
        publication.require_publishable(store.rehearsal.connection)
    assert checked(f"--level features --date {FIRST + timedelta(days=5)}") == 0, "another day is good"
    with pytest.raises(publication.NotPublishableError):
        publication.require_publishable(store.rehearsal.connection)
    assert checked("--level features") == 1, "still broken"


def test_after_the_repair_the_features_are_publishable_again(store: Store):
    """The fault of the test before is gone; a check without dates goes back to the days that failed."""
    assert publication.obstacles(store.rehearsal.connection)
    assert publication.main() == 1
    assert checked("--level features") == 0
    assert publication.obstacles(store.rehearsal.connection) == []
    assert publication.main() == 0


def test_rows_that_cannot_be_checked_have_failed_with_the_reason(
    store: Store, capsys: pytest.CaptureFixture[str]
):
    store.run("alter table {features}.fct_terminal_daily rename to away")
    try:
        assert checked("--level features") == 1
        said = capsys.readouterr().out
        [line] = [line for line in said.splitlines() if "features_terminal_daily.rows_exist" in line]
        assert line.startswith("CRITICAL")
        assert "crashed: (psycopg2.errors.UndefinedTable)" in line
        with pytest.raises(publication.NotPublishableError):
            publication.require_publishable(store.rehearsal.connection)
    finally:
        store.run("alter table {features}.away rename to fct_terminal_daily")
    store.run("alter table {raw}.transactions rename column tx_amount to amount")
    try:
        assert checked("--level raw") == 1
        assert "tx_amount" in capsys.readouterr().out
    finally:
        store.run("alter table {raw}.transactions rename column amount to tx_amount")
    assert checked("--level raw", "--level features") == 0


def test_a_failed_check_leaves_the_online_values_as_they_were(store: Store, plant: Callable[[Fault], None]):
    """The steps of a run as a person or a DAG takes them: each only where the one before succeeded."""
    rehearsal = store.rehearsal
    steps = (
        f"{sys.executable} -m data_quality.check --level features && scripts/run_feast_apply.sh"
        " && scripts/run_feast_materialize_incremental.sh"
    )

    def publish() -> int:
        environment = {**rehearsal.environment(), "REPORTS_DIR": str(store.reports)}
        done = subprocess.run(
            steps, shell=True, cwd=ROOT_DIR, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 1), done.stderr[-3000:]
        return done.returncode

    def online() -> dict[bytes, dict[bytes, bytes]]:
        keys = [k for k in rehearsal.redis.scan_iter(count=10_000) if k.endswith(rehearsal.project.encode())]
        return {key: rehearsal.redis.hgetall(key) for key in keys}

    assert publish() == 0
    before = online()
    assert len(before) > 100
    plant(BROKEN_RISK)
    assert publish() == 1
    assert online() == before


def test_days_that_vanish_are_noticed(store: Store, plant: Callable[[Fault], None]):
    assert checked("--level raw") == 0
    middle = LAST - timedelta(days=3)
    plant(Fault("raw_transactions", "", f"delete from {TX} where tx_date = '{middle}'"))
    assert checked("--level raw") == 1
    [(first, last)] = store.rows(
        "select first_day, last_day from {quality}.check_runs order by run_id desc limit 1"
    )
    assert (first, last) == (middle, middle)
    assert isinstance(first, date)
