from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
from app.core import catalogue, client, guard
from app.core.catalogue import Catalogue, UnreadableLine, read_new_movies
from app.presentation import charts, html, words
from app.presentation.charts import Point
from app.tabs import fraud, parts
from conftest import THRESHOLDS, explanation, reply, summary
from hypothesis import given
from hypothesis import strategies as st

from common_service_libs.label_engine.reason_codes import reason_codes

SPACE = words.NBSP


@pytest.mark.parametrize("module", [words, charts, catalogue, client, guard, fraud, parts])
def test_the_examples_in_the_code_hold(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


# --- words ----------------------------------------------------------------------------------------


def test_every_feature_with_a_reason_has_words_of_its_own() -> None:
    names = [feature for code in reason_codes().values() for feature in code.features]
    labels = {name: words.feature_label(name) for name in names}
    assert len(set(labels.values())) == len(names)
    assert not [label for label in labels.values() if "_" in label or not label[0].isupper()]


@given(st.floats(min_value=0, max_value=1))
def test_a_share_is_written_with_one_digit_and_its_sign(share: float) -> None:
    number, sign = words.percent(share).split(SPACE)
    assert sign == "%"
    assert abs(float(number) - 100 * share) <= 0.0501


# --- HTML -----------------------------------------------------------------------------------------

EVIL = "<img src=x onerror=alert(1)>"


def test_a_card_says_decision_reasons_rules_and_origin() -> None:
    card = html.decision_card(reply(), THRESHOLDS)
    for text in (
        "Send to an analyst",
        "The model finds fraud likely enough to be looked at.",
        "Amount far above habit (on trial, decides nothing)",
        f"Review from 10.0{SPACE}%, decline from 50.0{SPACE}%",
        "nothing yet",
        f"1.2{SPACE}ms",
    ):
        assert text in card
    assert "Degraded" not in card


def test_a_degraded_decision_and_a_canarys_are_marked() -> None:
    card = html.decision_card(reply(degraded=True, rung="snapshot", variant="canary"), THRESHOLDS)
    assert (
        "Degraded: current features were not at hand for this decision. It rests on: local snapshot." in card
    )
    assert '<span class="chip warn">part <b>canary</b></span>' in card
    assert "there is no score" in html.decision_card(reply(score=None), {})


@pytest.mark.parametrize(
    "piece",
    [
        html.trouble(EVIL),
        html.hint(EVIL),
        html.pill(EVIL),
        html.decision_card(
            reply(EVIL, reason_codes=[EVIL], rules_fired=[EVIL], feature_status={EVIL: EVIL}, variant=EVIL),
            {EVIL: 1},
        ),
        html.contributions(
            explanation(
                contributions=[{"feature": EVIL, "value": EVIL, "contribution": 1, "reason_code": EVIL}]
            )
        ),
        html.service_states([(EVIL, False, EVIL)]),
        html.table([EVIL], [[EVIL]]),
        html.legend(EVIL, EVIL),
        html.rollout_facts({EVIL: {EVIL: [EVIL]}})[0][1],
    ],
)
def test_what_comes_from_outside_is_shown_and_never_run(piece: str) -> None:
    assert "<img" not in piece.lower()
    assert "&lt;" in piece


def test_contributions_are_bars_on_the_side_they_push_to() -> None:
    bars = html.contributions(explanation())
    assert "<i class='up' style='width:50.0%'>" in bars  # the largest reaches the edge
    assert "<i class='down' style='width:16.7%'>" in bars
    assert "250.00" in bars
    assert "Replayed from the record to the same score." in bars
    assert "another score" in html.contributions(explanation(reproduced=False))


def test_of_two_explanations_what_differs_most_comes_first() -> None:
    other = explanation(
        contributions=[
            {"feature": "tx_amount", "value": 240.0, "contribution": 1.4, "reason_code": None},
            {"feature": "tx_is_night", "value": 1.0, "contribution": 0.9, "reason_code": None},
        ]
    )
    both = html.contributions(explanation(), other)
    assert both.index("Night") < both.index("Amount")
    assert both.count("class='pair second'") == 2


def test_a_replay_that_gives_another_verdict_is_no_good_news() -> None:
    assert "notice good" in html.replay(explanation(decision_reproduced=True, replayed_decision="review"))
    wrong = html.replay(explanation(decision_reproduced=False, replayed_decision="approve"))
    assert "notice trouble" in wrong
    assert "“approve”" in wrong


# --- figures --------------------------------------------------------------------------------------


def test_decisions_come_to_counts_latencies_and_a_degraded_number() -> None:
    decisions = [
        summary("a", decision="decline", score=0.9, latency_ms=1.0),
        summary("b", decision="approve", score=0.1, latency_ms=3.0, degraded=True),
        summary("c", decision="approve", score=None, latency_ms=2.0),
    ]
    found = charts.summarize(decisions)
    assert found is not None
    assert list(found.by_decision.items()) == [("approve", 2), ("decline", 1)]
    assert found.mean_score == pytest.approx(0.5)
    assert (found.p50_ms, found.p95_ms, found.degraded) == (2.0, 3.0, 1)
    assert charts.summarize([]) is None
    assert "2 × approve and 1 × decline" in charts.summary_words(found)
    assert charts.summary_words(None) == "No decision is recorded yet."


@given(st.lists(st.floats(min_value=-3, max_value=20), max_size=30))
def test_every_score_is_in_one_bin(scores: list[float]) -> None:
    decisions = [summary(str(i), score=score) for i, score in enumerate(scores)]
    low, high = charts.score_range(decisions)
    bins = charts.score_histogram(decisions, low, high)
    assert sum(sum(counts) for counts in bins.values()) == len(scores)


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=40))
def test_every_decision_is_in_one_stretch_of_time(found: list[tuple[int, bool]]) -> None:
    decisions = [
        summary(
            str(i), requested_at=f"2026-01-31T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}Z", degraded=bad
        )
        for i, (s, bad) in enumerate(found)
    ]
    buckets = charts.over_time(decisions)
    assert sum(bucket.count for bucket in buckets) == len(found)
    assert sum(bucket.degraded for bucket in buckets) == sum(bad for _, bad in found)
    assert [bucket.begin for bucket in buckets] == sorted(bucket.begin for bucket in buckets)
    assert len(buckets) <= charts.MOST_BUCKETS


