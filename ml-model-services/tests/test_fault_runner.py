from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import run

LINES = [
    {"name": "kills", "value": 100, "unit": "kills", "target": None, "met": True},
    {"name": "lost", "value": 1, "unit": "decisions", "target": 0, "met": False},
]


def one(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    date = "2026-01-31T12:00:00+00:00"
    return {"name": name, "scale": "full", "date": date, "seconds": 61.4, "results": results}


def test_every_module_with_a_run_is_found() -> None:
    found = run.modules()
    assert {"full_disk", "kills", "sinks_down", "soak"} <= set(found)
    assert "run" not in found
    assert "tcp_proxy" not in found


def test_the_page_gets_the_tables_of_what_ran_and_keeps_the_others() -> None:
    page = run.documented("# Reliability\n", [one("kills", LINES), one("soak", LINES[:1])])
    assert "`python -m faults.run --full --only kills`" in page
    assert "| lost | 1 decisions | 0 | **no** |" in page
    again = run.documented(page, [one("kills", LINES[:1])])
    assert "**no**" not in again
    assert again.count("### kills") == 1
    assert again.split("### soak")[1] == page.split("### soak")[1]


def test_a_missed_target_and_a_broken_module_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    monkeypatch.setattr(run, "run_one", lambda name, scale: one(name, LINES))
    assert run.main(["--full", "--only", "kills"]) == 1
    written = json.loads((tmp_path / "fault-test.json").read_text())
    assert written["command"] == "python -m faults.run --full --only kills"
    assert [line["name"] for line in written["results"]] == ["kills: kills", "kills: lost"]
    assert [line["met"] for line in written["results"]] == [True, False]
    monkeypatch.setattr(run, "run_one", lambda name, scale: one(name, LINES[:1]))
    assert run.main(["--only", "kills"]) == 0


def test_a_module_that_breaks_is_a_missed_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CALL", "raise SystemExit(3)")
    broken = run.run_one("kills", "small")
    assert [(line["value"], line["met"]) for line in broken["results"]] == [(3, False)]
