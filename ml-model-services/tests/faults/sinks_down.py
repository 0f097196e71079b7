"""PostgreSQL, Kafka or both are away: refused at once, or silent with the connections open.

Decisions go on meanwhile, the sink that is there goes on getting them, and the other one gets all of them
when it is back.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from faults.recorded_service import RecordedService
from faults.served_app import command_line, result

UNDER_WAY = 200
SECONDS = {"small": 1.5, "full": 60.0}
CASES = {
    "small": [("database", "blackhole"), ("broker", "refuse")],
    "full": [
        ("database", "refuse"), ("database", "blackhole"), ("broker", "refuse"), ("broker", "blackhole"),
        ("both", "refuse"),
    ],
}  # fmt: skip


def run(scale: str) -> dict[str, Any]:
    """Take the sinks away one after the other and return what became of the decisions."""
    with tempfile.TemporaryDirectory() as folder, RecordedService(Path(folder)) as service:
        service.process.wait()
        longest = 0.0
        with service.load() as load:
            for sink, mode in CASES[scale]:
                load.wait_for(20)
                for name in ("database", "broker") if sink == "both" else (sink,):
                    getattr(service, name).mode(mode)
                time.sleep(SECONDS[scale])
                for name in ("database", "broker"):
                    getattr(service, name).mode("pass")
                longest = max(longest, service.drained(but=UNDER_WAY))
        service.drained()
        refused = sum(load.statuses.values()) - load.statuses[200]
        print(dict(load.statuses), f"slowest reply {load.slowest:.3f} s")
        return {
            "results": [
                result("sinks taken away", len(CASES[scale]), "times", None, met=True),
                result("for", SECONDS[scale], "s each", None, met=True),
                *service.verify(load),
                result("requests that were not decided", refused, "requests", 0, met=refused == 0),
                result("broken connections", load.broken, "connections", 0, met=load.broken == 0),
                result("caught up after", round(longest, 2), "s", 30, met=longest <= 30),
            ]
        }


if __name__ == "__main__":
    command_line(__doc__ or "", run)
