"""Measure one-row and batch prediction from the release bundle: `python -m benchmarks.bench_models`.

Every figure stands beside a peer of the same run: the booster of the model's own library, the library's
scikit-learn class, and `mlflow.pyfunc` on the same bundle. All of them use one thread. Rows differ from call
to call, as requests do: the same row again would find every branch predicted. A batch is counted in rows a
second of processor time, so that a busy machine does not count against it; calls are timed by the clock.
Exits with 1 when a target of targets.yaml is missed.
"""

from __future__ import annotations

import argparse
import gc
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.cases import Case, build, specifications
from common_ml_utils.reports import StepClock, write_report

TARGETS = Path(__file__).with_name("targets.yaml")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
ROWS = 100_000
PEER_ROWS = 20_000
DISTINCT_ROWS = 1000
ROUNDS = 5
CALLS, SLOW_CALLS = 2000, 60
BATCHES = 3
START = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from common_ml_utils.release_bundle import ReleaseBundle
ReleaseBundle.load(Path(sys.argv[1]))
print(time.perf_counter() - start)
"""


def result(
    name: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None
) -> dict[str, Any]:
    """Return a figure; `ratio` says how many times better than its peer it is."""
    better = None
    if peer_value is not None:
        better = round(peer_value / value if unit == "us" else value / peer_value, 2)
    return {
        "name": name,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "peer": peer,
        "peer_value": None if peer_value is None else float(f"{peer_value:.4g}"),
        "ratio": better,
    }


def judged(results: list[dict[str, Any]], targets: dict[str, str]) -> list[dict[str, Any]]:
    """Add `target` and `met`; raises KeyError for a target that no figure answers."""
    if unanswered := sorted(set(targets) - {line["name"] for line in results}):
        raise KeyError(f"targets without a figure: {unanswered}")
    for line in results:
        line["target"] = targets.get(line["name"])
        line["met"] = None
        if line["target"] is not None:
            sign, bound = line["target"].split()
            line["met"] = COMPARISONS[sign](line["value"], float(bound))
    return results


def time_calls(calls: dict[str, tuple[Callable[[int], Any], int]]) -> dict[str, np.ndarray]:
    """Return microseconds of each call; the contestants take turns, so that noise meets all of them.

    A contestant is a function of the row's number and how often it is called in a round.
    """
    taken: dict[str, list[int]] = {name: [] for name in calls}
    clock = time.perf_counter_ns
    for name in calls:
        for i in range(10):
            calls[name][0](i)
    gc.collect()
    gc.disable()
    try:
        for turn in range(ROUNDS):
            for name, (call, times) in calls.items():
                for i in range(times):
                    row = (turn * times + i) % DISTINCT_ROWS
                    start = clock()
                    call(row)
                    taken[name].append(clock() - start)
    finally:
        gc.enable()
    return {name: np.array(nanoseconds) / 1000 for name, nanoseconds in taken.items()}


def rows_a_second(call: Callable[[], Any], rows: int) -> float:
    """Return the median rate in rows a second of processor time."""
    rates = []
    for _ in range(BATCHES):
        start = time.process_time()
        call()
        rates.append(rows / (time.process_time() - start))
    return float(np.median(rates))


def one_row(case: Case) -> list[dict[str, Any]]:
    """Measure a single row: encoded beside the native booster, as features beside scikit-learn and pyfunc."""
    head = case.frame.head(DISTINCT_ROWS)
    matrix = case.bundle.preprocessing.transform(head)
    rows, matrices = list(matrix), [matrix[i : i + 1] for i in range(DISTINCT_ROWS)]
    features = head.astype(object).where(head.notna(), None).to_dict("records")
    frames = [head.iloc[i : i + 1] for i in range(DISTINCT_ROWS)]
    taken = time_calls(
        {
            "encoded": (lambda i: case.bundle.score_encoded(rows[i]), CALLS),
            "features": (lambda i: case.bundle.score_row(features[i]), CALLS),
            "native": (lambda i: case.native.scores(matrices[i]), CALLS // 4),
            "sklearn": (lambda i: case.sklearn.predict_proba(matrices[i]), SLOW_CALLS * 2),
            "pyfunc": (lambda i: case.pyfunc.predict(frames[i]), SLOW_CALLS),
        }
    )

    def at(name: str, percent: int) -> float:
        return float(np.percentile(taken[name], percent))

    lines = []
    for ours, peer, label in (
        ("encoded", "native", "native booster"),
        ("features", "pyfunc", "mlflow.pyfunc"),
        ("features against scikit-learn", "sklearn", "scikit-learn predict_proba"),
    ):
        for percent in (50, 99):
            name = f"{case.name}: one row, {ours}, p{percent}"
            lines.append(result(name, at(ours.split()[0], percent), "us", label, at(peer, percent)))
    return lines


def batch(case: Case) -> list[dict[str, Any]]:
    """Measure many rows on one core, and compare every score, of both paths, with the library's."""
    matrix, frame = case.bundle.preprocessing.transform(case.frame), case.frame
    some, some_frame = matrix[:PEER_ROWS], frame.head(PEER_ROWS)
    native = case.native.scores(matrix)
    single = np.array([case.bundle.score_encoded(row) for row in matrix])
    difference = max(np.abs(case.bundle.forest.scores(matrix) - native).max(), np.abs(single - native).max())
    rates = {
        "matrix": rows_a_second(lambda: case.bundle.forest.scores(matrix), len(matrix)),
        "frame": rows_a_second(lambda: case.bundle.score_frame(frame), len(frame)),
        "native": rows_a_second(lambda: case.native.scores(some), PEER_ROWS),
        "sklearn": rows_a_second(lambda: case.sklearn.predict_proba(some), PEER_ROWS),
        "pyfunc": rows_a_second(lambda: case.pyfunc.predict(some_frame), PEER_ROWS),
    }
    name = f"{case.name}: batch"
    return [
        result(f"{name}, matrix", rates["matrix"], "rows/s", "native booster", rates["native"]),
        result(
            f"{name}, matrix, against scikit-learn",
            rates["matrix"],
            "rows/s",
            "scikit-learn predict_proba",
            rates["sklearn"],
        ),
        result(f"{name}, data frame", rates["frame"], "rows/s", "mlflow.pyfunc", rates["pyfunc"]),
        result(f"{case.name}: difference to the native booster", float(difference), "probability"),
    ]


