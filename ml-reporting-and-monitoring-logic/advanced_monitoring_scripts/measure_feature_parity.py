"""Measures training/serving skew: every served vector against the same vector recomputed offline.

    measure_feature_parity export --service S --model M --out REQUESTS
    training_sets.build --service F --entities REQUESTS --out VECTORS     (feature-store-management)
    measure_feature_parity compare --service S --model M --vectors VECTORS

`export` writes what each decision was asked with, `compare` leaves `$REPORTS_DIR/parity.json` and `.html`,
and the same as `$REPORTS_DIR/feature_parity/<feature service>.json`, where the promotion gate looks. A report
that is written elsewhere (`--out`) is a rehearsal, which the gate does not see.
Exit 0: every value is the same, bit for bit. Exit 1: one is not, or something that is needed is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pyarrow.parquet as pq
from pydantic import ValidationError

from advanced_monitoring_scripts.errors import MissingInputError, MonitoringError
from advanced_monitoring_scripts.feature_parity import Parity, compare
from advanced_monitoring_scripts.served_vectors import (
    SERVED_MODELS,
    ServedVectors,
    entity_rows,
    read_served_vectors,
)
from advanced_monitoring_scripts.settings import DecisionSettings

TEMPLATES = Path(__file__).parent / "templates"
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def report_of(parity: Parity, served: ServedVectors, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "command": " ".join(
            ["python -m", "advanced_monitoring_scripts.measure_feature_parity", *sys.argv[1:]]
        ),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "service": options.service,
        "model": options.model,
        "feature_service": SERVED_MODELS[options.model].feature_service,
        "vectors": parity.vectors,
        "values": parity.values,
        "mismatches": parity.mismatches,
        "not_recomputed": parity.not_recomputed,
        "degraded_left_out": served.degraded,
        "by_feature": dict(parity.by_feature),
        "examples": [asdict(example) for example in parity.examples],
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON to `path` and as a page beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    loader = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    page = loader.get_template("parity_report.html.j2").render(report=report)
    path.with_suffix(".html").write_text(page, encoding="utf-8")


def read_vectors(path: Path) -> pd.DataFrame:
    """Return the recomputed rows; integers stay integers also where some are null."""
    if not path.is_file():
        raise MissingInputError(f"there are no recomputed vectors at {path}")
    return pq.read_table(path).to_pandas(integer_object_nulls=True)


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code."""
    settings = DecisionSettings()  # type: ignore[call-arg]
    served = read_served_vectors(
        settings.decisions_db, options.service, options.model, options.start, options.end or datetime.now(UTC)
    )
    if options.action == "export":
        rows = entity_rows(served.vectors, SERVED_MODELS[options.model])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, options.out)
        print(f"{len(served.vectors):,} requests in {options.out}")
        return 0
    parity = compare(served.vectors, read_vectors(options.vectors))
    standing = settings.reports_dir / "parity.json"
    path = options.out or standing
    report = report_of(parity, served, options)
    write_report(report, path)
    if path.resolve() == standing.resolve():
        write_report(report, settings.reports_dir / "feature_parity" / f"{report['feature_service']}.json")
    print(
        f"{parity.vectors:,} vectors, {parity.values:,} values, {parity.mismatches:,} mismatches, "
        f"{parity.not_recomputed:,} vectors not recomputed; {path}"
    )
    for example in parity.examples[:5]:
        print(f"  {example.request_id} {example.feature}: {example.served} served, {example.offline} offline")
    return 0 if parity.holds else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Compare served features with the same ones offline.")
    parser.add_argument("action", choices=("export", "compare"))
    parser.add_argument("--service", required=True, help="as in the decision records: fraud_detection_api")
    parser.add_argument("--model", required=True, choices=sorted(SERVED_MODELS))
    parser.add_argument(
        "--from", dest="start", type=_utc, default=LONG_AGO, help="requested at this time or later (UTC)"
    )
    parser.add_argument("--to", dest="end", type=_utc, help="requested before this time (default: now)")
    parser.add_argument("--vectors", type=Path, help="compare: Parquet of the recomputed vectors")
    parser.add_argument("--out", type=Path, help="export: Parquet to write; compare: JSON to write")
    options = parser.parse_args(arguments)
    needed = {"export": "out", "compare": "vectors"}[options.action]
    if getattr(options, needed) is None:
        parser.error(f"{options.action} needs --{needed}")
    try:
        return run(options)
    except ValidationError as error:
        for problem in error.errors():
            print(f"setting {'__'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
    except MonitoringError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


if __name__ == "__main__":
    sys.exit(main())
