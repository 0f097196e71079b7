from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from app.core.catalogue import Catalogue
from app.core.services import Services
from app.page import build_page, states
from app.tabs.churn import ChurnTab, difference_words
from app.tabs.decisions import DecisionsTab, collect, rows_of
from app.tabs.fraud import WHAT_IF, FraudTab, WrongTime, amount_cases, case_of, hour_cases
from app.tabs.models import cards
from app.tabs.movies import MoviesTab, request_of
from conftest import FakeService, explanation, reply, summary

CASE = {"customer_id": 5, "terminal_id": 31, "tx_amount": 20.0}


def test_what_is_left_empty_is_not_sent() -> None:
    assert case_of(5, None, 20, "") == {"customer_id": 5, "tx_amount": 20.0}
    assert case_of(5, 31, 20, "2026-01-31 12:00:00")["tx_datetime"] == "2026-01-31T12:00:00Z"
    with pytest.raises(WrongTime):
        case_of(5, 31, 20, "yesterday")


def test_what_if_cases_change_one_thing_and_are_marked() -> None:
    amounts = amount_cases(CASE)
    assert sorted(case["tx_amount"] for case in amounts) == [case["tx_amount"] for case in amounts]
    assert 20.0 in [case["tx_amount"] for case in amounts]
    hours = hour_cases(CASE, datetime(2026, 1, 31, 9, 15, tzinfo=UTC))
    assert [case["tx_datetime"][11:13] for case in hours] == [f"{hour:02d}" for hour in range(24)]
    assert hours[0]["tx_datetime"] == "2026-01-31T00:15:00Z"
    for case in [*amounts, *hours]:
        assert case["transaction_id"] == WHAT_IF
        assert case["customer_id"] == 5


@pytest.fixture
def fraud(services: Services) -> FraudTab:
    with gr.Blocks():
        return FraudTab(services)


def batch(request: httpx.Request) -> dict[str, Any]:
    """Decide by the amount alone."""
    decided = [
        reply(
            score=min(1.0, case["tx_amount"] / 400),
            decision="review" if case["tx_amount"] > 40 else "approve",
        )
        for case in json.loads(request.content)["cases"]
    ]
    return {"results": [{"status": 200, "decision": one, "problem": None} for one in decided]}


def test_scoring_shows_the_decision_then_what_moved_it(fraud: FraudTab) -> None:
    first, second = fraud.score(5, 31, 20.0, "", None)
    assert "Send to an analyst" in first[fraud.card]
    assert first[fraud.dial].data[0].value == 25.0
    assert "class='bar'" in second[fraud.moved]


def test_a_wrong_time_and_a_service_that_is_away_are_sentences(fraud: FraudTab, fake: FakeService) -> None:
    (wrong,) = fraud.score(5, 31, 20.0, "tomorrow", None)
    assert "Time: write it as" in wrong[fraud.card]
    fake.answers["POST", "/predict"] = httpx.ConnectError("refused")
    (away,) = fraud.score(5, 31, 20.0, "", None)
    assert 'role="alert"' in away[fraud.card]
    assert "The fraud service is away" in away[fraud.card]
    assert away[fraud.dial] is None


def test_a_decision_whose_explanation_cannot_be_had_is_shown_all_the_same(
    fraud: FraudTab, fake: FakeService
) -> None:
    fake.answers["POST", "/decisions/one/explain"] = httpx.Response(503)
    first, second = fraud.score(5, 31, 20.0, "", None)
    assert "Send to an analyst" in first[fraud.card]
    assert "overloaded or starting" in second[fraud.moved]


