"""`up` over a server that runs: a service is healthy when its new container is, not while the old one was."""

from __future__ import annotations

import sys

import pytest

from server_tools import stacks
from server_tools.startup import State

SERVICES = {"fraud-api": {"image": "mlops/fraud-detection-api:b", "restart": "unless-stopped"}}
OLD, STARTING, NEW = (
    State("running", "healthy", 0, "2026-01-01T00:00:00Z"),
    State("running", "starting", 0, "2026-01-02T00:00:00Z"),
    State("running", "healthy", 0, "2026-01-02T00:00:00Z"),
)


class Project:
    name = "test"

    def command(self, *_arguments: str) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(0.2)"]


def replaced_by(monkeypatch, *states: State) -> list[State]:
    """Compose replaces the container after a moment; the states follow each other, the last one stays."""
    shown: list[State] = []
    coming = list(states)

    def states_now(_project):
        shown.append(coming.pop(0) if len(coming) > 1 else coming[0])
        return {"fraud-api": shown[-1]}

    monkeypatch.setattr(stacks, "_states", states_now)
    monkeypatch.setattr(stacks, "POLL_SECONDS", 0.1)
    return shown


def test_a_replaced_container_is_waited_for(monkeypatch):
    shown = replaced_by(monkeypatch, OLD, OLD, STARTING, STARTING, STARTING, STARTING, STARTING, NEW)
    stacks.start(Project(), SERVICES, ["fraud-api"], seconds=20)
    assert shown[-1] is NEW


def test_a_new_container_that_never_turns_healthy_fails(monkeypatch):
    replaced_by(monkeypatch, OLD, OLD, STARTING)
    with pytest.raises(stacks.UpError, match="not healthy after"):
        stacks.start(Project(), SERVICES, ["fraud-api"], seconds=1.5)
