"""What a materialization writes: everything that can still be valid at END, however the last run went."""

import argparse
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from materialize import interval_to_write, main, materialize, parse_time, plan

DAY = timedelta(days=1)
END = datetime(2026, 11, 21, 6, tzinfo=UTC)
TIMES = st.integers(0, 400 * 86_400).map(lambda seconds: END - timedelta(seconds=seconds))


def view(name: str, ttl: timedelta | None, written_until: datetime | None = None, online: bool = True) -> Any:
    return SimpleNamespace(name=name, ttl=ttl, most_recent_end_time=written_until, online=online)


class Store:
    """Feast, as far as materialize() knows it."""

    def __init__(self, *views: Any) -> None:
        self.views = views
        self.written: list[tuple[datetime, datetime, list[str]]] = []

    def list_feature_views(self) -> list[Any]:
        return list(self.views)

    def materialize(self, start_date: datetime, end_date: datetime, feature_views: list[str]) -> None:
        self.written.append((start_date, end_date, feature_views))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21", "2026-11-21T00:00:00+00:00"),
        ("2026-11-21T06:30:00", "2026-11-21T06:30:00+00:00"),
        ("2026-11-21T06:30:00Z", "2026-11-21T06:30:00+00:00"),
        ("2026-11-21 08:30:00+02:00", "2026-11-21T06:30:00+00:00"),
    ],
)
def test_times_without_an_offset_are_utc(text: str, expected: str):
    assert parse_time(text).isoformat() == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2026-02-30", "21.11.2026"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="ISO 8601"):
        parse_time(text)


@given(end=TIMES, written_until=st.none() | TIMES, ttl=st.timedeltas(DAY, 30 * DAY))
def test_everything_still_valid_is_written_unless_the_store_stands_later(
    end: datetime, written_until: datetime | None, ttl: timedelta
):
    interval = interval_to_write(ttl, written_until, end, None)
    if written_until is not None and written_until > end:
        assert interval is None
    else:
        assert interval == (end - ttl, end)


@given(end=TIMES, written_until=st.none() | TIMES, start=TIMES)
def test_an_explicit_start_always_writes(end: datetime, written_until: datetime | None, start: datetime):
    assert interval_to_write(DAY, written_until, end, start) == (start, end)


def test_views_of_one_interval_are_written_together():
    later = END + DAY
    views = [view("b", DAY), view("a", DAY, END), view("c", 3650 * DAY), view("d", DAY, later)]
    assert plan(views, END, None) == {
        (END - DAY, END): ["a", "b"],
        (END - 3650 * DAY, END): ["c"],
        None: ["d"],
    }


def test_a_view_without_a_lifetime_is_refused():
    with pytest.raises(ValueError, match="a has no time to live"):
        plan([view("a", None)], END, None)


def test_only_online_views_are_written_and_the_others_named(capsys: pytest.CaptureFixture[str]):
    store = Store(view("a", DAY), view("b", DAY, online=False), view("c", DAY, END + DAY))
    materialize(store, END, None)  # type: ignore[arg-type]
    assert store.written == [(END - DAY, END, ["a"])]
    out = capsys.readouterr().out
    assert "wrote a as of" in out
    assert "stands later than 2026-11-21T06:00:00+00:00: c" in out


def test_an_empty_registry_says_what_to_do():
    with pytest.raises(SystemExit, match=r"run_feast_apply\.sh"):
        materialize(Store(), END, None)  # type: ignore[arg-type]


def test_a_start_after_the_end_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["2026-11-21", "--from", "2026-11-22"])
    assert stop.value.code == 2
    assert "is not before END" in capsys.readouterr().err
