"""Recent decisions of each service: plots, a table, and any one of them replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import gradio as gr

from app.core.catalogue import Catalogue
from app.core.client import ServiceClient, Trouble
from app.core.services import Services, thresholds_of
from app.presentation import charts, html
from app.presentation.words import DASH, milliseconds, moment, percent
from app.tabs.fraud import WHAT_IF
from app.tabs.parts import QUIET, Update, plot, said

HEAD = ["Time (UTC)", "Asked", "Decision", "Score", "Degraded", "Took", "Id"]
PAGE, MOST_PAGES = 200, 5
ID_COLUMN = len(HEAD) - 1
NOTHING_CHOSEN = "Choose a decision in the table, or enter its id."


def is_what_if(decision: Mapping[str, Any]) -> bool:
    """Whether a decision is a point of a what-if curve."""
    return bool(decision["request"].get("transaction_id") == WHAT_IF)


def rows_of(decisions: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the decisions as rows of texts."""
    return [
        [
            moment(decision["requested_at"]).removesuffix(" UTC"),
            html.request_words(decision),
            decision["decision"],
            percent(decision["score"]),
            "degraded" if decision["degraded"] else DASH,
            milliseconds(decision["latency_ms"]),
            decision["request_id"],
        ]
        for decision in decisions
    ]


def collect(
    client: ServiceClient, count: int, hide: bool, before: str | None
) -> tuple[list[dict[str, Any]], int, str | None]:
    """Return so many decisions, how many what-if points were left out between them, and the next cursor.

    Asks for MOST_PAGES pages at most; raises Trouble.
    """
    found: list[dict[str, Any]] = []
    left_out = 0
    for _ in range(MOST_PAGES):
        limit = PAGE if hide else count
        page = client.get("/decisions", {"limit": limit} | ({} if before is None else {"before": before}))
        before = page["next"]
        for decision in page["decisions"]:
            if hide and is_what_if(decision):
                left_out += 1
                continue
            found.append(decision)
            if len(found) == count and decision is not page["decisions"][-1]:
                return found, left_out, f"{decision['requested_at']},{decision['request_id']}"
        if before is None or len(found) >= count:
            break
    return found, left_out, before


