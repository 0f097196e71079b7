"""The command line that runs DAGs."""

from __future__ import annotations

import argparse
import io
from datetime import UTC, datetime

import pytest

from run_dag import Console, Request, parse_conf, parse_moment, parse_requests


def test_a_dags_own_parameters_win_over_the_common_ones():
    assert parse_requests(["a", 'b={"date": "2026-01-01"}'], {"date": "2026-02-02", "x": 1}) == [
        Request("a", {"date": "2026-02-02", "x": 1}),
        Request("b", {"date": "2026-01-01", "x": 1}),
    ]


@pytest.mark.parametrize("text", ["{", "[1]", '"a"'])
def test_parameters_must_be_a_json_object(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_conf(text)


def test_a_moment_without_a_zone_is_utc():
    assert parse_moment("2026-11-21") == datetime(2026, 11, 21, tzinfo=UTC)
    assert parse_moment("2026-11-21T02:00+02:00") == datetime(2026, 11, 21, tzinfo=UTC)
    with pytest.raises(argparse.ArgumentTypeError):
        parse_moment("today")


def test_the_console_shows_a_task_its_end_and_why():
    out = io.StringIO()
    console = Console(out)
    console.started("train")
    console.ended("train", "failed", "exited with 2\n  | no rows")
    shown = out.getvalue().splitlines()
    assert shown[0].split() == ["train", "failed", "0.0", "s"]
    assert shown[1:] == ["      exited with 2", "        | no rows"]
    assert console.seconds["train"] >= 0
