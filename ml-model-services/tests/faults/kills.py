"""The service is ended by SIGKILL at any moment, under load, and started again.

Every acknowledged decision is one row in PostgreSQL, as it was acknowledged, and at least one message in
Kafka; a client that sent its request again after the break got the answer that is recorded.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from faults.recorded_service import RecordedService
from faults.served_app import command_line, result

KILLS = {"small": 2, "full": 100}


def run(scale: str) -> dict[str, Any]:
    """Kill the service so many times and return what became of its decisions."""
    chance = random.Random(20261121)
    slowest_start = 0.0
    with tempfile.TemporaryDirectory() as folder, RecordedService(Path(folder)) as service:
        service.process.wait()
        with service.load() as load:
            for number in range(KILLS[scale]):
                load.wait_for(30)
                time.sleep(chance.uniform(0.0, 0.5))
                service.process.kill()
                started = time.monotonic()
                service.process.start()
                if number % 10 == 9:  # also while it is starting, or taking over what is in the spool
                    time.sleep(chance.uniform(0.2, 2.0))
                    service.process.kill()
                    started = time.monotonic()
                    service.process.start()
                service.process.wait()
                slowest_start = max(slowest_start, time.monotonic() - started)
            load.wait_for(30)
        drained = service.drained()
        unexpected = sum(load.statuses.values()) - load.statuses[200] - load.statuses[503]
        print(dict(load.statuses), f"broken {load.broken}, sent again {load.retried}")
        return {
            "results": [
                result("kills under load", KILLS[scale], "kills", None, met=True),
                *service.verify(load),
                result("requests sent again after a break", load.retried, "requests", None, met=True),
                result("replies that are neither 200 nor 503", unexpected, "replies", 0, met=unexpected == 0),
                result("slowest start", round(slowest_start, 2), "s", None, met=True),
                result("spool empty after", round(drained, 2), "s", 120, met=drained < 120),
            ]
        }


if __name__ == "__main__":
    command_line(__doc__ or "", run)
