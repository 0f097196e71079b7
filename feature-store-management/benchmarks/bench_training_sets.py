"""Training sets of 500,000 labels over the full history: ours, Feast's SDK, and a bare DuckDB ASOF join.

Tables of the full data set's size (5,000 customers, 10,000 terminals, 183 days, 1 in 100 rows late) are
generated in a schema of their own, with a Feast project of its own. Each contestant runs in a child process;
its imports and Feast's reading of the registry do not count. What counts:

- from PostgreSQL: from labels and feature tables in PostgreSQL to an Arrow table in memory;
- from Parquet: from Parquet copies of the same tables to an Arrow table in memory.

The bare join looks up, in each table, the last row with `event_timestamp <= t`, and nothing else: no
created_timestamp, time to live, on-demand feature, word on missing values, or check of what is asked.
"""

# ruff: noqa: S603, S608 (programs and names of this module's own)

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql

from benchmarks.report import Growth, Report, Result, peak_memory
from data_source_connectors.database_connector import DatabaseSettings, connect
from data_source_connectors.settings import read_settings
from training_sets.build import TrainingSetBuilder, load_contract
from training_sets.entity_rows import EntityFile
from training_sets.feature_tables import TIMES, ParquetTables, PostgresTables, read_query
from training_sets.vectors import fields_read

ROOT_DIR = Path(__file__).resolve().parents[1]
SERVICE = "fraud_detection_v1"
START = "timestamptz '2026-01-01 00:00:00+00'"
FIRST_DAY = 20_454  # that day, in days since 1970-01-01
LABEL_FILE = "labels.parquet"


@dataclass(frozen=True)
class Size:
    """How large the generated tables are."""

    customers: int
    terminals: int
    days: int
    labels: int
    repeats: int


FULL = Size(customers=5_000, terminals=10_000, days=183, labels=500_000, repeats=3)
QUICK = Size(customers=200, terminals=400, days=40, labels=8_000, repeats=1)


# The tables. Counts and amounts are a pattern of key and day: they need not be likely, but they must differ.


def _daily(entity: str, entities: int, days: int, fields: Sequence[str]) -> str:
    """One row an entity and day at its midnight; 1 in 100 came five hours late."""
    values = ", ".join(
        f"((k * {7 + place} + n * {13 + place}) % 10007)"
        + ("::bigint" if "count" in name else "::float8 / 100")
        + f" as {name}"
        for place, name in enumerate(fields)
    )
    return (
        f"select k as {entity}_id, t as event_timestamp, "
        f"t + case when (k * 7 + n) % 100 = 0 then interval '5 hours' else interval '0' end "
        f"as created_timestamp, "
        f"{values} from generate_series(1::bigint, {entities}) as k "
        f"cross join generate_series(0::bigint, {days - 1}) as n "
        f"cross join lateral (select {START} + n * interval '24 hours' as t) as midnight"
    )


def _today(entity: str, entities: int, days: int, fewest: int) -> str:
    """From `fewest` to two more rows an entity and day, in order of arrival; 1 in 100 days' last is late."""
    amount = ", (i * 1000 + k)::float8 / 100 as customer_tx_amount_sum_today" if entity == "customer" else ""
    return (
        f"select k as {entity}_id, t as event_timestamp, "
        f"t + case when (k * 3 + n) % 100 = 0 and i = {fewest} + (k + n) % 3 then interval '9 hours' "
        f"else interval '0' end as created_timestamp, "
        f"i as {entity}_tx_count_today{amount}, n + {FIRST_DAY} as {entity}_today_day "
        f"from generate_series(1::bigint, {entities}) as k "
        f"cross join generate_series(0::bigint, {days - 1}) as n "
        f"cross join lateral generate_series(1::bigint, {fewest} + (k + n) % 3) as i "
        f"cross join lateral (select {START} + n * interval '24 hours' "
        f"+ (i * 20000 + (k * 7919 + n * 104729) % 20000) * interval '1 second' as t) as moment"
    )


