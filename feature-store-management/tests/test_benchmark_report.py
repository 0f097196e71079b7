"""A benchmark's report says what was measured, beside what, and whether its target holds."""

import json
from pathlib import Path

from benchmarks.report import Growth, Report, Result, judged, plot_growth, read_report, write_report

MISSED = Result("stream, events a second", 4999.0, "events/s")
MET = Result("training set, times faster than the SDK", 2.0, "s", peer="SDK", peer_value=24.0, ratio=12.0)


def test_a_target_is_judged_on_the_ratio_where_there_is_a_peer() -> None:
    targets = {MET.name: ">= 10"}
    assert judged(MET, targets)["met"] is True
    assert judged(Result(MET.name, 20.0, "s", "SDK", 24.0, 1.2), targets)["met"] is False


def test_the_report_says_what_was_missed_and_what_has_no_target(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "bench-features.json"
    untargeted = Result("replay, events a second", 1.0, "events/s")
    write_report(Report([MISSED, MET, untargeted], []), ["bench"], path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [result["met"] for result in written["results"]] == [False, True, None]
    assert written["command"] == "bench"
    assert written["machine"]["cpus"] >= 1


def test_growth_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "growth.png"
    plot_growth([Growth("work", multiple, 1000 * multiple, 0.1 * multiple) for multiple in (1, 4, 16)], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    report = Report([MISSED, MET], [Growth("work", 1, 1000, 0.1)])
    write_report(report, ["bench"], path)
    assert read_report(path) == report