def starts(case: Case) -> list[dict[str, Any]]:
    """Measure loading the bundle in a new process: first with loops to compile, then with a cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        seconds = []
        for _ in range(2):
            done = subprocess.run(  # noqa: S603 (this Python, this file's own code)
                [sys.executable, "-c", START, str(case.folder)],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            )
            seconds.append(float(done.stdout))
    return [
        result(f"{case.name}: first load in a process, nothing compiled", seconds[0], "s"),
        result(f"{case.name}: first load in a process, compiled before", seconds[1], "s"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_models", description=__doc__)
    reports = Path(os.environ.get("REPORTS_DIR", Path(__file__).parents[2] / ".local" / "reports"))
    parser.add_argument("--out", type=Path, default=reports / "bench-models.json")
    options = parser.parse_args(arguments)
    clock, results = StepClock(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, spec in enumerate(specifications()):
            with clock.step(spec.name):
                case = build(spec, ROWS, Path(folder) / str(number))
                results += one_row(case) + batch(case)
                if number == 0:
                    results += starts(case)
    judged(results, yaml.safe_load(TARGETS.read_text()))
    write_report(options.out, results, rows=ROWS, seconds=clock.seconds)
    for line in results:
        print(_line(line))
    missed = [line["name"] for line in results if line["met"] is False]
    print(f"{options.out}: {len(missed)} targets missed{': ' if missed else ''}{'; '.join(missed)}")
    return 1 if missed else 0


def _line(line: dict[str, Any]) -> str:
    peer = "" if line["peer"] is None else f"{line['peer']} {line['peer_value']:,}: {line['ratio']} times"
    verdict = "" if line["met"] is None else f"{line['target']} {'met' if line['met'] else 'MISSED'}"
    return f"{line['name']:<85} {line['value']:>10,} {line['unit']:<12} {peer:<52} {verdict}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
