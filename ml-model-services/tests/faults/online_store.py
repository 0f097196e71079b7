"""The online store killed, paused, and cut off by a proxy that swallows all bytes, under load.

Each request has to be answered, and labelled with the rung it was answered from: the snapshot for entities
that were asked for before, declared defaults for others, and the store again soon after it is back.

Run with the settings of a stack: `PYTHONPATH=.:tests python -m faults.online_store --scale full`.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from faults.fraud_service import ENTITIES, FraudService, fraud_service
from faults.load import Sample, percentile
from faults.served_app import command_line, result

FAULTS = ("killed", "paused", "blackholed")
NOTICE_SECONDS = 0.1  # twice the deadline of a read
P99_SECONDS = 0.05
RECOVERY_SECONDS = 2.0
LONG_SECONDS = 10.0


@dataclass(frozen=True)
class Scale:
    """How long and how much."""

    rate: float
    before: float
    outage: float
    after: float
    rounds: int


SCALES = {
    "small": Scale(rate=100, before=0.3, outage=0.9, after=1.6, rounds=1),
    "full": Scale(rate=2000, before=3, outage=30, after=5, rounds=20),
}


def _fail(service: FraudService, fault: str) -> None:
    if fault == "killed":
        service.store.kill()
    elif fault == "paused":
        service.store.signal(signal.SIGSTOP)
    else:
        service.proxy.mode("blackhole")


def _mend(service: FraudService, fault: str) -> None:
    if fault == "killed":
        service.store.start()
    elif fault == "paused":
        service.store.signal(signal.SIGCONT)
    else:
        service.proxy.mode("pass")


@dataclass
class Outage:
    """What became of the requests around one outage.

    Times are monotonic: when it began, when its end began, and when the store was there again.
    """

    begun: float
    mended: float
    ended: float
    samples: list[Sample]

    def unanswered(self) -> int:
        return sum(sample.status != 200 for sample in self.samples)

    def mislabelled(self) -> list[Sample]:
        """Return replies whose label is not what the request must have been answered from."""
        return [sample for sample in self.samples if sample.status == 200 and not self._right(sample)]

    def _right(self, sample: Sample) -> bool:
        if sample.degraded != (sample.rung != "online"):
            return False
        fallback = "snapshot" if sample.body < ENTITIES else "defaults"
        if sample.due + sample.seconds < self.begun:
            return sample.rung == "online"
        if self.begun + NOTICE_SECONDS < sample.due and sample.due + sample.seconds < self.mended:
            return sample.rung == fallback
        return sample.rung in {"online", fallback}

    def during(self, share: float, notice: float) -> float:
        """Return a percentile of latency during the outage, from `notice` seconds after its beginning."""
        return percentile(
            [s.seconds for s in self.samples if self.begun + notice <= s.due < self.mended], share
        )

    def outside(self, share: float) -> float:
        """Return a percentile of latency around the outage: what the machine gives at this rate."""
        return percentile(
            [s.seconds for s in self.samples if s.rung == "online" and not self.begun <= s.due < self.ended],
            share,
        )

    def recovered_after(self) -> float:
        """Return when the last reply was given that was not from the store, after it was back."""
        last = max((s.due + s.seconds for s in self.samples if s.rung != "online"), default=self.ended)
        return max(0.0, last - self.ended)


def outage(service: FraudService, fault: str, scale: Scale) -> Outage:
    """Let the store fail for a while under load."""
    seconds = scale.before + scale.outage + scale.after
    with service.load(rate=scale.rate, seconds=seconds) as load:
        time.sleep(scale.before)
        begun = time.monotonic()
        _fail(service, fault)
        time.sleep(scale.outage)
        mended = time.monotonic()
        _mend(service, fault)
        return Outage(begun, mended, time.monotonic(), load.samples())


def results_of(service: FraudService, scale: Scale) -> list[dict[str, Any]]:
    """Return what was measured of every fault, the worst of all rounds."""
    service.warm_up()
    results = []
    # Of a short outage the notice is too great a part, and its few requests have no 99th percentile.
    long = scale.outage >= LONG_SECONDS
    notice, share = (0.0, 0.99) if long else (NOTICE_SECONDS, 0.5)
    for fault in FAULTS:
        found = [outage(service, fault, scale) for _ in range(scale.rounds)]
        requests = sum(len(each.samples) for each in found)
        unanswered = sum(each.unanswered() for each in found)
        wrong = [sample for each in found for sample in each.mislabelled()]
        slow, recovery = (
            max(each.during(share, notice) for each in found),
            max(e.recovered_after() for e in found),
        )
        rungs = Counter(sample.rung for each in found for sample in each.samples)
        outside = max(each.outside(share) for each in found)
        print(fault, dict(rungs), f"around: {outside * 1000:.1f} ms", "mislabelled:", wrong[:3])
        # Where other work shares the machine, the same rate around the outage says what is to be expected.
        bound = P99_SECONDS if long else max(P99_SECONDS, 2 * outside)
        results += [
            result(f"{fault}: requests not answered", unanswered, f"of {requests}", 0, met=unanswered == 0),
            result(f"{fault}: replies mislabelled", len(wrong), "replies", 0, met=not wrong),
            result(f"{fault}: replies from the snapshot", rungs["snapshot"], "replies", None,
                   met=rungs["snapshot"] > 0),
            result(f"{fault}: p{share * 100:.0f} during the outage", round(slow * 1000, 1), "ms",
                   round(bound * 1000, 1), met=slow <= bound),
            result(f"{fault}: recovered after", round(recovery, 2), "s", RECOVERY_SECONDS,
                   met=recovery <= RECOVERY_SECONDS),
        ]  # fmt: skip
    return results


def run(scale: str) -> dict[str, Any]:
    """Return what was measured."""
    with fraud_service() as service:
        return {"results": results_of(service, SCALES[scale])}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