def test_the_gauge_shows_the_bands_between_the_thresholds() -> None:
    figure = charts.gauge(0.25, THRESHOLDS, "review")
    dial = figure.data[0]
    assert dial.value == 25.0
    assert [tuple(step.range) for step in dial.gauge.steps] == [(0, 10), (10, 50), (50, 100)]
    assert dial.gauge.bar.color == charts.colour_of("review")
    assert charts.gauge_of(reply(score=None), THRESHOLDS) is None
    assert charts.gauge(0.25, {}, "review").data[0].value == 25.0


def test_a_curve_has_its_thresholds_its_colours_and_the_point_entered() -> None:
    points = [Point(1, 0.05, "approve"), Point(2, 0.2, "review"), Point(3, None, "review")]
    figure = charts.curve(points, THRESHOLDS, axis="amount", now=points[1])
    line, here = figure.data
    assert list(line.x) == [1, 2]
    assert list(line.marker.color) == [charts.colour_of("approve"), charts.colour_of("review")]
    assert (here.x[0], here.y[0]) == (2, 20.0)
    assert {shape.y0 for shape in figure.layout.shapes} == {10.0, 50.0}
    assert charts.curve_words(points, "amount", words.money) == (
        "With the amount the decision goes from “approve” to “review” between 1.00 and 2.00."
    )
    assert (
        charts.curve_words(points[:1], "hour", words.clock) == "The decision is “approve” whatever the hour."
    )


# --- movies ---------------------------------------------------------------------------------------


def test_titles_are_found_by_the_beginnings_of_their_words(titles: Path) -> None:
    movies = Catalogue.read(titles)
    assert [movie.label for movie in movies.find("MATR")] == [
        "The Matrix (1999)",
        "The Matrix Reloaded (2003)",
    ]
    assert [movie.movie_id for movie in movies.find("amelie")] == [1]
    assert movies.find("rix") == movies.find("  ") == movies.find(None) == []
    assert movies.label(9) == "Untitled"
    assert movies.genres(9) == ()
    assert movies.label(404) == "Movie 404"
    assert len(Catalogue.read(None)) == 0


@pytest.mark.parametrize("line", ["a | b | c | d", "| 1999", "A title | soon"])
def test_a_line_of_new_movies_that_cannot_be_read_is_named(line: str) -> None:
    with pytest.raises(UnreadableLine) as caught:
        read_new_movies(f"Good | 2026\n\n{line}")
    assert caught.value.number == 3


def test_new_movies_have_ids_of_their_own_and_may_lack_year_and_genres() -> None:
    one, two = read_new_movies("One\nTwo | 2026 | Drama , Sci-Fi\n")
    assert (one.year, one.genres, two.year, two.genres) == (None, (), 2026, ("Drama", "Sci-Fi"))
    assert one.movie_id != two.movie_id
