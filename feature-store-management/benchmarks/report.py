"""Results of benchmarks as one JSON file, and their growth as plots. Targets stand in targets.yaml."""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from matplotlib.figure import Figure

TARGETS = Path(__file__).with_name("targets.yaml")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Result:
    """One figure; with a peer, `ratio` is what the target speaks about, otherwise `value` is.

    `ratio` says how many times better (or, for a floor, how many times the floor's time) the value is; the
    benchmark that makes the result states which in `name`.
    """

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Growth:
    """One point of a curve: how long a benchmark took at a multiple of its smallest size."""

    name: str
    multiple: int
    rows: int
    seconds: float
    peak_mb: float | None = None


RESULT_FIELDS = [field.name for field in fields(Result)]
GROWTH_FIELDS = [field.name for field in fields(Growth)]


@dataclass
class Report:
    """What the benchmarks of one run found."""

    results: list[Result]
    growth: list[Growth]


def median_seconds(work: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Return the median wall time of `repeats` runs of `work`, after `warm_up` runs that do not count."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class PeakMemory:
    """The largest resident memory seen, in MB, of this process and its children."""

    def __init__(self) -> None:
        self.megabytes = 0.0

    def sample(self, process: psutil.Process) -> None:
        """Take one measurement."""
        total = 0
        for each in [process, *process.children(recursive=True)]:
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.megabytes = max(self.megabytes, total / 1e6)


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the resident memory of this process and its children every 50 ms while the block runs."""
    peak, process, ended = PeakMemory(), psutil.Process(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak.sample(process)

    peak.sample(process)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.sample(process)


def judged(result: Result, targets: dict[str, str]) -> dict[str, Any]:
    """Return a result with its target (such as `<= 1.5`) and whether it is met."""
    target = targets.get(result.name)
    met = None
    if target is not None:
        sign, _, bound = target.partition(" ")
        measured = result.value if result.ratio is None else result.ratio
        met = COMPARISONS[sign](measured, float(bound))
    return {**asdict(result), "target": target, "met": met}


def write_report(report: Report, command: Sequence[str], path: Path) -> dict[str, Any]:
    """Write the report as JSON and return it."""
    targets: dict[str, str] = yaml.safe_load(TARGETS.read_text(encoding="utf-8"))
    document = {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "results": [judged(result, targets) for result in report.results],
        "growth": [asdict(point) for point in report.growth],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def read_report(path: Path) -> Report:
    """Return what another benchmark's JSON file found, such as that of the online read."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return Report(
        [Result(**{name: row.get(name) for name in RESULT_FIELDS}) for row in document["results"]],
        [Growth(**{name: row.get(name) for name in GROWTH_FIELDS}) for row in document.get("growth", [])],
    )


def plot_growth(points: Sequence[Growth], path: Path) -> None:
    """Draw seconds over rows, one line a benchmark, beside the slope of n log n."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(point.name for point in points):
        line = sorted((point for point in points if point.name == name), key=lambda point: point.rows)
        rows = np.array([point.rows for point in line], dtype=float)
        drawn = axes.plot(rows, [point.seconds for point in line], marker="o", label=name)
        bound = rows * np.log2(rows)
        axes.plot(
            rows, line[0].seconds * bound / bound[0], linestyle=":", linewidth=1, color=drawn[0].get_color()
        )
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds", title="Growth (dotted: n log n)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
