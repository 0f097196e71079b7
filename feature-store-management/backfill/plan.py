"""What a backfill does, as data: which tables, in which order, in which batches of days, by which SQL. No
I/O.

A batch of days of a table is computed by the table's own dbt model, with limits on what the model reads
(`day_tables.yaml`), so that it neither reads more than it needs nor depends on another batch.
"""

# ruff: noqa: S608 (the SQL is put together from the project's own models and table names)
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lineage.dbt_models import Model, Project

DAY_TABLES = Path(__file__).with_name("day_tables.yaml")
CALENDAR_MODEL = "int_transaction_days"
DAY = timedelta(days=1)
BATCHES_A_WORKER = 8


class PlanError(Exception):
    """The backfill asked for can't be planned; the message says why."""


class DayTable(BaseModel):
    """An entry of day_tables.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    day: str
    changed_day: int | None = None
    lookback_days: int = Field(default=0, ge=0)
    inputs: dict[str, str]
    streamed: bool = False


@dataclass(frozen=True)
class Batch:
    """The days [first, last] of a table, or all of a table that is not kept by day (both None)."""

    model: str
    first: date | None
    last: date | None

    @property
    def days(self) -> int:
        """How many days it has; one for a whole table."""
        return 1 if self.first is None or self.last is None else (self.last - self.first).days + 1


@dataclass(frozen=True)
class Step:
    """One table: which days of it are rebuilt (None: all rows), in batches that may run side by side."""

    model: Model
    table: DayTable | None
    batches: tuple[Batch, ...]


def read_day_tables(path: Path = DAY_TABLES) -> dict[str, DayTable]:
    """Return the entries of day_tables.yaml; raises PlanError where it is not what it must be."""
    try:
        return TypeAdapter(dict[str, DayTable]).validate_python(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (yaml.YAMLError, ValidationError) as error:
        raise PlanError(f"{path.name}: {error}") from error


def day_table(model: Model, entries: Mapping[str, DayTable]) -> DayTable | None:
    """Return the entry of a table, or of the version it came from; None for a table that is rebuilt whole.

    Raises PlanError where the entry is missing or does not limit everything that the model reads.
    """
    entry = entries.get(model.name) or entries.get(re.sub(r"_v\d+$", "", model.name))
    if entry is None:
        if model.materialized != "table":
            raise PlanError(
                f"{model.name} is {model.materialized}: say in {DAY_TABLES.name} what a day is made of"
            )
        return None
    # A model of changed days reads the calendar through the macro that finds them, which a backfill replaces.
    only_macro = {CALENDAR_MODEL} if entry.changed_day is not None else set()
    read = {_base(name) for name in model.refs} | {_base(name) for name in model.sources}
    limited = set(entry.inputs)
    if not read - only_macro <= limited or not limited <= read:
        raise PlanError(
            f"{model.name} reads {', '.join(sorted(read - only_macro))}, but {DAY_TABLES.name} limits"
            f" {', '.join(sorted(limited))}"
        )
    return entry


def _base(name: str) -> str:
    return re.sub(r"_v\d+$", "", name)


def plan_steps(  # noqa: PLR0913, PLR0917 (what the command line asks for)
    project: Project,
    entries: Mapping[str, DayTable],
    targets: Iterable[str],
    days: tuple[date, date],
    batch_days: Callable[[tuple[date, date]], int],
    missing: Iterable[str] = (),
    history: date | None = None,
) -> list[Step]:
    """Return the tables to rebuild, each after those it is made from.

    What a target's first day is made from is rebuilt from so many days before. A table that does not exist
    yet (`missing`) and that another is made from is built from `history`, the first day of the raw rows, on.
    """
    first, last = days
    targets = list(targets)
    tables = [model for model in project.upstream(targets) if model.materialized in ("table", "incremental")]
    reach = {model.name: first for model in tables}
    made = {model.name: day_table(model, entries) for model in tables}
    for model in reversed(tables):
        entry = made[model.name]
        back = timedelta(days=entry.lookback_days if entry else 0)
        for read in model.refs & set(reach):
            reach[read] = min(reach[read], reach[model.name] - back)
            if read in set(missing) and history is not None:
                reach[read] = min(reach[read], history)
    steps = []
    for model in tables:
        covered = reach[model.name], last
        batches = _batches(model.name, made[model.name], covered, batch_days(covered))
        steps.append(Step(model, made[model.name], tuple(batches)))
    return steps


def _batches(model: str, entry: DayTable | None, days: tuple[date, date], batch_days: int) -> Iterator[Batch]:
    if entry is None:
        yield Batch(model, None, None)
        return
    first, last = days
    while first <= last:
        end = min(first + (batch_days - 1) * DAY, last)
        yield Batch(model, first, end)
        first = end + DAY


def default_batch_days(days: tuple[date, date], workers: int) -> int:
    """Return how many days a batch has unless told: about eight batches a worker.

    >>> default_batch_days((date(2026, 1, 1), date(2026, 6, 30)), 2)
    12
    """
    return -(-((days[1] - days[0]).days + 1) // (BATCHES_A_WORKER * workers))


def batch_sql(project: Project, step: Step, batch: Batch) -> str:
    """Return the query that gives the rows of a batch."""
    if step.table is None or batch.first is None or batch.last is None:
        return step.model.sql
    entry, first, last = step.table, _literal(batch.first), _literal(batch.last)

    def limited(read: Model) -> str:
        condition = entry.inputs[_base(read.name)]
        if condition == "all":
            return read.relation
        if condition == "calendar":
            rows = f"select least(max(tx_date), {last} - 1) as tx_date from {read.relation}"
        else:
            rows = f"select * from {read.relation} where {condition.format(first=first, last=last)}"
        return f"({rows}) as {read.name}"

    changed = _literal(batch.first + (entry.changed_day or 0) * DAY)
    sql = project.render(step.model.name, limited, {"first_changed_day": lambda _: changed})
    return f"select * from (\n{sql}\n) as computed\nwhere {entry.day} between {first} and {last}"


def _literal(day: date) -> str:
    return f"'{day.isoformat()}'::date"
