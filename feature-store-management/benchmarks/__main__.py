"""Run benchmarks by name: `python -m benchmarks [NAME ...] [--quick] [--merge FILE]`, on a running stack.

A benchmark is a module `bench_<name>.py` with `run(quick: bool) -> Report`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks.report import Report, plot_growth, read_report, write_report

NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main(arguments: list[str]) -> int:
    """Run the benchmarks and return 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed beside a peer.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--merge", type=Path, metavar="FILE", help="a report of the same form whose figures go into this one"
    )
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if "REPORTS_DIR" not in os.environ:
        parser.error("REPORTS_DIR is not set: load the settings of a running stack (docs/architecture.md)")
    whole = read_report(options.merge) if options.merge else Report([], [])
    for name in options.names or NAMES:
        print(f"--- {name}", flush=True)
        found: Report = importlib.import_module(f"benchmarks.bench_{name}").run(options.quick)
        whole.results += found.results
        whole.growth += found.growth
    path = Path(os.environ["REPORTS_DIR"]) / "bench-features.json"
    document = write_report(whole, ["python", "-m", "benchmarks", *arguments], path)
    if whole.growth:
        plot_growth(whole.growth, path.with_suffix(".png"))
    for result in document["results"]:
        judgement = {True: "met", False: "MISSED", None: "-"}[result["met"]]
        ratio = "" if result["ratio"] is None else f"  {result['ratio']:.2f}x {result['peer']}"
        print(f"{judgement:7} {result['name']}: {result['value']:.4g} {result['unit']}{ratio}")
    print(f"report: {path}")
    return 1 if any(result["met"] is False for result in document["results"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