class DecisionsTab:
    """The components of the tab, and what happens when they are used."""

    def __init__(self, services: Services, catalogue: Catalogue) -> None:
        self._clients = services.named
        self._catalogue = catalogue
        self.cursor = gr.State()
        self._add_choices()
        self.said = said("summary")
        self._add_plots()
        self.table = gr.Dataframe(
            headers=HEAD,
            datatype="str",
            wrap=False,
            interactive=False,
            max_height=420,
            label="Choose one to open it",
            column_widths=[180, 330, 110, 90, 110, 100, 330],
            elem_id="decisions",
            buttons=[],
        )
        self._add_detail()
        self._wire()

    def _add_choices(self) -> None:
        with gr.Row(equal_height=True, elem_classes="choices"):
            names = list(self._clients)
            self.which = gr.Radio(names, value=names[0], label="Service", elem_id="which", min_width=240)
            self.count = gr.Dropdown(
                [50, 100, 200], value=100, label="How many", elem_id="count", min_width=110, scale=0
            )
            self.hide = gr.Checkbox(True, label="Without what-if points", elem_id="hide", min_width=180)
            small: dict[str, Any] = {"min_width": 100, "scale": 0}
            self.refresh_button = gr.Button("Newest", variant="primary", elem_id="refresh", **small)
            self.older_button = gr.Button("Older", elem_id="older", **small)

    def _add_plots(self) -> None:
        with gr.Row(elem_classes="split"):
            with gr.Column(min_width=300):
                gr.Markdown("**Scores**")
                self.scores = plot("score-distribution")
                gr.Markdown("**Latency**")
                self.latency = plot("latency")
            with gr.Column(min_width=300):
                gr.Markdown("**Decisions by kind**")
                self.kinds = plot("kinds")
                gr.Markdown("**Degraded share**")
                self.degraded = plot("degraded")

    def _add_detail(self) -> None:
        gr.Markdown("### One decision")
        with gr.Row(equal_height=True, elem_classes="choices"):
            self.request_id = gr.Textbox(label="Decision id", elem_id="request-id", max_lines=1, scale=3)
            small: dict[str, Any] = {"min_width": 100, "scale": 0}
            self.open_button = gr.Button("Open", elem_id="open", **small)
            self.replay_button = gr.Button("Replay", variant="primary", elem_id="replay", **small)
        self.detail = said("detail")
        self.replayed = said("replayed")

    def _wire(self) -> None:
        self.choices = [self.which, self.count, self.hide]
        plots = [self.scores, self.latency, self.kinds, self.degraded]
        self.listed = [self.said, *plots, self.table, self.cursor, self.older_button]
        changes = [self.refresh_button.click, self.which.change, self.count.change, self.hide.change]
        gr.on(changes, self.listing, self.choices, self.listed, **QUIET)
        self.older_button.click(self.listing, [*self.choices, self.cursor], self.listed, **QUIET)
        asked, answered = [self.which, self.request_id], [self.detail, self.replayed]
        gr.on([self.open_button.click, self.request_id.submit], self.opened, asked, answered, **QUIET)
        self.replay_button.click(self.replay, asked, answered, **QUIET)
        self.table.select(self.choose, self.which, [self.request_id, *answered], **QUIET)

    def load_with(self, event: Any) -> None:
        """Show the newest decisions whenever `event` occurs."""
        event(self.listing, self.choices, self.listed, **QUIET)

    def listing(self, which: str, count: int, hide: bool, before: str | None = None) -> Update:
        """Show the newest decisions, or those before a cursor."""
        client = self._clients[which]
        try:
            decisions, left_out, cursor = collect(client, count, hide, before)
        except Trouble as trouble:
            return {self.said: html.trouble(trouble.sentence), **self._drawn([], {}), **self._rows([], None)}
        words = charts.summary_words(charts.summarize(decisions))
        words += f" {left_out} what-if points are left out." if left_out else ""
        return {
            self.said: html.hint(words),
            **self._drawn(decisions, thresholds_of(client)),
            **self._rows(decisions, cursor),
        }

    def _drawn(self, decisions: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]) -> Update:
        summary = charts.summarize(decisions)
        if summary is None:
            return dict.fromkeys((self.scores, self.latency, self.kinds, self.degraded))
        return {
            self.scores: charts.score_distribution(decisions, thresholds),
            self.latency: charts.latencies(decisions, summary),
            self.kinds: charts.decision_counts(summary),
            self.degraded: charts.degraded_share(decisions),
        }

    def _rows(self, decisions: Sequence[Mapping[str, Any]], cursor: str | None) -> Update:
        return {
            self.table: rows_of(decisions),
            self.cursor: cursor,
            self.older_button: gr.Button(interactive=cursor is not None),
        }

    def opened(self, which: str, request_id: str | None) -> Update:
        """Show one decision as it was recorded."""
        if not request_id or not request_id.strip():
            return {self.detail: html.hint(NOTHING_CHOSEN), self.replayed: ""}
        try:
            document = self._clients[which].get(f"/decisions/{_path(request_id)}")
        except Trouble as trouble:
            return {self.detail: html.trouble(trouble.sentence), self.replayed: ""}
        return {self.detail: html.record(document), self.replayed: ""}

    def replay(self, which: str, request_id: str | None) -> Update:
        """Replay one decision from its record, and say what moved its score."""
        found = self.opened(which, request_id)
        if not request_id or not request_id.strip():
            return found
        try:
            explanation = self._clients[which].post(f"/decisions/{_path(request_id)}/explain")
        except Trouble as trouble:
            return {**found, self.replayed: html.trouble(trouble.sentence)}
        if "movies" in explanation:
            return {**found, self.replayed: html.replayed_list(explanation, self._catalogue)}
        return {**found, self.replayed: html.replay(explanation) + html.contributions(explanation)}

    def choose(self, which: str, event: gr.SelectData) -> Update:
        """Open the decision of the chosen row."""
        chosen = str(event.row_value[ID_COLUMN])
        return {self.request_id: chosen, **self.opened(which, chosen)}


def _path(request_id: str) -> str:
    """Return an id as one part of a path, whatever was entered."""
    return quote(request_id.strip(), safe=":")
