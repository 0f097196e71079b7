"""The page in a real browser, on the real services and their champions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from browser_kit import CHROMIUM, PATIENCE_MS, PageProcess, Visitor, browser, running_page, running_services
from playwright.sync_api import Browser, expect
from service_testkit import KEY
from stack_testkit import ServiceProcess

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not CHROMIUM.exists() and os.environ.get("REQUIRE_BROWSER") != "1",
        reason=f"no browser on this machine: {CHROMIUM} is not there",
    ),
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServiceProcess]]:
    with running_services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, services: dict[str, ServiceProcess]
) -> Iterator[PageProcess]:
    with running_page(tmp_path_factory.mktemp("page"), services) as process:
        yield process


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def visitor(chromium: Browser, page: PageProcess) -> Visitor:
    return Visitor(chromium, page.url, viewport={"width": 1280, "height": 900})


def score(visitor: Visitor, card: str) -> float:
    found = re.search(r"Score ([\d.]+)\s%", visitor.text(f"{card} .said"))
    assert found is not None
    return float(found[1])


def test_a_transaction_is_scored_and_another_amount_moves_score_and_reasons(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator("#states .state.on")).to_have_count(3)
    visitor.fill("customer", "5")
    page.click("#score")
    before, first = score(visitor, "#fraud-card"), visitor.text("#fraud-card .id")
    expect(page.locator("#gauge .js-plotly-plot")).to_be_visible()
    expect(page.locator("#fraud-contributions .bar")).to_have_count(11)
    number = page.locator("#amount input[type=number]")
    number.fill("480")  # live: no button is pressed
    number.press("Tab")
    expect(page.locator("#fraud-card .id")).not_to_have_text(first)
    expect(page.locator("#fraud-card")).to_contain_text("AMOUNT_OVER_LIMIT")
    assert score(visitor, "#fraud-card") != before


def test_what_if_draws_both_curves_and_says_where_the_decision_changes(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#explore")
    for plot in ("#by-amount", "#by-hour"):
        page.wait_for_selector(f"{plot} .scatterlayer .point")
    assert "decision" in visitor.text("#amount-words")
    expect(page.locator("#by-amount .annotation")).to_have_count(2)  # both thresholds are named
    expect(page.locator("#by-hour .scatterlayer .trace").first.locator(".point")).to_have_count(24)


def test_a_wrong_input_is_named_in_a_sentence(visitor: Visitor) -> None:
    visitor.fill("customer", "-5")
    visitor.page.click("#score")
    expect(visitor.page.locator("#fraud-card .trouble")).to_contain_text("Please correct this. Customer:")
    visitor.fill("customer", "5")


def test_two_subscribers_are_scored_and_compared(visitor: Visitor) -> None:
    visitor.tab("Churn")
    visitor.fill("other", "12")
    visitor.page.click("#compare")
    assert score(visitor, "#churn-card") != score(visitor, "#other-card")
    expect(visitor.page.locator("#churn-contributions")).to_contain_text("likelier to leave")


def test_movies_are_found_picked_and_recommended_with_reasons(visitor: Visitor) -> None:
    page = visitor.page
    visitor.tab("Movies")
    page.locator("#find input, #find textarea").first.press_sequentially("toy story")
    # Each letter gives a list of its own; one that still changes would move the movie from under the pointer.
    found = [f"Toy Story{rest}" for rest in (" (1995)", " 2 (1999)", " 3 (2010)", " of Terror (2013)")]
    expect(page.locator("#found label")).to_have_text(found)
    page.get_by_label("Toy Story (1995)").check()
    expect(page.locator("#picked")).to_contain_text("Toy Story (1995)")
    page.click("#recommend")
    expect(page.locator("#movie-list .movie")).to_have_count(8)
    shown = page.inner_text("#movie-list")
    assert "Because of" in shown
    assert "Movie " not in shown  # every movie has its title
    page.get_by_role("button", name="New movies that nobody has rated").click()
    page.click("#rank-new")
    expect(page.locator("#movie-list")).to_contain_text("The Long Orbit (2026)")


def test_recent_decisions_have_plots_and_one_of_them_is_replayed(visitor: Visitor) -> None:
    page = visitor.page
    visitor.recent_decisions()
    for plot in ("#score-distribution", "#kinds", "#latency", "#degraded"):
        page.wait_for_selector(f"{plot} .js-plotly-plot")
    expect(page.locator("#summary")).to_contain_text("what-if points are left out")
    page.locator("#decisions [role=gridcell]").first.click()
    page.wait_for_selector("#detail .facts")
    page.click("#replay")
    expect(page.locator("#replayed .good")).to_contain_text("the same score")
    expect(page.locator("#replayed .bar").first).to_be_visible()


def test_what_is_in_service_is_shown(visitor: Visitor, services: dict[str, ServiceProcess]) -> None:
    visitor.tab("Models in service")
    shown = visitor.text("#models .models")
    for process in services.values():
        model = process.http.get("/model").json()["model"]
        assert f"{model['name']}, version {model['version']}" in shown
        assert model["bundle_sha256"][:12] in shown


def test_nothing_was_asked_of_anybody_else_and_the_key_stayed_where_it_is(
    visitor: Visitor, page: PageProcess
) -> None:
    assert len(visitor.asked) > 20
    assert visitor.elsewhere() == []
    assert visitor.complaints == []
    assert KEY not in visitor.page.content()
    assert KEY not in page.log()


def test_the_keyboard_alone_gets_to_a_decision_on_a_narrow_screen(
    chromium: Browser, page: PageProcess
) -> None:
    phone = Visitor(chromium, page.url, viewport={"width": 390, "height": 844}, has_touch=True)
    terminal = phone.page.locator("#terminal input")
    terminal.focus()
    terminal.press("Enter")
    phone.page.wait_for_selector("#fraud-card .verdict")
    phone.page.wait_for_selector("#fraud-contributions .bar")
    content, window = phone.width()
    assert content <= window
    phone.page.close()


def test_a_degraded_decision_is_marked(visitor: Visitor) -> None:
    """Far from the day that the features are of, the service has to do without them, and says so."""
    visitor.tab("Fraud")
    visitor.fill("when", f"{datetime.now(UTC).year + 1}-06-01 12:00:00")
    visitor.page.click("#score")
    expect(visitor.page.locator("#fraud-card .degraded")).to_contain_text("Degraded")


def test_a_service_that_has_ended_is_told_in_a_sentence_and_takes_nothing_else_with_it(
    chromium: Browser, page: PageProcess, services: dict[str, ServiceProcess]
) -> None:
    services["FRAUD_API_URL"].stop()
    visitor = Visitor(chromium, page.url)
    expect(visitor.page.locator("#states .state.off")).to_have_count(1)
    visitor.page.click("#score")
    expect(visitor.page.locator("#fraud-card .trouble")).to_contain_text("The fraud service is away")
    visitor.tab("Churn")
    visitor.page.click("#churn-score")
    assert score(visitor, "#churn-card") > 0
    visitor.page.close()
