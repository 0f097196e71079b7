"""Models in service: version, hashes, training, policy, and what is rolled out beside the champion."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.core.client import Trouble
from app.core.services import Services
from app.presentation import html
from app.tabs.parts import QUIET


def cards(services: Services) -> str:
    """Return what every service has in service."""
    parts = []
    for label, found in services.ask_all(lambda client: client.get("/model")).items():
        if isinstance(found, Trouble):
            parts.append(
                f"<section class='card model'>{html.heading(label)}{html.trouble(found.sentence)}</section>"
            )
        else:
            parts.append(html.model_card(label, found))
    return f"<div class='models'>{''.join(parts)}</div>"


class ModelsTab:
    """What is in service, asked again on demand."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.shown = gr.HTML(elem_id="models", padding=False)
        self.load_with(gr.Button("Ask again", elem_id="models-again", scale=0).click)

    def load_with(self, event: Any) -> None:
        """Show what is in service whenever `event` occurs."""
        event(lambda: cards(self._services), None, self.shown, **QUIET)
