"""The daily windows by dbt in PostgreSQL and by Spark, on the same transactions at three sizes.

Each time is that of the whole command, with its start: dbt 3 s or so, Spark's JVM 5 s. Spark is measured from
table to table, as dbt works, and from landing files to Parquet, as it works beside a database. Data are made
and loaded in schemas of the benchmark's own before the clock starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from psycopg import sql

from benchmarks.report import Growth, Report, Result, peak_memory
from data_source_connectors.database_connector import DatabaseSettings, connect
from data_source_connectors.settings import read_settings

ROOT = Path(__file__).resolve().parents[1]
DBT = ROOT / "data_transformation_pipelines" / "dbt_project_feast"
SCHEMAS = ("raw", "staging", "intermediate", "features", "labels")
MULTIPLES = (1, 4, 16)
# Customers at 1x; twice as many terminals. 183 days of them make about 350 transactions a customer.
CUSTOMERS, DAYS = 250, 183
QUICK_CUSTOMERS, QUICK_DAYS = 20, 60
DBT_NAME, TABLES_NAME, FILES_NAME = (
    "daily windows, dbt",
    "daily windows, Spark from table to table",
    "daily windows, Spark from files to files",
)


class Workplace:
    """Schemas and folders of one size of data."""

    def __init__(self, folder: Path) -> None:
        self.prefix = f"bench_{uuid4().hex[:8]}_"
        self.folder = folder
        self.landing = folder / "landing"
        (folder / "profiles").mkdir(parents=True)
        (folder / "profiles" / "profiles.yml").symlink_to(DBT / "profiles.yml.template")
        self.environment = {
            **os.environ,
            "FEATURE_STORE_SCHEMA_PREFIX": self.prefix,
            "FEATURE_STORE_RAW_SCHEMA": f"{self.prefix}raw",
            "REPORTS_DIR": str(folder / "reports"),
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "logs"),
        }

    def run(self, *command: str) -> float:
        """Run a command in the workplace's environment and return its seconds; RuntimeError if it fails."""
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return time.perf_counter() - began

    def module(self, name: str, *arguments: str) -> float:
        """Run one of the pipelines' modules."""
        return self.run(sys.executable, "-m", f"data_transformation_pipelines.{name}", *arguments)

    def fill(self, customers: int, days: int) -> None:
        """Simulate and load."""
        self.module(
            "python_scripts_feast.simulate_transactions",
            *("--out", str(self.landing), "--days", str(days)),
            *("--customers", str(customers), "--terminals", str(2 * customers)),
        )
        self.module("python_scripts_feast.load_transactions", "--source", str(self.landing))

    def transactions(self) -> int:
        """Return how many transactions are loaded."""
        table = sql.Identifier(f"{self.prefix}raw", "transactions")
        with connect(read_settings(DatabaseSettings), application_name="bench_spark_batch") as connection:
            row = connection.execute(sql.SQL("select count(*) from {}").format(table)).fetchone()
        return 0 if row is None else int(row[0])

    def build_with_dbt(self) -> float:
        """Build both tables, and what they are made of, from nothing; without tests."""
        return self.run(
            *(str(Path(sys.executable).with_name("dbt")), "build", "--full-refresh"),
            *("--project-dir", str(DBT), "--profiles-dir", str(self.folder / "profiles")),
            *("--select", "+fct_customer_daily", "+fct_terminal_daily"),
            *("--exclude-resource-type", "test", "unit_test"),
        )

    def build_with_spark(self, source: str, out: str) -> float:
        """Build both tables with Spark."""
        return self.module("spark_jobs_feast.build_daily_windows", "--source", source, "--out", out)

    def compare(self) -> None:
        """Compare Spark's windows with dbt's tables; RuntimeError where a row differs."""
        self.module(
            "spark_jobs_feast.build_daily_windows",
            *("--source", str(self.landing), "--check-against-tables"),
        )

    def close(self) -> None:
        """Drop the schemas."""
        with connect(read_settings(DatabaseSettings), application_name="bench_spark_batch") as connection:
            for schema in (*SCHEMAS, "spark"):
                name = sql.Identifier(self.prefix + schema)
                connection.execute(sql.SQL("drop schema if exists {} cascade").format(name))


def measure(multiple: int, customers: int, days: int, *, check: bool) -> list[Growth]:
    """Measure one size; with `check`, also see that both give the same tables."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        try:
            place.fill(customers, days)
            rows = place.transactions()
            by_dbt = place.build_with_dbt()
            with peak_memory() as tables_peak:
                by_tables = place.build_with_spark("postgresql", "postgresql:spark")
            with peak_memory() as files_peak:
                by_files = place.build_with_spark(str(place.landing), str(place.folder / "out"))
            if check:
                place.compare()
        finally:
            place.close()
    return [
        # PostgreSQL does dbt's work, in memory of its own.
        Growth(DBT_NAME, multiple, rows, by_dbt),
        Growth(TABLES_NAME, multiple, rows, by_tables, tables_peak.megabytes),
        Growth(FILES_NAME, multiple, rows, by_files, files_peak.megabytes),
    ]


def compared(points: Sequence[Growth]) -> list[Result]:
    """Return, at each size, how many times faster than dbt Spark was."""
    seconds = {(point.name, point.multiple): point.seconds for point in points}
    return [
        Result(
            f"{name}, {multiple}x",
            value,
            "s",
            peer="dbt",
            peer_value=seconds[DBT_NAME, multiple],
            ratio=seconds[DBT_NAME, multiple] / value,
            note="ratio: times faster than dbt",
        )
        for (name, multiple), value in seconds.items()
        if name != DBT_NAME
    ]


def run(quick: bool) -> Report:
    """Measure each size; the smallest is also compared value by value."""
    customers, days = (QUICK_CUSTOMERS, QUICK_DAYS) if quick else (CUSTOMERS, DAYS)
    points: list[Growth] = []
    for multiple in MULTIPLES[:1] if quick else MULTIPLES:
        points += measure(multiple, customers * multiple, days, check=multiple == 1)
    return Report(compared(points), points)