def test_curves_follow_the_amount_and_are_taken_away_with_another_customer(
    fraud: FraudTab, fake: FakeService
) -> None:
    fake.answers["POST", "/predict/batch"] = batch
    explored = fraud.explore(5, 31, 20.0, "")
    curves = explored[fraud.curves]
    assert "from “approve” to “review” between 40.00 and 50.00" in explored[fraud.amount_words]
    assert len(curves.by_hour) == 24
    first, _ = fraud.score(5, 31, 80.0, "", curves)
    assert first[fraud.by_amount].data[1].x[0] == 80.0
    assert first[fraud.by_hour] is None  # it was drawn for another amount
    first, _ = fraud.score(6, 31, 20.0, "", curves)
    assert first[fraud.by_amount] is None
    assert "has changed" in first[fraud.amount_words]


def test_nothing_is_asked_while_live_scoring_is_off(fraud: FraudTab, fake: FakeService) -> None:
    assert len(list(fraud.score_live(False, 5, 31, 20.0, "", None))) == 1
    assert fake.asked == []
    assert len(list(fraud.score_live(True, 5, 31, 20.0, "", None))) == 2


def test_two_subscribers_are_compared_in_words_and_bars(services: Services, fake: FakeService) -> None:
    fake.answers["POST", "/predict"] = lambda request: reply(
        score=json.loads(request.content)["subscriber_id"] / 100, decision="contact"
    )
    with gr.Blocks():
        tab = ChurnTab(services)
    found = tab.compare(70, "20")
    assert "Subscriber 70 is 50.0 percentage points likelier to leave than 20." in found[tab.moved]
    assert "class='pair second'" in found[tab.moved]
    assert "Enter two subscribers" in tab.compare(70, "")[tab.card]
    assert "Compare with: write a whole number" in tab.compare(70, "x")[tab.card]
    assert difference_words(reply(score=0.5), reply(score=0.5), 1, 2).endswith("equally likely to leave.")
    first, second = tab.score(70)
    assert "Call the subscriber" in first[tab.card]
    assert "class='bar'" in second[tab.moved]


LIST = reply(
    decision="recommend",
    score=2.0,
    reason_codes=["VIEWER_HISTORY"],
    movies=[{"movie_id": 2571, "score": 2.0}, {"movie_id": 404, "score": 1.0}],
    viewer_rating_count=1,
    hidden_count=2,
    left_out=[],
)
WHY = {
    "reproduced": True,
    "movies": [
        {"movie_id": 2571, "score": 2.0, "genres": ["Action"], "history": 1.5, "content": 0.4,
         "popularity": 0.1, "because_of": [{"movie_id": 1, "contribution": 1.5}]},
        {"movie_id": 404, "score": 1.0, "genres": [], "history": 0.0, "content": 0.1, "popularity": 0.9,
         "because_of": []},
    ],
}  # fmt: skip


@pytest.fixture
def movies(services: Services, fake: FakeService, titles: Path) -> MoviesTab:
    fake.answers |= {
        ("POST", "/recommend"): LIST,
        ("POST", "/recommend_new_movies"): LIST,
        ("POST", "/decisions/one/explain"): WHY,
    }
    with gr.Blocks():
        return MoviesTab(services, Catalogue.read(titles))


def test_recommendations_have_titles_genres_and_reasons(movies: MoviesTab, fake: FakeService) -> None:
    shown = movies.recommend(None, [1], 8, ["Action"], False)
    for text in ("The Matrix (1999)", "Action, Sci-Fi, Thriller", "Because of Amélie (2001).", "Movie 404",
                 "Many like it.", "2 better ones not let through"):  # fmt: skip
        assert text in shown
    assert json.loads(fake.asked[0].content) == {
        "k": 8, "exclude_seen": True, "history": [1], "genres": ["Action"],
    }  # fmt: skip


def test_a_viewer_alone_is_asked_for_without_a_history() -> None:
    assert request_of("42", [], 5, None, True) == {"k": 5, "exclude_seen": False, "viewer_id": 42}
    assert request_of(None, None, 5, None, True)["history"] == []


