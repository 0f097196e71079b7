"""The metrics of all workers as one: each publishes its own every second, whoever is asked adds them up.

Counters and histograms are summed, also those of workers that have ended, so that a total never falls. Gauges
are those of the living: sums of what there is, otherwise the highest; of "up" the lowest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Metric, generate_latest

PUBLISH_SECONDS = 1.0
_ENDED = "ended"
_SUMMED_GAUGES = frozenset(
    {
        "requests_running", "requests_waiting", "spool_records", "spool_bytes",
        "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_open_fds",
    }
)  # fmt: skip
_LOWEST_GAUGES = frozenset({"online_store_up", "process_start_time_seconds", "process_max_fds"})


class _Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float


class _Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    kind: str
    text: str
    samples: list[_Sample]


_decode = msgspec.msgpack.Decoder(list[_Family]).decode


class WorkerMetrics:
    """This worker's registry, and a folder in which the workers of the service publish theirs."""

    def __init__(self, registry: CollectorRegistry, folder: Path) -> None:
        self._registry = registry
        self._folder = folder
        self._path = folder / f"{os.getpid()}.metrics"

    async def keep_published(self) -> None:
        """Publish every second, until cancelled."""
        while True:
            self.publish()
            await asyncio.sleep(PUBLISH_SECONDS)

    def publish(self) -> None:
        """Write what this worker has counted; who reads sees the whole of it or what stood before."""
        _write(self._path, _families(self._registry.collect()))

    def text(self) -> bytes:
        """Return the metrics of all workers in Prometheus' text format; its own are those of this moment."""
        others = [path for path in self._folder.glob("*.metrics") if path != self._path]
        merged = CollectorRegistry()
        merged.register(_Merged([_families(self._registry.collect()), *map(_read, others)]))
        return generate_latest(merged)


def begin(folder: Path) -> None:
    """Make the folder ready for a service that starts: what an earlier one left does not count."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("*.metrics"):
        path.unlink()


def retire(folder: Path, pid: int) -> None:
    """Add what a worker that has ended counted to the totals of those before it."""
    path, total = folder / f"{pid}.metrics", folder / f"{_ENDED}.metrics"
    kept = [family for family in _read(path) if family.kind != "gauge"]
    _write(total, list(_merged([_read(total), kept])))
    path.unlink(missing_ok=True)


class _Merged:
    def __init__(self, parts: list[list[_Family]]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        for family in _merged(self._parts):
            metric = Metric(family.name, family.text, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


def _merged(parts: Iterable[list[_Family]]) -> Iterator[_Family]:
    found: dict[str, _Family] = {}
    samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], _Sample]] = {}
    for family in (family for part in parts for family in part):
        found.setdefault(family.name, family)
        own = samples.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            before = own.get(key)
            value = sample.value if before is None else _together(family, sample, before.value)
            own[key] = _Sample(sample.name, sample.labels, value)
    for name, family in found.items():
        yield _Family(name, family.kind, family.text, list(samples[name].values()))


def _together(family: _Family, sample: _Sample, before: float) -> float:
    if sample.name.endswith("_created") or family.name in _LOWEST_GAUGES:
        return min(before, sample.value)
    if family.kind == "gauge" and family.name not in _SUMMED_GAUGES:
        return max(before, sample.value)
    return before + sample.value


def _families(metrics: Iterable[Metric]) -> list[_Family]:
    return [
        _Family(
            metric.name,
            metric.type,
            metric.documentation,
            [_Sample(sample.name, sample.labels, sample.value) for sample in metric.samples],
        )
        for metric in metrics
    ]


def _read(path: Path) -> list[_Family]:
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:  # its worker has ended just now, or has not published yet
        return []


def _write(path: Path, families: list[_Family]) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(msgspec.msgpack.encode(families))
    scratch.replace(path)
