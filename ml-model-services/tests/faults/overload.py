"""Five times as many requests as can be served: what is too much is refused at once, the rest is served.

A refusal is paced: while a connection waits for its own, its client sends nothing more on it.

The peak is what clients get who wait for each reply before they ask again; then requests come at five times
that rate, whatever becomes of them. Goodput counts replies within the deadline of the moment they were sent.

Run with the settings of a stack: `PYTHONPATH=.:tests python -m faults.overload --scale full`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from faults.fraud_service import FraudService, fraud_service
from faults.load import NEVER_SENT, Sample, percentile
from faults.served_app import command_line, result

DEADLINE_SECONDS = 1.0
TIMES = 5.0
GOODPUT = 0.8
GROWTH_MIB = 32.0
KEPT = 0.7  # less than of the clock's: taking so many connections is counted too
LONG_SECONDS = 10.0
ALLOWED = {200, 503, NEVER_SENT}


@dataclass(frozen=True)
class Scale:
    """How long, and over how many connections."""

    peak: float
    overload: float
    connections: int


SCALES = {
    "small": Scale(peak=1.0, overload=1.5, connections=400),
    "full": Scale(peak=15, overload=60, connections=800),
}


def _resident_mib(service: FraudService) -> float:
    for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the service has ended")


def _cpu_seconds(service: FraudService) -> float:
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _good(samples: list[Sample]) -> list[Sample]:
    return [s for s in samples if s.status == 200 and s.seconds - s.waited <= DEADLINE_SECONDS]


def _rate(samples: list[Sample], good: list[Sample]) -> float:
    return len(good) / (samples[-1].due - samples[0].due)


def _shed(service: FraudService) -> float:
    text = httpx.get(service.process.url + "/metrics").text
    rows = [line for line in text.splitlines() if line.startswith("requests_shed_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in rows)


def results_of(service: FraudService, scale: Scale) -> list[dict[str, Any]]:
    """Return what was measured."""
    service.warm_up()
    cpu = [_cpu_seconds(service)]
    with service.load(rate=0, seconds=scale.peak, connections=48) as load:
        calm = load.samples()
    cpu.append(_cpu_seconds(service))
    peak, before = _rate(calm, _good(calm)), _resident_mib(service)
    with service.load(rate=TIMES * peak, seconds=scale.overload, connections=scale.connections) as load:
        samples = load.samples()
    cpu.append(_cpu_seconds(service))
    growth = _resident_mib(service) - before
    good = _good(samples)
    goodput, offered = _rate(samples, good), len(samples) / scale.overload
    refused = [sample for sample in samples if sample.status == 503]
    statuses = Counter(sample.status for sample in samples)
    served = [s.seconds - s.waited for s in samples if s.status == 200]
    # Where other work shares the machine, processor time says more than the clock.
    decision = (cpu[1] - cpu[0]) / len(calm)
    kept = len(served) * decision / (cpu[2] - cpu[1])
    print(f"a decision takes {decision * 1e6:.0f} us of processor time")
    print(dict(statuses), f"peak {peak:.0f}/s, offered {offered:.0f}/s, goodput {goodput:.0f}/s")
    healthy = httpx.get(service.process.url + "/readyz", timeout=5).status_code == 200
    others = sum(count for status, count in statuses.items() if status not in ALLOWED)
    return [
        result("peak", round(peak), "decisions/s", None, met=peak > 0),
        result("offered", round(offered / peak, 1), "times the peak", TIMES,
               met=offered >= 0.9 * TIMES * peak),
        result("goodput under overload", round(goodput / peak, 2), "of the peak", GOODPUT,
               met=goodput >= GOODPUT * peak or scale.overload < LONG_SECONDS),
        result("decisions for the same processor time", round(kept, 2), "of the peak", KEPT,
               met=kept >= KEPT),
        result("neither answered nor refused", others, "requests", 0, met=others == 0),
        result("never sent: all connections waited", statuses[NEVER_SENT], "requests", None, met=True),
        result("refused", len(refused), "requests", None, met=len(refused) > 0),
        result("refusals counted", round(_shed(service)), "requests", len(refused),
               met=_shed(service) == len(refused)),
        result("p99 of what was served", round(percentile(served, 0.99) * 1000), "ms",
               DEADLINE_SECONDS * 1000, met=percentile(served, 0.99) <= DEADLINE_SECONDS),
        result("memory grown", round(growth, 1), "MiB", GROWTH_MIB, met=growth <= GROWTH_MIB),
        result("ready afterwards", int(healthy), "yes", 1, met=healthy),
    ]  # fmt: skip


def run(scale: str) -> dict[str, Any]:
    """Return what was measured."""
    with fraud_service(through_proxy=False) as service:
        return {"results": results_of(service, SCALES[scale])}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