def test_new_movies_are_sent_as_written_and_a_wrong_line_is_named(
    movies: MoviesTab, fake: FakeService
) -> None:
    movies.rank_new("42", [], 8, [], False, "A title | 2026 | Drama")
    sent = json.loads(fake.asked[0].content)["movies"]
    assert [(movie["year"], movie["genres"]) for movie in sent] == [(2026, ["Drama"])]
    assert "line 1" in movies.rank_new("42", [], 8, [], False, "A | B")
    assert "Viewer: write a whole number" in movies.rank_new("x", [], 8, [], False, "A")
    assert "Viewer: write a whole number" in movies.recommend("4.5", [], 8, [], False)


def test_ticking_adds_and_unticking_takes_away_only_what_is_shown(movies: MoviesTab) -> None:
    assert movies.pick([2571], "matrix", [1, 6365]).value == [1, 2571]
    assert [label for label, _ in movies.search("matrix", [2571]).choices] == [
        "The Matrix (1999)", "The Matrix Reloaded (2003)",
    ]  # fmt: skip
    assert movies.search("nothing at all", []).label == "Found: none"


@pytest.fixture
def decisions(services: Services, fake: FakeService, titles: Path) -> DecisionsTab:
    what_if = summary("w", request={"transaction_id": WHAT_IF})

    def page(request: httpx.Request) -> dict[str, Any]:
        first = "before" not in request.url.params
        return {"decisions": [summary("one"), what_if] if first else [], "next": "later" if first else None}

    fake.answers["GET", "/decisions"] = page
    with gr.Blocks():
        return DecisionsTab(services, Catalogue.read(titles))


def test_recent_decisions_are_listed_with_plots_and_a_way_to_older_ones(
    decisions: DecisionsTab, fake: FakeService
) -> None:
    found = decisions.listing("Fraud", 1, True)
    assert [row[-1] for row in found[decisions.table]] == ["one"]
    assert "1 what-if points are left out" in decisions.listing("Fraud", 50, True)[decisions.said]
    assert found[decisions.cursor] == "2026-01-31T12:00:00.000000Z,one"
    assert found[decisions.scores] is not None
    assert found[decisions.older_button].interactive
    assert len(decisions.listing("Fraud", 2, False)[decisions.table]) == 2
    older = decisions.listing("Fraud", 1, True, "later")
    assert fake.asked[-2].url.params["before"] == "later"
    assert not older[decisions.older_button].interactive
    fake.answers["GET", "/decisions"] = httpx.Response(503)
    away = decisions.listing("Fraud", 50, True)
    assert "overloaded or starting" in away[decisions.said]
    assert away[decisions.table] == []


def test_what_if_points_do_not_crowd_out_the_other_decisions(services: Services, fake: FakeService) -> None:
    rows = [summary(f"{i}", request={"transaction_id": WHAT_IF if i % 50 else None}) for i in range(400)]

    def page(request: httpx.Request) -> dict[str, Any]:
        at = int(request.url.params.get("before", ",-1").partition(",")[2]) + 1
        end = at + int(request.url.params["limit"])
        return {"decisions": rows[at:end], "next": f"t,{end - 1}" if end < len(rows) else None}

    fake.answers["GET", "/decisions"] = page
    found, left_out, cursor = collect(services.fraud, 6, True, None)
    assert [row["request_id"] for row in found] == ["0", "50", "100", "150", "200", "250"]
    assert left_out == 245
    again, _, cursor = collect(services.fraud, 6, True, cursor)
    assert [row["request_id"] for row in again] == ["300", "350"]
    assert cursor is None
    fake.asked.clear()
    rows[:] = [summary(f"{i}", request={"transaction_id": WHAT_IF}) for i in range(5000)]
    assert collect(services.fraud, 6, True, None)[0] == []
    assert len(fake.asked) == 5


def test_a_row_says_what_was_asked_and_what_came_of_it() -> None:
    (row,) = rows_of([summary("one", degraded=True)])
    assert row[:3] == ["2026-01-31 12:00:00", "customer 5, amount 20.00", "review"]
    assert row[4:] == ["degraded", "2.0\u00a0ms", "one"]


