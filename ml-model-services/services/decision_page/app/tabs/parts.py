"""What the tabs share."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.core.client import ServiceClient, Trouble
from app.presentation import html

Update = dict[Any, Any]
"""New values, by component."""

QUIET: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}


def plot(name: str) -> gr.Plot:
    """Return a plot without a frame of its own."""
    return gr.Plot(show_label=False, container=False, elem_id=name, elem_classes="plot")


def said(name: str, first: str = "", *, visible: bool = True) -> gr.HTML:
    """Return a place for words, with a hint in it at first."""
    return gr.HTML(html.hint(first), elem_id=name, visible=visible, padding=False)


def explained(client: ServiceClient, request_id: str) -> str:
    """Return what moved the score of a decision, or why that cannot be told."""
    try:
        return html.contributions(client.post(f"/decisions/{request_id}/explain"))
    except Trouble as trouble:
        return html.hint(trouble.sentence)
