"""Suites as data, the days a check looks at, its reports and its verdict: all that needs no database."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlglot
import yaml
from common_test_utils import CONTRACTS_DIR, ROOT_DIR
from prometheus_client.parser import text_string_to_metric_families

from data_quality import report
from data_quality.check import main, window_to_check
from data_quality.engine import Result, crash_reason
from data_quality.publication import Obstacle
from data_quality.store import Run, as_json
from data_quality.suites import (
    LEVELS,
    SUITES_DIR,
    Expectation,
    Schemas,
    Suite,
    SuiteError,
    Window,
    query_of,
    read_suites,
    rows_under_check,
)

SUITES = read_suites()
WINDOW = Window(date(2026, 11, 19), date(2026, 11, 20))
QUERIES = [(s, e) for s in SUITES for e in s.expectations if e.no_rows is not None]


def test_every_level_has_suites_and_every_raw_contract_is_checked():
    assert {suite.level for suite in SUITES} == set(LEVELS)
    tables = {path.name.removesuffix(".schema.json") for path in (CONTRACTS_DIR / "schemas").glob("raw.*")}
    assert {suite.contract for suite in SUITES if suite.level == "raw"} == tables


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_suite_is_owned_and_holds_critical_expectations(suite: Suite):
    assert suite.owner
    assert any(expectation.severity == "critical" for expectation in suite.expectations)
    assert suite.name.startswith(f"{suite.level}_")


@pytest.mark.parametrize(("suite", "expectation"), QUERIES, ids=[f"{s.name}.{e.name}" for s, e in QUERIES])
def test_a_query_is_one_select_that_names_all_it_needs(suite: Suite, expectation: Expectation):
    query = query_of(expectation, Schemas("x_", "other_raw"), WINDOW)
    assert query.count("{") == query.count("{batch}") == 1
    [parsed] = sqlglot.parse(query.replace("{batch}", "under_check"), dialect="postgres")
    assert isinstance(parsed, sqlglot.exp.Select)
    schemas = {table.db for table in parsed.find_all(sqlglot.exp.Table) if table.db}
    assert schemas <= {"other_raw", "x_staging", "x_features", "x_labels"}


def test_a_contract_becomes_expectations_of_every_column():
    [suite] = [suite for suite in SUITES if suite.name == "raw_transactions"]
    promised = {e.name: e for e in suite.expectations if e.name.startswith("contract.")}
    contract = json.loads((CONTRACTS_DIR / "schemas" / "raw.transactions.v1.schema.json").read_text())
    assert {f"contract.{column}.present" for column in contract["required"]} <= set(promised)
    amount = promised["contract.tx_amount.range"]
    assert amount.arguments == {"column": "tx_amount", "min_value": 0, "max_value": 1_000_000}
    assert {e.severity for e in promised.values()} == {"critical"}


GOOD = {
    "name": "raw_things",
    "level": "raw",
    "owner": "me",
    "table": "raw.things",
    "expectations": [
        {"name": "a", "severity": "critical", "why": "Because it must.", "no_rows": "select 1 from {batch}"}
    ],
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"owner": ""}, "owner"),
        ({"level": "marts"}, "level"),
        ({"name": "other"}, "the suite is named other"),
        ({"surprise": 1}, "surprise"),
        ({"contract": "raw.things.v9"}, "contract raw.things.v9 can't be read"),
        ({"table": "things; drop"}, "table"),
        ({"expectations": [{**GOOD["expectations"][0], "severity": "blocker"}]}, "severity"),  # type: ignore[dict-item]
        ({"expectations": [{**GOOD["expectations"][0], "expect": "expect_x"}]}, "either expect or no_rows"),  # type: ignore[dict-item]
        ({"expectations": [GOOD["expectations"][0]] * 2}, "expectations of one name: a"),  # type: ignore[index]
        ({"expectations": [{**GOOD["expectations"][0], "no_rows": "select {today}"}]}, "unknown {today}"),  # type: ignore[dict-item]
    ],
)
def test_a_wrong_suite_is_refused_with_its_file(tmp_path: Path, change: dict[str, Any], complaint: str):
    (tmp_path / "raw_things.yaml").write_text(yaml.safe_dump(GOOD))
    assert len(read_suites(folder=tmp_path)) == 1
    (tmp_path / "raw_things.yaml").write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(SuiteError, match=r"raw_things\.yaml") as caught:
        read_suites(folder=tmp_path)
    assert complaint in str(caught.value)


def test_rows_are_those_of_the_days_and_those_without_a_day():
    by_date, by_time = (
        Suite.model_validate({**GOOD, "day": {"column": "day", "kind": kind}})
        for kind in ("date", "timestamp")
    )
    assert rows_under_check(by_date, Schemas(), WINDOW) == (
        "select * from raw.things where day between date '2026-11-19' and date '2026-11-20' or day is null"
    )
    assert "day < (date '2026-11-20' + 1)::timestamp at time zone 'UTC'" in rows_under_check(
        by_time, Schemas(), WINDOW
    )
    assert rows_under_check(by_date, Schemas(), None) == "select * from raw.things"


def test_a_changed_suite_is_another_one():
    suite = Suite.model_validate(GOOD)
    stricter = {**GOOD["expectations"][0], "severity": "warning"}  # type: ignore[dict-item]
    assert suite.definition == Suite.model_validate(GOOD).definition
    assert suite.definition != Suite.model_validate({**GOOD, "expectations": [stricter]}).definition


D = [date(2026, 11, day) for day in range(1, 11)]


def test_a_check_looks_at_what_is_not_known_to_be_good():
    assert window_to_check(WINDOW, {D[9]}, {D[0]}, []) == WINDOW, "asked for"
    assert window_to_check(None, {D[9]}, {D[3], D[5]}, []) == Window(D[3], D[5])
    assert window_to_check(None, {D[9]}, set(), []) == Window(D[9], D[9]), "time alone can make it wrong"
    assert window_to_check(None, {D[8], D[9]}, set(), []) == Window(D[8], D[9]), "tables end on other days"
    assert window_to_check(None, {D[9]}, {D[7]}, [Window(D[1], D[2])]) == Window(D[1], D[7]), "unresolved"
    assert window_to_check(None, set(), set(), []) is None


def result(severity: str, status: str, name: str = "a", **fields: Any) -> Result:
    suite = Suite.model_validate(GOOD)
    expectation = Expectation.model_validate({**GOOD["expectations"][0], "name": name, "severity": severity})  # type: ignore[dict-item]
    return Result(suite, expectation, status, "seen <b>", 3, 10, **fields)  # type: ignore[arg-type]


def run(*results: Result, reason: str | None = None) -> Run:
    return Run("features", datetime(2026, 11, 21, 1, 2, 3, tzinfo=UTC), 1.5, WINDOW, results, reason)


@pytest.mark.parametrize(
    ("results", "reason", "status"),
    [
        ([result("critical", "passed")], None, "passed"),
        ([result("warning", "failed"), result("warning", "crashed")], None, "passed"),
        ([result("critical", "failed")], None, "failed"),
        ([result("critical", "crashed")], None, "failed"),
        ([], "the table is gone", "failed"),
    ],
    ids=["good", "warnings", "failed", "crashed", "not made"],
)
def test_only_what_is_critical_fails_a_run(results: list[Result], reason: str | None, status: str):
    assert run(*results, reason=reason).status == status


def test_a_crash_is_found_in_either_form_of_report():
    assert crash_reason(None) is None
    assert crash_reason({"raised_exception": False, "exception_message": None}) is None
    assert crash_reason({"raised_exception": True, "exception_message": "no table"}) == "no table"
    assert (
        crash_reason({"('m',)": {"raised_exception": True, "exception_message": "no column"}}) == "no column"
    )


def test_the_page_shows_the_worst_first_and_escapes_what_rows_hold():
    sample = ({"note": "<script>alert(1)</script>", "value": float("nan"), "day": D[0]},)
    whole = run(result("critical", "passed", "fine"), result("critical", "failed", "broken", sample=sample))
    history = [
        {
            "started_at": whole.started_at,
            "critical_failures": 1,
            "warnings": 0,
            "not_passed": {"raw_things.broken": "failed"},
        }
    ]
    page = report.html_page(whole, history, {"raw_things": {D[0]: "12:99", D[1]: "13:98"}})
    assert page.index("raw_things.broken") < page.index("raw_things.fine")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert "2026-11-19 to 2026-11-20" in page
    assert as_json(sample) == [{"note": "<script>alert(1)</script>", "value": None, "day": "2026-11-01"}]


def test_a_run_is_written_as_json_and_said_in_lines(tmp_path: Path):
    whole = run(result("critical", "failed", "broken"), result("warning", "failed", "odd"))
    page = report.write(tmp_path, whole, [], {})
    assert page.read_text().startswith("<!doctype html>")
    written = json.loads((tmp_path / "features.json").read_text())
    assert (written["status"], written["critical_failures"], written["warnings"]) == ("failed", 1, 1)
    assert [row["expectation"] for row in written["results"]] == ["broken", "odd"]
    said = list(report.lines(whole))
    assert said[0] == "CRITICAL raw_things.broken: failed: seen <b>. Because it must."
    assert said[1].startswith("warning raw_things.odd")
    assert "1 critical failures, 1 warnings" in said[-1]


def test_metrics_are_those_of_the_newest_runs(tmp_path: Path):
    row = {
        "level": "raw",
        "started_at": datetime(2026, 11, 21, tzinfo=UTC),
        "seconds": 2.5,
        "run_status": "failed",
        "suite": "raw_things",
        "expectation": "a",
        "severity": "critical",
        "status": "failed",
        "broken_rows": 7,
    }
    not_made = {**row, "level": "features", "suite": None, "expectation": None, "severity": None}
    report.write_metrics(tmp_path / "metrics.prom", [row, {**not_made, "broken_rows": None}])
    samples = {
        (sample.name.removeprefix("feature_store_quality_"), sample.labels["level"]): sample.value
        for family in text_string_to_metric_families((tmp_path / "metrics.prom").read_text())
        for sample in family.samples
    }
    assert samples["expectation_success", "raw"] == 0
    assert samples["broken_rows", "raw"] == 7
    assert samples["passed", "raw"] == samples["passed", "features"] == 0
    assert samples["run_timestamp_seconds", "raw"] == datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    assert ("broken_rows", "features") not in samples


def test_an_obstacle_says_what_failed_and_when():
    moment = datetime(2026, 11, 21, 1, 2)  # noqa: DTZ001 (as the database gives it, in UTC)
    text = str(Obstacle(7, moment, D[0], D[1], None, ("features_a.b", "features_a.c")))
    assert text == "check 7 of 2026-11-21 01:02 UTC, 2026-11-01 to 2026-11-02: features_a.b, features_a.c"
    assert "all days: gone" in str(Obstacle(7, moment, None, None, "gone", ()))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--level", "marts"],
        ["--level", "raw", "--date", "yesterday"],
        ["--level", "raw", "--date", "2026-11-01", "--from", "2026-11-01", "--to", "2026-11-02"],
        ["--level", "raw", "--from", "2026-11-02"],
        ["--level", "raw", "--from", "2026-11-02", "--to", "2026-11-01"],
    ],
)
def test_wrong_options_are_refused(options: list[str]):
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in ("HOST", "NAME", "USER", "PASSWORD"):
        monkeypatch.delenv(f"FEATURE_STORE_DB_{name}", raising=False)
    assert main(["--level", "raw"]) == 2
    assert "FEATURE_STORE_DB_HOST is not set" in capsys.readouterr().err


def test_asking_for_the_verdict_loads_nothing_large():
    heavy = "{'great_expectations', 'pandas', 'pyspark', 'sqlalchemy', 'pyarrow', 'matplotlib'}"
    code = f"import sys, data_quality.publication; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT_DIR, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_suites_lie_where_they_are_read():
    assert {path.stem for path in SUITES_DIR.glob("*.yaml")} == {suite.name for suite in SUITES}