def _labels(size: Size) -> str:
    """Labels spread over all days; customers and terminals in turns."""
    return (
        f"select i as transaction_id, 1 + (i * 7919) % {size.customers} as customer_id, "
        f"1 + (i * 104729) % {size.terminals} as terminal_id, t as event_timestamp, "
        f"(i % 20000)::float8 / 100 as tx_amount, extract(epoch from t)::float8 as tx_timestamp "
        f"from generate_series(0::bigint, {size.labels - 1}) as i "
        f"cross join lateral (select {START} + floor(i * {size.days * 86_400_000_000} / {size.labels}) "
        f"* interval '1 microsecond' as t) as moment"
    )


@contextmanager
def sandbox(size: Size) -> Iterator[tuple[str, Path]]:
    """Yield the prefix of schemas with the tables in them, and a folder with Feast's configuration."""
    settings = read_settings(DatabaseSettings)
    prefix = f"bench_{uuid4().hex[:8]}_"
    schema, registry = f"{prefix}features", f"{prefix}feast"
    contract = load_contract(SERVICE)
    tables = {
        "fct_customer_daily": _daily(
            "customer", size.customers, size.days, fields_read(contract, "customer_daily")
        ),
        "fct_terminal_daily": _daily(
            "terminal", size.terminals, size.days, fields_read(contract, "terminal_daily")
        ),
        "fct_customer_today": _today("customer", size.customers, size.days, 1),
        "fct_terminal_today": _today("terminal", size.terminals, size.days, 0),
        "labels": _labels(size),
    }
    with (
        connect(settings, application_name="bench_training_sets") as connection,
        tempfile.TemporaryDirectory() as scratch,
    ):

        def execute(text: str) -> None:
            connection.execute(text.encode())

        try:
            execute("set statement_timeout = 0")
            execute(f"create schema {schema}")
            for name, query in tables.items():
                execute(f"create unlogged table {schema}.{name} as {query}")
                if name != "labels":  # the indexes that dbt makes
                    key = f"{name.split('_')[1]}_id, event_timestamp, created_timestamp"
                    execute(f"create unique index on {schema}.{name} ({key})")
                    execute(f"create index on {schema}.{name} (event_timestamp)")
                execute(f"analyze {schema}.{name}")
            _feast_project(prefix, Path(scratch))
            yield prefix, Path(scratch)
        finally:
            for name in (schema, registry):
                execute(f"drop schema if exists {name} cascade")


def _feast_project(prefix: str, folder: Path) -> None:
    """Apply the real definitions over the schema, in a project whose configuration goes to the folder."""
    text = (ROOT_DIR / "feast_repository" / "feature_store.yaml").read_text(encoding="utf-8")
    configuration = folder / "feature_store.yaml"
    configuration.write_text(
        text.replace("project: mlops_platform", f"project: {prefix}project")
        .replace("search_path=feast", f"search_path={prefix}feast")
        .replace("db_schema: feast ", f"db_schema: {prefix}feast "),
        encoding="utf-8",
    )
    environment = {
        **os.environ,
        "FEATURE_STORE_SCHEMA_PREFIX": prefix,
        "FEAST_FS_YAML_FILE_PATH": str(configuration),
        "VENV": sys.prefix,
    }
    subprocess.run(
        [str(ROOT_DIR / "scripts" / "run_feast_apply.sh")], env=environment, check=True, capture_output=True
    )


# The contestants. Each makes ready (imports, Feast's registry) and returns what is timed.

Work = Callable[[], pa.Table]


def ours(prefix: str, _folder: Path, step: int) -> Work:
    """Labels and tables from PostgreSQL."""
    settings, contract = read_settings(DatabaseSettings), load_contract(SERVICE)

    def work() -> pa.Table:
        entities = read_query(settings, _label_query(prefix, step))
        return (
            TrainingSetBuilder(contract, PostgresTables(settings, f"{prefix}features")).build(entities).table
        )

    return work


def ours_on_copies(_prefix: str, folder: Path, _step: int) -> Work:
    """Labels and tables from Parquet."""
    contract = load_contract(SERVICE)

    def work() -> pa.Table:
        builder = TrainingSetBuilder(contract, ParquetTables(folder))
        chunks = EntityFile(folder / LABEL_FILE).chunks()
        return pa.concat_tables([builder.build(chunk).table for chunk in chunks])

    return work


