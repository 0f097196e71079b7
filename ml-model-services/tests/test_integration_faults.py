"""Small versions of the fault tests; `make fault-test` runs the full ones."""

from __future__ import annotations

from typing import Any

import pytest
from faults import full_disk, kills, sinks_down

pytestmark = pytest.mark.integration


def missed(found: dict[str, Any]) -> list[dict[str, Any]]:
    assert found["results"]
    return [line for line in found["results"] if not line["met"]]


def test_no_acknowledged_decision_is_lost_by_killing_the_service() -> None:
    assert missed(kills.run("small")) == []


def test_no_decision_is_given_that_a_full_disk_cannot_record() -> None:
    assert missed(full_disk.run("small")) == []


def test_sinks_that_are_away_get_every_decision_when_they_are_back() -> None:
    assert missed(sinks_down.run("small")) == []
