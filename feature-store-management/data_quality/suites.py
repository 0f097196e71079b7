"""The suites of expectations, read from `suites/*.yaml`.

A suite looks at one table; an expectation is one of Great Expectations' own (`expect` with `with`) or a query
that must find no row (`no_rows`). `contract` adds what the table's schema contract promises of every column.
In a query `{batch}` is the rows under check, `{raw}`, `{staging}`, `{features}` and `{labels}` are schemas'
names, `{from_day}` and `{to_day}` the first and last UTC day under check as SQL dates.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SUITES_DIR = Path(__file__).with_name("suites")
SCHEMAS_DIR = Path(__file__).resolve().parents[1] / "contracts" / "schemas"
Level = Literal["raw", "staging", "features"]
LEVELS: tuple[Level, ...] = ("raw", "staging", "features")
# More broken rows than these are not counted: the verdict is the same, and memory stays bounded.
MOST_ROWS = 1000
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class SuiteError(Exception):
    """A suite can't be read; the message names the file and the place."""


class ContractMissingError(SuiteError):
    """A suite names a contract that can't be read."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Expectation(_Frozen):
    """One promise: its stable name, what its failure means, and how it is checked."""

    name: str = Field(pattern="^[a-z][a-z0-9_.]*$")
    severity: Literal["critical", "warning"]
    why: str = Field(min_length=10)
    expect: str | None = Field(default=None, pattern="^expect_[a-z_]+$")
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with")
    no_rows: str | None = None

    @model_validator(mode="after")
    def _has_one_way(self) -> Expectation:
        if (self.expect is None) == (self.no_rows is None):
            raise ValueError("an expectation has either expect or no_rows")
        return self


class Day(_Frozen):
    """The column that says which UTC day a row belongs to."""

    column: str = Field(pattern="^[a-z_]+$")
    kind: Literal["date", "timestamp"]


class Suite(_Frozen):
    """The expectations of one table; without `day` they always look at all of it."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    level: Level
    owner: str = Field(min_length=2)
    table: str = Field(pattern=r"^[a-z_]+\.[a-z_]+$")
    day: Day | None = None
    contract: str | None = None
    expectations: tuple[Expectation, ...]

    @property
    def definition(self) -> str:
        """What identifies the suite as it is now: rows that passed another have not passed this."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Window:
    """The UTC days under check, both included."""

    first: date
    last: date


@dataclass(frozen=True)
class Schemas:
    """The names of the schemas, with the prefix of a rehearsal where there is one."""

    prefix: str = ""
    raw: str = "raw"

    def name(self, schema: str) -> str:
        """Return the real name of a schema."""
        return self.raw if schema == "raw" else f"{self.prefix}{schema}"

    def table(self, table: str) -> str:
        """Return the real name of `schema.table`."""
        schema, _, name = table.partition(".")
        return f"{self.name(schema)}.{name}"


def read_suites(level: Level | None = None, folder: Path = SUITES_DIR) -> list[Suite]:
    """Return the suites of a level (or all) by name, contracts written out; SuiteError says what is wrong."""
    suites = [_read_suite(path) for path in sorted(folder.glob("*.yaml"))]
    if not suites:
        raise SuiteError(f"{folder} holds no suite")
    return [suite for suite in suites if level in (None, suite.level)]


def _read_suite(path: Path) -> Suite:
    try:
        suite = Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        if suite.name != path.stem:
            raise SuiteError(f"{path.name}: the suite is named {suite.name}")
        if suite.contract:
            promised = tuple(contract_expectations(suite.contract))
            suite = suite.model_copy(update={"expectations": promised + suite.expectations})
    except ContractMissingError as error:
        raise SuiteError(f"{path.name}: {error}") from None
    except yaml.YAMLError as error:
        raise SuiteError(f"{path.name}: no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SuiteError(f"{path.name}: {place}: {first['msg']}") from None
    names = [expectation.name for expectation in suite.expectations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SuiteError(f"{path.name}: expectations of one name: {', '.join(twice)}")
    for expectation in suite.expectations:
        unknown = set(PLACEHOLDER.findall(expectation.no_rows or "")) - KNOWN_WORDS
        if unknown:
            raise SuiteError(f"{path.name}: {expectation.name}: unknown {{{', '.join(sorted(unknown))}}}")
    return suite


KNOWN_WORDS = {"batch", "raw", "staging", "intermediate", "features", "labels", "from_day", "to_day"}


def contract_expectations(name: str, folder: Path = SCHEMAS_DIR) -> Iterator[Expectation]:
    """Yield what a schema contract promises of each column: never null, its values, its range."""
    try:
        schema: dict[str, Any] = json.loads((folder / f"{name}.schema.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ContractMissingError(f"contract {name} can't be read: {error}") from None

    def promise(column: str, what: str, expect: str, **arguments: Any) -> Expectation:
        return Expectation.model_validate(
            {
                "name": f"contract.{column}.{what}",
                "severity": "critical",
                "why": f"The contract {name} says so.",
                "expect": expect,
                "with": {"column": column, **arguments},
            }
        )

    for column, part in schema["properties"].items():
        types = [part["type"]] if isinstance(part.get("type"), str) else part.get("type", [])
        if column in schema["required"] and "null" not in types:
            yield promise(column, "present", "expect_column_values_to_not_be_null")
        if "enum" in part:
            yield promise(column, "values", "expect_column_values_to_be_in_set", value_set=part["enum"])
        bounds = {"min_value": part.get("minimum"), "max_value": part.get("maximum")}
        if any(bound is not None for bound in bounds.values()):
            yield promise(column, "range", "expect_column_values_to_be_between", **bounds)


def rows_under_check(suite: Suite, schemas: Schemas, window: Window | None) -> str:
    """Return the query for the rows that a suite looks at; a row without a day is always among them.

    >>> suite = Suite(name="a", level="raw", owner="me", table="raw.a", expectations=())
    >>> rows_under_check(suite, Schemas("x_", "x_raw"), None)
    'select * from x_raw.a'
    """
    query = f"select * from {schemas.table(suite.table)}"  # noqa: S608 (names from the suite, checked)
    if suite.day is None or window is None:
        return query
    column = suite.day.column
    first, last = (f"date '{day}'" for day in (window.first, window.last))
    if suite.day.kind == "date":
        return f"{query} where {column} between {first} and {last} or {column} is null"
    return (
        f"{query} where {column} >= {first}::timestamp at time zone 'UTC'"
        f" and {column} < ({last} + 1)::timestamp at time zone 'UTC' or {column} is null"
    )


def query_of(expectation: Expectation, schemas: Schemas, window: Window | None) -> str:
    """Return the query of a `no_rows` expectation, for MOST_ROWS rows at most.

    Only one `{batch}` is left in it, for Great Expectations to fill in.
    """
    first, last = (window.first, window.last) if window else ("-infinity", "infinity")
    words: Mapping[str, str] = {
        **{name: schemas.name(name) for name in KNOWN_WORDS - {"batch", "from_day", "to_day"}},
        "from_day": f"date '{first}'",
        "to_day": f"date '{last}'",
        "batch": "batch",
    }
    text = PLACEHOLDER.sub(lambda found: words[found[1]], expectation.no_rows or "").strip()
    return (
        "with batch as (select * from {batch})"  # noqa: S608 (text of the suite)
        f" select * from ({text}) as broken limit {MOST_ROWS}"
    )
