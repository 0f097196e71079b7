"""A long run with faults at random: PostgreSQL, Kafka and the online store come and go, alone and together.

Memory and open descriptors are read all along. Both must be flat: the last quarter of the run holds no more
than the second one and a margin.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from faults.recorded_service import RecordedService
from faults.served_app import command_line, result

SECONDS = {"small": 12.0, "full": 1200.0}
FAULT_SECONDS = {"small": (0.3, 1.0), "full": (2.0, 20.0)}
MARGIN_BYTES = 16 << 20
MARGIN_DESCRIPTORS = 8
RATE = 100.0


def _state(pid: int) -> tuple[int, int]:
    """Return resident bytes and open descriptors of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(scale: str) -> dict[str, Any]:
    """Let faults come and go for so long and return what became of decisions, memory and descriptors."""
    chance = random.Random(20261121)
    faults = 0
    samples: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder, RecordedService(Path(folder)) as service:
        service.process.wait()
        proxies = (service.database, service.broker, service.store)
        began = time.monotonic()
        with service.load(rate=RATE) as load:
            while time.monotonic() - began < SECONDS[scale]:
                for proxy in proxies:
                    proxy.mode(chance.choice(("pass", "pass", "refuse", "blackhole")))
                    faults += 1
                until = time.monotonic() + chance.uniform(*FAULT_SECONDS[scale])
                while time.monotonic() < until:
                    samples.append(_state(service.process.pid))
                    time.sleep(0.2)
                if chance.random() < 0.5:
                    for proxy in proxies:
                        proxy.mode("pass")
                    time.sleep(chance.uniform(*FAULT_SECONDS[scale]) / 2)
            for proxy in proxies:
                proxy.mode("pass")
            load.wait_for(20)
        service.drained()
        quarter = len(samples) // 4
        second, last = samples[quarter : 2 * quarter], samples[-quarter:]
        grown = statistics.median(s[0] for s in last) - statistics.median(s[0] for s in second)
        more = max(s[1] for s in last) - max(s[1] for s in second)
        unexpected = sum(load.statuses.values()) - load.statuses[200] - load.statuses[503]
        peak = max(s[0] for s in samples)
        print(dict(load.statuses), f"broken {load.broken}, slowest reply {load.slowest:.3f} s")
        return {
            "results": [
                result("soak", SECONDS[scale], "s", None, met=True),
                result("changes of faults", faults, "changes", None, met=faults > 0),
                *service.verify(load),
                result("replies that are neither 200 nor 503", unexpected, "replies", 0, met=unexpected == 0),
                result("memory grown", round(grown / 2**20, 1), "MiB", MARGIN_BYTES >> 20,
                       met=grown <= MARGIN_BYTES),
                result("highest memory", round(peak / 2**20), "MiB", 400, met=peak <= 400 << 20),
                result("more descriptors", more, "descriptors", MARGIN_DESCRIPTORS,
                       met=more <= MARGIN_DESCRIPTORS),
            ]
        }  # fmt: skip


if __name__ == "__main__":
    command_line(__doc__ or "", run)