def asof(prefix: str, _folder: Path, step: int) -> Work:
    """The same columns of the same tables by the same driver, then the bare join."""
    settings = read_settings(DatabaseSettings)

    def work() -> pa.Table:
        tables = {name: read_query(settings, query) for name, query in _table_queries(prefix).items()}
        return _asof({"labels": read_query(settings, _label_query(prefix, step)), **tables})

    return work


def asof_on_copies(_prefix: str, folder: Path, _step: int) -> Work:
    """The bare join on the Parquet files."""
    files = {view.name: folder / f"fct_{view.name}.parquet" for view in load_contract(SERVICE).views}
    return lambda: _asof({"labels": folder / LABEL_FILE, **files})


def feast(prefix: str, folder: Path, step: int) -> Work:
    """Feast's own point-in-time join, given a query so that the labels stay in the database."""
    from feast import FeatureStore  # noqa: PLC0415 (seconds; only Feast's own process needs it)

    store = FeatureStore(fs_yaml_file=folder / "feature_store.yaml")
    service = store.get_feature_service(SERVICE)
    query = _label_query(prefix, step).as_string()

    def work() -> pa.Table:
        job = store.get_historical_features(
            entity_df=query, features=service, filter_by_created_timestamp=True
        )
        return job.to_arrow()

    return work


CONTESTANTS: dict[str, Callable[[str, Path, int], Work]] = {
    maker.__name__: maker for maker in (ours, ours_on_copies, asof, asof_on_copies, feast)
}


def _asof(tables: dict[str, Any]) -> pa.Table:
    import duckdb  # noqa: PLC0415 (memory; only the bare join's own process needs it)

    contract = load_contract(SERVICE)
    joins, fields = [], ["labels.*"]
    for view in contract.views:
        [key] = [entity.join_key for entity in contract.entities if entity.name == view.entity]
        fields += [f"{view.name}.{field}" for field in fields_read(contract, view.name)]
        joins.append(
            f"asof left join {view.name} on labels.{key} = {view.name}.{key} "
            f"and labels.event_timestamp >= {view.name}.event_timestamp"
        )
    with duckdb.connect() as connection:
        for name, table in tables.items():
            if isinstance(table, Path):
                connection.read_parquet(str(table)).create_view(name)
            else:
                connection.register(name, table)
        return connection.sql(f"select {', '.join(fields)} from labels {' '.join(joins)}").to_arrow_table()


def _label_query(prefix: str, step: int) -> sql.Composed:
    """Return the query of every step-th label: fewer labels span the same days."""
    return sql.SQL("select * from {} where transaction_id % {} = 0").format(
        sql.Identifier(f"{prefix}features", "labels"), sql.Literal(step)
    )


def _table_queries(prefix: str) -> dict[str, sql.Composed]:
    """Return, by view, the query of all rows of its table, in the columns that are needed."""
    contract, queries = load_contract(SERVICE), {}
    for view in contract.views:
        [key] = [entity.join_key for entity in contract.entities if entity.name == view.entity]
        columns = map(sql.Identifier, [key, *TIMES, *fields_read(contract, view.name)])
        table = sql.Identifier(f"{prefix}features", f"fct_{view.name}")
        queries[view.name] = sql.SQL("select {} from {}").format(sql.SQL(", ").join(columns), table)
    return queries


@dataclass(frozen=True)
class Measured:
    """The median of a contestant's runs, and the largest memory of its process (not of PostgreSQL)."""

    seconds: float
    peak_mb: float
    rows: int
    result: Path


