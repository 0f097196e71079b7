"""The page as a whole: head, tabs, looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr

from app.core.catalogue import Catalogue
from app.core.client import ServiceClient, Trouble
from app.core.services import Services
from app.presentation import html
from app.tabs.churn import ChurnTab
from app.tabs.decisions import DecisionsTab
from app.tabs.fraud import FraudTab
from app.tabs.models import ModelsTab
from app.tabs.movies import MoviesTab
from app.tabs.parts import QUIET

TITLE = "Decisions"
SUBTITLE = "Score, explain, recommend, and look at what was decided."
STYLE = Path(__file__).with_name("page.css")
STATES_EVERY_SECONDS = 20
AT_ONCE = 8
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
HEAD = '<meta name="robots" content="noindex">'


def theme() -> gr.themes.Base:
    """Return the looks; the machine's own fonts, so that none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO,
    )


def states(services: Services) -> str:
    """Return which services are ready."""

    def said(found: Any) -> tuple[bool, str]:
        if isinstance(found, Trouble):
            return False, found.sentence
        model = found.get("model")
        wrong = [name.replace("_", " ") for name, good in found.get("checks", {}).items() if not good]
        if wrong:
            return bool(found["ready"]), f"Not at hand: {', '.join(wrong)}"
        return bool(found["ready"]), "" if model is None else f"{model['name']}, version {model['version']}"

    def ready(client: ServiceClient) -> dict[str, Any]:
        return client.get("/readyz")

    return html.service_states((name, *said(found)) for name, found in services.ask_all(ready).items())


def build_page(services: Services, catalogue: Catalogue) -> gr.Blocks:
    """Return the page on these services."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        with gr.Row(elem_classes="head", equal_height=True):
            gr.HTML(f"<h1>{TITLE}</h1><p>{SUBTITLE}</p>", padding=False)
            head = gr.HTML(elem_id="states", padding=False)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Fraud", id="fraud"):
                FraudTab(services)
            with gr.Tab("Churn", id="churn"):
                ChurnTab(services)
            with gr.Tab("Movies", id="movies"):
                MoviesTab(services, catalogue)
            with gr.Tab("Recent decisions", id="decisions") as decisions:
                DecisionsTab(services, catalogue).load_with(decisions.select)
            with gr.Tab("Models in service", id="models") as models:
                ModelsTab(services).load_with(models.select)
        hidden = QUIET | {"show_progress": "hidden"}
        page.load(lambda: states(services), None, head, **hidden)
        gr.Timer(STATES_EVERY_SECONDS).tick(lambda: states(services), None, head, **hidden)
    page.queue(default_concurrency_limit=AT_ONCE, max_size=64, api_open=False)
    return page