def test_an_id_stays_one_part_of_the_path_whatever_is_entered(
    decisions: DecisionsTab, fake: FakeService
) -> None:
    found = decisions.opened("Fraud", " ../model?x=1 ")
    assert "No such resource" in found[decisions.detail]
    assert fake.asked[-1].url.raw_path == b"/decisions/..%2Fmodel%3Fx%3D1"
    assert "Choose a decision" in decisions.opened("Fraud", " ")[decisions.detail]
    assert "Choose a decision" in decisions.replay("Fraud", None)[decisions.detail]


def test_a_decision_is_shown_and_replayed(decisions: DecisionsTab, fake: FakeService) -> None:
    fake.answers["GET", "/decisions/one"] = reply() | {
        "service": "fraud_detection_api", "requested_at": "2026-01-31T12:00:00Z",
        "entity_ids": {"customer_id": 5}, "request": CASE, "features": {"tx_amount": 20.0},
        "model_name": "fraud-detection-model", "model_version": 3, "bundle_sha256": "b" * 64,
        "policy_version": 2, "policy_sha256": "c" * 64,
        "feature_status": {"customer_daily": {"status": "present", "event_timestamp": None}},
    }  # fmt: skip
    found = decisions.replay("Fraud", "one")
    assert "customer 5, terminal 31, amount 20.00" in found[decisions.detail]
    assert "Recorded 0.250000, replayed 0.250000: the same score." in found[decisions.replayed]
    fake.answers["POST", "/decisions/one/explain"] = WHY
    assert "the same movies in the same order" in decisions.replay("Fraud", "one")[decisions.replayed]
    fake.answers["POST", "/decisions/one/explain"] = explanation(reproduced=False, replayed_score=0.5)
    assert "not the same score!" in decisions.replay("Fraud", "one")[decisions.replayed]


MODEL = {
    "service": "fraud_detection_api", "service_version": "0.1.0", "model_kind": "xgboost",
    "model": {"name": "fraud-detection-model", "version": 3, "bundle_sha256": "b" * 64},
    "feature_service": "fraud_detection_v1", "features": ["tx_amount"], "thresholds": {"review": 0.1},
    "label_policy_version": 1, "git_commit": "d" * 40, "data_version": "e" * 64,
    "loaded_at": "2026-01-31T12:00:00Z",
    "training": {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-08T00:00:00+00:00", "rows": 67240},
    "policy": {"name": "fraud_detection", "version": 2, "sha256": "c" * 64},
    "rollout": {"canary": {"version": 4, "share": 0.1, "state": "serving"}, "shadow": None, "verdict": None},
}  # fmt: skip


def test_what_is_in_service_is_told_with_hashes_training_and_rollout(
    fake: FakeService, services: Services
) -> None:
    fake.answers["GET", "/model"] = MODEL
    shown = cards(services)
    for text in ("fraud-detection-model, version 3", "b" * 12, "2026-01-01 to 2026-01-08, 67,240 rows",
                 "Version: 4<br>Share: 0.1<br>State: serving", "fraud_detection, version 2"):  # fmt: skip
        assert text in shown
    fake.answers["GET", "/model"] = httpx.ConnectError("refused")
    assert "The recommendation service is away" in cards(services)


def test_the_head_says_which_services_are_ready_and_why_not(fake: FakeService, services: Services) -> None:
    fake.answers["GET", "/readyz"] = {
        "ready": False,
        "checks": {"model": True, "online_store": False},
        "model": None,
    }
    assert states(services).count("Not at hand: online store") == 3
    fake.answers["GET", "/readyz"] = {"ready": True, "checks": {}, "model": MODEL["model"]}
    assert states(services).count("<b>ready</b>") == 3


def test_no_handler_of_the_page_can_be_called_as_an_api(services: Services) -> None:
    page = build_page(services, Catalogue(()))
    assert [fn.api_name for fn in page.fns.values() if fn.api_visibility != "private"] == []
    assert page.analytics_enabled is False