def measure(name: str, prefix: str, folder: Path, step: int, repeats: int) -> Measured:
    """Run a contestant in a process of its own."""
    result = folder / f"result-{name}-{step}.parquet"
    arguments = [name, prefix, str(folder), str(step), str(repeats), str(result)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_training_sets", *arguments],
        cwd=ROOT_DIR,
        env={**os.environ, "FEATURE_STORE_SCHEMA_PREFIX": prefix},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    measured = Measured(**json.loads(done.stdout.splitlines()[-1]), result=result)
    print(
        f"{name}: {measured.rows:,} labels, {measured.seconds:.2f} s, {measured.peak_mb:.0f} MB", flush=True
    )
    return measured


def child(arguments: Sequence[str]) -> None:
    """Time a contestant and print what was measured; its last result goes to a file."""
    name, prefix, folder, step, repeats, result = arguments
    work, seconds = CONTESTANTS[name](prefix, Path(folder), int(step)), []
    with peak_memory() as peak:
        for _ in range(int(repeats)):
            began = time.perf_counter()
            table = work()
            seconds.append(time.perf_counter() - began)
    pq.write_table(table, result)
    measured = {"seconds": statistics.median(seconds), "peak_mb": peak.megabytes, "rows": len(table)}
    print(json.dumps(measured))


def refuse_other_values(mine: Path, theirs: Path) -> None:
    """Raise AssertionError where Feast's vectors, with the contract's defaults put in, differ from ours."""
    contract = load_contract(SERVICE)
    left, right = (pq.read_table(path).sort_by("transaction_id") for path in (mine, theirs))
    for feature in contract.features:
        expected = right[feature.name].cast(pa.float64())
        if feature.default is not None:
            expected = pc.fill_null(expected, float(feature.default))
        if not left[feature.name].cast(pa.float64()).equals(expected):
            raise AssertionError(f"{feature.name}: Feast's values are not ours")


def run(quick: bool) -> Report:
    """Measure; the peers are measured in the same run. The targets are those of the full size."""
    size = QUICK if quick else FULL
    with sandbox(size) as (prefix, folder):
        settings = read_settings(DatabaseSettings)
        pq.write_table(read_query(settings, _label_query(prefix, 1)), folder / LABEL_FILE)
        for view, query in _table_queries(prefix).items():
            pq.write_table(read_query(settings, query), folder / f"fct_{view}.parquet")
        few, some, all_labels = (measure("ours", prefix, folder, step, size.repeats) for step in (16, 4, 1))
        bare, on_copies, bare_on_copies = (
            measure(name, prefix, folder, 1, size.repeats)
            for name in ("asof", "ours_on_copies", "asof_on_copies")
        )
        stock = measure("feast", prefix, folder, 1, 1)
        refuse_other_values(all_labels.result, stock.result)
    quickly = ", quick" if quick else ""
    labels = f"{all_labels.rows:,} labels over {size.days} days"
    results = [
        Result(
            f"training set, times faster than the SDK{quickly}",
            all_labels.seconds,
            "s",
            "Feast, PostgreSQL offline store",
            stock.seconds,
            stock.seconds / all_labels.seconds,
            f"{labels}; both from PostgreSQL to an Arrow table; the vectors are equal, value for value",
        ),
        Result(
            f"training set, times the bare ASOF join{quickly}",
            on_copies.seconds,
            "s",
            "DuckDB ASOF joins",
            bare_on_copies.seconds,
            on_copies.seconds / bare_on_copies.seconds,
            f"{labels}; both from Parquet copies to an Arrow table; the bare join knows neither "
            "created_timestamp nor time to live nor on-demand features",
        ),
        Result(
            f"training set, times the bare ASOF join, from PostgreSQL{quickly}",
            all_labels.seconds,
            "s",
            "DuckDB ASOF joins",
            bare.seconds,
            all_labels.seconds / bare.seconds,
            f"{labels}; both read labels and tables from PostgreSQL by the same driver",
        ),
        Result(
            f"training set, peak memory{quickly}",
            all_labels.peak_mb,
            "MB",
            note=f"{labels}; Feast {stock.peak_mb:.0f} MB",
        ),
    ]
    growth = [
        Growth("training set", multiple, point.rows, point.seconds, point.peak_mb)
        for multiple, point in ((1, few), (4, some), (16, all_labels))
    ]
    return Report(results, growth)


if __name__ == "__main__":
    child(sys.argv[1:])
