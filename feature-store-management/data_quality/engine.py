"""Suites run by Great Expectations inside PostgreSQL, so that rows stay where they are and memory is bounded.

Great Expectations is imported where it runs: it takes seconds, and neither the tests of the rest nor the gate
of publication need it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from data_source_connectors.database_connector import DatabaseSettings

from .suites import MOST_ROWS, Expectation, Schemas, Suite, Window, query_of, rows_under_check

Status = Literal["passed", "failed", "crashed"]
SAMPLE_ROWS = 5
REASON_LENGTH = 500
# An expectation that stands for the whole suite: its rows can't even be read.
SUITE_RUNS = Expectation(
    name="suite_runs",
    severity="critical",
    why="Rows that can't be checked are not known to be good.",
    no_rows="select * from {batch}",
)


@dataclass(frozen=True)
class Result:
    """What one expectation found: how many rows broke it, out of how many, and some of them."""

    suite: Suite
    expectation: Expectation
    status: Status
    observed: str
    broken: int | None = None
    rows: int | None = None
    sample: tuple[dict[str, Any], ...] = field(default=())

    @property
    def is_critical_failure(self) -> bool:
        """Whether this alone stops publication."""
        return self.status != "passed" and self.expectation.severity == "critical"


def great_expectations() -> Any:
    """Import Great Expectations, with its usage reports off.

    Without pyspark, which it would load although nothing here runs on Spark: that takes half of the time, and
    ends the whole process where the main module has no file.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    hidden = "pyspark" not in sys.modules
    if hidden:
        sys.modules["pyspark"] = None  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import great_expectations as gx  # noqa: PLC0415
    finally:
        if hidden:
            del sys.modules["pyspark"]
    return gx


@contextmanager
def opened(database: DatabaseSettings) -> Iterator[Checker]:
    """Yield a checker on the database; its connections end with it."""
    gx = great_expectations()
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    user, password = (quote(text, safe="") for text in (database.user, database.password.get_secret_value()))
    source = context.data_sources.add_postgres(
        "feature_store",
        connection_string=(
            f"postgresql+psycopg2://{user}:{password}@{database.host}:{database.port}/{quote(database.name)}"
            f"?sslmode={database.sslmode}&application_name=data_quality"
            f"&connect_timeout={database.connect_timeout_seconds}"
            f"&options=-c%20timezone%3DUTC%20-c%20statement_timeout%3D{database.statement_timeout_seconds}s"
        ),
    )
    try:
        yield Checker(gx, source, hide=(user, password, database.password.get_secret_value()))
    finally:
        source.get_execution_engine().close()


class Checker:
    """Runs suites; whatever happens to one becomes its result."""

    def __init__(self, gx: Any, source: Any, hide: Sequence[str]) -> None:
        self.gx, self.source, self.hide = gx, source, hide

    def run(self, suite: Suite, schemas: Schemas, window: Window | None) -> list[Result]:
        """Return the result of every expectation; a suite that can't run has failed, with its reason."""
        try:
            return self._run(suite, schemas, window)
        except Exception as error:  # whatever the reason, the rows are not known to be good
            return [Result(suite, SUITE_RUNS, "crashed", self._reason(error))]

    def _run(self, suite: Suite, schemas: Schemas, window: Window | None) -> list[Result]:
        asset = self.source.add_query_asset(suite.name, query=rows_under_check(suite, schemas, window))
        try:
            batch = asset.add_batch_definition_whole_table("rows").get_batch()
            return self._validated(batch, suite, schemas, window)
        finally:
            self.source.delete_asset(suite.name)

    def _validated(self, batch: Any, suite: Suite, schemas: Schemas, window: Window | None) -> list[Result]:
        results: dict[str, Result] = {}
        # The rows that a query finds are asked for; of columns only some values, or memory has no bound.
        for kind, form in (("expect", "BASIC"), ("no_rows", "COMPLETE")):
            chosen = [e for e in suite.expectations if getattr(e, kind) is not None]
            if not chosen:
                continue
            whole = self.gx.ExpectationSuite(
                name=f"{suite.name}.{kind}",
                expectations=[self._configured(expectation, schemas, window) for expectation in chosen],
            )
            for found in batch.validate(whole, result_format=form).results:
                name = found.expectation_config.meta["name"]
                [expectation] = [e for e in chosen if e.name == name]
                results[name] = self._result(suite, expectation, found)
        return [results[expectation.name] for expectation in suite.expectations]

    def _configured(self, expectation: Expectation, schemas: Schemas, window: Window | None) -> Any:
        common = {"meta": {"name": expectation.name}, "severity": expectation.severity}
        if expectation.no_rows is not None:
            query = query_of(expectation, schemas, window)
            return self.gx.expectations.UnexpectedRowsExpectation(unexpected_rows_query=query, **common)
        words = str(expectation.expect).split("_")
        made = getattr(self.gx.expectations, "".join(word.capitalize() for word in words))
        return made(**expectation.arguments, **common)

    def _result(self, suite: Suite, expectation: Expectation, found: Any) -> Result:
        if reason := crash_reason(found.exception_info):
            return Result(suite, expectation, "crashed", self._shortened(reason))
        detail = dict(found.result)
        status: Status = "passed" if found.success else "failed"
        if expectation.no_rows is not None:
            broken = int(detail["observed_value"])
            sample = tuple(detail.get("details", {}).get("unexpected_rows", []))[:SAMPLE_ROWS]
            more = " or more" if broken >= MOST_ROWS else ""
            return Result(suite, expectation, status, f"{broken}{more} rows", broken, None, sample)
        if "unexpected_count" in detail:
            # Of no rows at all the counts are null.
            broken, rows = int(detail["unexpected_count"] or 0), int(detail["element_count"] or 0)
            values = [*dict.fromkeys(map(_shown, detail.get("partial_unexpected_list", [])))][:SAMPLE_ROWS]
            observed = f"{broken} of {rows} rows" + (f", such as {', '.join(values)}" if values else "")
            return Result(suite, expectation, status, observed, broken, rows)
        return Result(suite, expectation, status, f"observed {detail.get('observed_value')}")

    def _reason(self, error: BaseException) -> str:
        return self._shortened(f"{type(error).__name__}: {error}")

    def _shortened(self, text: str) -> str:
        for secret in self.hide:
            text = text.replace(secret, "***") if len(secret) > 3 else text
        return " ".join(text.split())[:REASON_LENGTH]


def crash_reason(info: Mapping[str, Any] | None) -> str | None:
    """Return why an expectation could not be computed, from either form of Great Expectations' report.

    >>> crash_reason({"raised_exception": False}) is None
    True
    >>> crash_reason({"('a', 'b')": {"raised_exception": True, "exception_message": "no column"}})
    'no column'
    """
    for part in [info, *(info or {}).values()]:
        if isinstance(part, Mapping) and part.get("raised_exception"):
            return str(part.get("exception_message") or "no reason given")
    return None


def _shown(value: Any) -> str:
    return str(value)[:60]
