"""Fraud: score a transaction, change it, and see score and reasons move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from app.core.client import Trouble
from app.core.services import Services, decide_many, thresholds_of
from app.presentation import charts, html
from app.presentation.charts import Point
from app.presentation.words import clock, money
from app.tabs.parts import QUIET, Update, explained, plot, said

WHAT_IF = "what-if"
AMOUNTS = (1, 5, *range(10, 100, 10), *range(100, 220, 20), 219.99, 220.01, *range(240, 420, 20), 450, 500)
MOST = 1000
RECORDED = "Every score on this page is a decision of the service like any other, and is recorded."

Case = dict[str, Any]


WRONG_TIME = "Time: write it as 2026-01-31 12:00:00, or leave it empty for now."


class WrongTime(Exception):
    """The time is not written as asked for."""


def read_time(text: str | None) -> str | None:
    """Return a time in UTC as the service wants it, None for no time; raises WrongTime.

    >>> read_time("2026-01-31 12:00:00"), read_time(" ")
    ('2026-01-31T12:00:00Z', None)
    """
    if not text or not text.strip():
        return None
    try:
        at = datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise WrongTime from None
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def case_of(customer: float | None, terminal: float | None, amount: float | None, when: str | None) -> Case:
    """Return the transaction as entered, without what was left empty; raises WrongTime."""
    entered: Case = {
        "customer_id": None if customer is None else int(customer),
        "terminal_id": None if terminal is None else int(terminal),
        "tx_amount": None if amount is None else float(amount),
        "tx_datetime": read_time(when),
    }
    return {name: value for name, value in entered.items() if value is not None}


def amount_cases(case: Case) -> list[Case]:
    """Return the transaction at other amounts."""
    amounts = sorted({float(a) for a in AMOUNTS} | {float(case.get("tx_amount", AMOUNTS[0]))})
    return [{**case, "tx_amount": amount, "transaction_id": WHAT_IF} for amount in amounts]


def hour_cases(case: Case, now: datetime) -> list[Case]:
    """Return the transaction at every hour of its day."""
    given = case.get("tx_datetime")
    at = now if given is None else datetime.fromisoformat(given)
    return [
        {**case, "tx_datetime": f"{at:%Y-%m-%d}T{hour:02d}:{at:%M:%S}Z", "transaction_id": WHAT_IF}
        for hour in range(24)
    ]


def hour_of(case: Case, now: datetime) -> int:
    """Return the hour of a transaction."""
    given = case.get("tx_datetime")
    return now.hour if given is None else datetime.fromisoformat(given).hour


def without(case: Case, name: str) -> Case:
    """Return what a curve over `name` was drawn for."""
    return {key: value for key, value in case.items() if key != name}


@dataclass(frozen=True)
class Curves:
    """The what-if curves as they were drawn, and the transactions they hold for."""

    amount_of: Case
    by_amount: list[Point]
    hour_of: Case
    by_hour: list[Point]


def points_of(at: Sequence[float], replies: Sequence[Mapping[str, Any] | None]) -> list[Point]:
    """Return the points of a curve; a case that could not be decided leaves a gap."""
    return [
        Point(x, reply["score"], reply["decision"])
        for x, reply in zip(at, replies, strict=True)
        if reply is not None
    ]


class FraudTab:
    """The components of the tab, and what happens when they are used."""

    def __init__(self, services: Services) -> None:
        self._client = services.fraud
        self.curves = gr.State()
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=2, min_width=300):
                self._add_inputs()
                self.dial = plot("gauge")
            with gr.Column(scale=3, min_width=320):
                self.card = said("fraud-card", "Enter a transaction and press Score.")
        self._add_curves()
        gr.Markdown("### What moved the score")
        self.moved = said("fraud-contributions", "Score a transaction first.")
        self._wire()

    def _add_inputs(self) -> None:
        gr.Markdown("### The transaction")
        with gr.Row():
            whole: dict[str, Any] = {"precision": 0, "min_width": 120}
            self.customer = gr.Number(5, label="Customer", elem_id="customer", **whole)
            self.terminal = gr.Number(31, label="Terminal", elem_id="terminal", **whole)
        self.amount = gr.Slider(0, MOST, 57.2, step=0.01, label="Amount", elem_id="amount")
        self.when = gr.DateTime(
            label="Time in UTC (empty: now)", type="string", timezone="UTC", elem_id="when"
        )
        self.live = gr.Checkbox(True, label="Score again whenever the amount is moved", elem_id="live")
        self.score_button = gr.Button("Score", variant="primary", elem_id="score")
        self.explore_button = gr.Button("What if amount or hour were others?", elem_id="explore")
        gr.HTML(html.hint(RECORDED), padding=False)

    def _add_curves(self) -> None:
        with gr.Column(visible=False) as self.explored:
            gr.Markdown("### What if")
            with gr.Row(elem_classes="split"):
                with gr.Column(min_width=300):
                    gr.Markdown("**Another amount**, all else the same")
                    self.by_amount = plot("by-amount")
                    self.amount_words = said("amount-words")
                with gr.Column(min_width=300):
                    gr.Markdown("**Another hour** of the same day")
                    self.by_hour = plot("by-hour")
                    self.hour_words = said("hour-words")

    def _wire(self) -> None:
        entered = [self.customer, self.terminal, self.amount, self.when]
        drawn = [self.by_amount, self.amount_words, self.by_hour, self.hour_words]
        results = [self.card, self.dial, self.moved, *drawn]
        gr.on(
            [self.score_button.click, self.customer.submit, self.terminal.submit, self.when.submit],
            self.score,
            [*entered, self.curves],
            results,
            **QUIET,
        )
        self.amount.input(
            self.score_live,
            [self.live, *entered, self.curves],
            results,
            trigger_mode="always_last",
            **(QUIET | {"show_progress": "hidden"}),
        )
        self.explore_button.click(self.explore, entered, [self.explored, self.curves, *results], **QUIET)

    def score(self, *entered: Any) -> Iterator[Update]:
        """Decide the transaction, then say what moved its score; the last of `entered` are the curves."""
        *inputs, curves = entered
        try:
            case = case_of(*inputs)
            reply = self._client.post("/predict", case)
        except WrongTime:
            yield self._failed(WRONG_TIME)
            return
        except Trouble as trouble:
            yield self._failed(trouble.sentence)
            return
        thresholds = thresholds_of(self._client)
        yield {
            self.card: html.decision_card(reply, thresholds),
            self.dial: charts.gauge_of(reply, thresholds),
            **self._redrawn(case, reply, thresholds, curves),
        }
        yield {self.moved: explained(self._client, reply["request_id"])}

    def score_live(self, live: bool, *entered: Any) -> Iterator[Update]:
        """Decide the transaction again while an input is moved, if that is wanted."""
        if live:
            yield from self.score(*entered)
        else:
            yield {self.card: gr.skip()}

    def explore(self, *entered: Any) -> Update:
        """Decide the transaction at other amounts and hours."""
        now = datetime.now(UTC)
        try:
            case = case_of(*entered)
            amounts, hours = amount_cases(case), hour_cases(case, now)
            reply, *replies = decide_many(
                self._client, [{**case, "transaction_id": WHAT_IF}, *amounts, *hours]
            )
        except WrongTime:
            return self._failed(WRONG_TIME)
        except Trouble as trouble:
            return self._failed(trouble.sentence)
        thresholds = thresholds_of(self._client)
        curves = Curves(
            amount_of=without(case, "tx_amount"),
            by_amount=points_of([asked["tx_amount"] for asked in amounts], replies[: len(amounts)]),
            hour_of=without(case, "tx_datetime"),
            by_hour=points_of(range(len(hours)), replies[len(amounts) :]),
        )
        return {
            self.explored: gr.Column(visible=True),
            self.curves: curves,
            **self._redrawn(case, reply, thresholds, curves),
        }

    def _redrawn(
        self,
        case: Case,
        reply: Mapping[str, Any] | None,
        thresholds: Mapping[str, float],
        curves: Curves | None,
    ) -> Update:
        """Mark the score on the curves that hold for the transaction, and take away the others."""
        if curves is None or reply is None:
            return {}
        drawn: Update = {}
        changed = html.hint("The transaction has changed: ask “What if” again.")
        if curves.amount_of == without(case, "tx_amount"):
            here = Point(case["tx_amount"], reply["score"], reply["decision"])
            drawn[self.by_amount] = charts.curve(curves.by_amount, thresholds, axis="amount", now=here)
            drawn[self.amount_words] = html.hint(charts.curve_words(curves.by_amount, "amount", money))
        else:
            drawn |= {self.by_amount: None, self.amount_words: changed}
        if curves.hour_of == without(case, "tx_datetime"):
            here = Point(hour_of(case, datetime.now(UTC)), reply["score"], reply["decision"])
            drawn[self.by_hour] = charts.curve(
                curves.by_hour, thresholds, axis="hour, UTC", now=here, hours=True
            )
            drawn[self.hour_words] = html.hint(charts.curve_words(curves.by_hour, "hour", clock))
        else:
            drawn |= {self.by_hour: None, self.hour_words: changed}
        return drawn

    def _failed(self, sentence: str) -> Update:
        return {self.card: html.trouble(sentence), self.dial: None, self.moved: ""}
