"""Churn: a subscriber's risk to leave and what to do about it, beside another subscriber's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from app.core.client import ServiceClient, Trouble
from app.core.services import Services, thresholds_of
from app.presentation import charts, html
from app.tabs.parts import (
    QUIET,
    NotANumber,
    Update,
    explained,
    optional_id,
    optional_id_box,
    plot,
    said,
)

PROFILES = (
    "The service reads a subscriber's profile from the online store, so another profile means another "
    "subscriber: compare two to see which differences count."
)


def decided(client: ServiceClient, subscriber: float | None) -> dict[str, Any]:
    """Return the decision on a subscriber; raises Trouble."""
    return client.post("/predict", {} if subscriber is None else {"subscriber_id": int(subscriber)})


def difference_words(first: dict[str, Any], second: dict[str, Any], one: int, other: int) -> str:
    """Say which of two subscribers is likelier to leave."""
    if first["score"] is None or second["score"] is None:
        return ""
    points = 100 * (first["score"] - second["score"])
    if abs(points) < 0.05:
        return f"Subscribers {one} and {other} are equally likely to leave."
    more, less = (one, other) if points > 0 else (other, one)
    return f"Subscriber {more} is {abs(points):.1f} percentage points likelier to leave than {less}."


class ChurnTab:
    """The components of the tab, and what happens when they are used."""

    def __init__(self, services: Services) -> None:
        self._client = services.churn
        with gr.Row(elem_classes="split"):
            with gr.Column(scale=2, min_width=300):
                self._add_inputs()
                self.dial = plot("churn-gauge")
            with gr.Column(scale=3, min_width=320):
                self.card = said("churn-card", "Enter a subscriber and press Score.")
                self.other_card = said("other-card", visible=False)
        gr.Markdown("### What moved the score")
        self.moved = said("churn-contributions", "Score a subscriber first.")
        self._wire()

    def _add_inputs(self) -> None:
        gr.Markdown("### The subscriber")
        self.subscriber = gr.Number(1207, label="Subscriber", elem_id="subscriber", precision=0)
        self.score_button = gr.Button("Score", variant="primary", elem_id="churn-score")
        self.other = optional_id_box("Compare with (optional)", "other")
        self.compare_button = gr.Button("Compare", elem_id="compare")
        gr.HTML(html.hint(PROFILES), padding=False)

    def _wire(self) -> None:
        results = [self.card, self.other_card, self.dial, self.moved]
        scored = [self.score_button.click, self.subscriber.submit]
        gr.on(scored, self.score, self.subscriber, results, **QUIET)
        compared = [self.compare_button.click, self.other.submit]
        gr.on(compared, self.compare, [self.subscriber, self.other], results, **QUIET)

    def score(self, subscriber: float | None) -> Iterator[Update]:
        """Decide a subscriber, then say what moved the score."""
        try:
            reply = decided(self._client, subscriber)
        except Trouble as trouble:
            yield self._failed(trouble.sentence)
            return
        yield {**self._shown(reply, thresholds_of(self._client)), self.other_card: gr.HTML("", visible=False)}
        yield {self.moved: explained(self._client, reply["request_id"])}

    def compare(self, subscriber: float | None, other: str | None) -> Update:
        """Decide two subscribers, and set what moved their scores side by side."""
        try:
            two = optional_id(other, "Compare with")
        except NotANumber as error:
            return self._failed(str(error))
        if subscriber is None or two is None:
            return self._failed("Please correct this. Enter two subscribers to compare.")
        one = int(subscriber)
        try:
            first, second = decided(self._client, one), decided(self._client, two)
            why, why_other = (
                self._client.post(f"/decisions/{reply['request_id']}/explain") for reply in (first, second)
            )
        except Trouble as trouble:
            return self._failed(trouble.sentence)
        thresholds = thresholds_of(self._client)
        beside = html.heading(f"Subscriber {two}") + html.decision_card(second, thresholds)
        return {
            **self._shown(first, thresholds),
            self.other_card: gr.HTML(beside, visible=True),
            self.moved: html.hint(difference_words(first, second, one, two))
            + html.legend(f"subscriber {one}", f"subscriber {two}")
            + html.contributions(why, why_other),
        }

    def _shown(self, reply: Mapping[str, Any], thresholds: Mapping[str, float]) -> Update:
        return {
            self.card: html.decision_card(reply, thresholds),
            self.dial: charts.gauge_of(reply, thresholds),
        }

    def _failed(self, sentence: str) -> Update:
        hidden = gr.HTML("", visible=False)
        return {self.card: html.trouble(sentence), self.other_card: hidden, self.dial: None, self.moved: ""}
