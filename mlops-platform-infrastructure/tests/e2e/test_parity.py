"""A day served through broker, stream processor, Redis and API equals its recomputation, value by value."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.instance import open_instance
from local_stack.transactions import read_day

pytestmark = pytest.mark.e2e
INSTANCE = "test"
PLATFORM = Path(__file__).resolve().parents[2]


def stack(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PLATFORM, check=False, text=True, capture_output=True
    )


def test_every_served_vector_of_a_day_is_recomputed_to_the_same_bits():
    instance = open_instance(INSTANCE)
    assert (instance.reports_dir / "demo.json").is_file(), "the demo's test has to run first: make test-e2e"
    try:
        finished = stack("local_stack.parity", "--instance", INSTANCE)
        assert finished.returncode == 0, f"{finished.stdout[-6000:]}\n{finished.stderr[-3000:]}"
        print(finished.stdout[finished.stdout.index("Feature parity of") :])
        report = json.loads((instance.reports_dir / "parity.json").read_text())
        landing = instance.state_dir / "data" / "landing" / "transactions"
        day = read_day(landing, report["day"])
        assert report["vectors"] == report["transactions"] == len(day)
        assert report["values"] == 18 * len(day)
        assert report["mismatches"] == report["not_recomputed"] == 0
        # The same check sees a definition that counts where it should sum, and only there.
        wrong = report["wrong_definition"]
        assert wrong["mismatches"] > 0
        assert {name for name, number in wrong["by_feature"].items() if number} == {
            f"customer_tx_amount_mean_{days}d" for days in (1, 7, 30)
        }
    finally:
        assert stack("local_stack", "--instance", INSTANCE, "down").returncode == 0
