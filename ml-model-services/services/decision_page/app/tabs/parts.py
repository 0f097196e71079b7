"""What the tabs share."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.core.client import ServiceClient, Trouble
from app.presentation import html

Update = dict[Any, Any]
"""New values, by component."""

QUIET: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}


class NotANumber(Exception):
    """An optional id is not written as a whole number; holds what it is called."""


def optional_id(text: str | None, name: str) -> int | None:
    """Return an id that may be left empty; raises NotANumber.

    >>> optional_id(" 42 ", "Viewer"), optional_id("", "Viewer")
    (42, None)
    """
    if not text or not text.strip():
        return None
    if not text.strip().isdecimal():
        raise NotANumber(f"{name}: write a whole number, or leave it empty.")
    return int(text)


def optional_id_box(label: str, name: str) -> gr.Textbox:
    """Return a box for an id that may be left empty: a number's box would show a 0 there."""
    return gr.Textbox(label=label, elem_id=name, max_lines=1, placeholder="none")


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
