"""A dozen swaps under load with every kind of corrupt bundle among them; `make fault-test` has all."""

from __future__ import annotations

import pytest
from faults import swaps

pytestmark = pytest.mark.integration


def test_no_request_fails_while_bundles_are_swapped_and_corrupt_ones_refused() -> None:
    outcome = swaps.run("small")
    missed = [line for line in outcome["results"] if not line["met"]]
    assert missed == [], outcome["failures"]
