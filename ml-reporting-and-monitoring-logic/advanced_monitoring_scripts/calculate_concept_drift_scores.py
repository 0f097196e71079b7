"""Checks a model for drift.

    python -m advanced_monitoring_scripts.calculate_concept_drift_scores --model M --date D

Compares what the champion scored with the reference statistics of its release bundle, and the quality of
scores whose labels are known by now with its holdout. Leaves `$REPORTS_DIR/drift/<model>-<date>.json` and
`.html`. An alert is a result: exit 0. Exit 1: something it needs is missing, in one line on standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

from pydantic import ValidationError

from advanced_monitoring_scripts.champion_bundle import ChampionBundle, fetch_champion
from advanced_monitoring_scripts.drift_report import DriftReport
from advanced_monitoring_scripts.errors import MonitoringError
from advanced_monitoring_scripts.matured_labels import LABEL_QUERIES, join_labels, read_labels
from advanced_monitoring_scripts.scored_rows import SOURCES, read_scored_rows
from advanced_monitoring_scripts.settings import DriftSettings
from advanced_monitoring_scripts.verdicts import (
    ConceptFinding,
    Verdict,
    judge_columns,
    judge_concept,
    overall,
)

CONCEPT_DAYS = 28


def check_drift(
    settings: DriftSettings, model_name: str, day: date, *, source: str, window_days: int, as_of: datetime
) -> DriftReport:
    """Read, compare and judge; raises MonitoringError when something that is needed is missing."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    bundle = fetch_champion(settings.mlflow_tracking_uri, model_name)
    seconds["bundle"] = time.perf_counter() - start
    rows = read_scored_rows(settings.decisions_db, SOURCES[source], bundle, day, window_days)
    seconds["rows"] = time.perf_counter() - start - sum(seconds.values())
    findings = judge_columns(bundle, rows, settings.thresholds)
    seconds["distributions"] = time.perf_counter() - start - sum(seconds.values())
    concept = check_concept(settings, bundle, day, source, as_of)
    seconds["concept"] = time.perf_counter() - start - sum(seconds.values())
    return DriftReport(
        verdict=overall(findings, concept),
        bundle=bundle,
        source=source,
        day=day,
        first_day=rows.days.min().item(),
        number_of_days=rows.number_of_days,
        rows=len(rows),
        left_out=rows.left_out,
        as_of=as_of,
        findings=findings,
        concept=concept,
        thresholds=settings.thresholds,
        command=" ".join(
            ["python -m", "advanced_monitoring_scripts.calculate_concept_drift_scores", *sys.argv[1:]]
        ),
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def check_concept(
    settings: DriftSettings, bundle: ChampionBundle, day: date, source: str, as_of: datetime
) -> ConceptFinding:
    """Judge the champion's batch scores of the last four weeks whose labels were known at `as_of`."""
    if bundle.model_name not in LABEL_QUERIES:
        return ConceptFinding(
            Verdict.NOT_JUDGED, [f"no labels are defined for the rows of {bundle.model_name}"]
        )
    if source != "batch":
        return ConceptFinding(
            Verdict.NOT_JUDGED,
            ["a decision record does not name the transaction that is labelled: see batch"],
        )
    first = day - timedelta(days=CONCEPT_DAYS - 1)
    keys, labels = read_labels(settings.feature_store_db, bundle.model_name, first, day, as_of)
    if len(keys) == 0:
        return ConceptFinding(
            Verdict.NOT_JUDGED, [f"no labels of {first} to {day} were known at {as_of:%Y-%m-%d %H:%M} UTC"]
        )
    rows = read_scored_rows(settings.decisions_db, SOURCES["batch"], bundle, day, CONCEPT_DAYS)
    return judge_concept(join_labels(rows, keys, labels), bundle.holdout_metrics, settings.thresholds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Check a model for drift.")
    parser.add_argument("--model", required=True, help="registered name, e.g. fraud-detection-model")
    parser.add_argument("--date", required=True, type=date.fromisoformat, help="last day of the window (UTC)")
    parser.add_argument(
        "--source", choices=sorted(SOURCES), default="batch", help="which scores (default: batch)"
    )
    parser.add_argument(
        "--window-days", type=int, default=7, choices=range(1, 93), metavar="N", help="default: 7"
    )
    parser.add_argument("--as-of", type=_utc, help="labels known at this time (default: the end of the day)")
    options = parser.parse_args(arguments)
    as_of = options.as_of or datetime.combine(options.date + timedelta(days=1), time_of_day(), UTC)
    try:
        settings = DriftSettings()  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in error.errors():
            print(f"setting {'__'.join(map(str, problem['loc']))}: {problem['msg']}", file=sys.stderr)
        return 1
    try:
        report = check_drift(
            settings,
            options.model,
            options.date,
            source=options.source,
            window_days=options.window_days,
            as_of=as_of,
        )
    except MonitoringError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    paths = report.write(settings.reports_dir / "drift")
    print_summary(report)
    print(f"report: {paths[1]}")
    return 0


def print_summary(report: DriftReport) -> None:
    """Print the verdict and what is behind it."""
    print(f"{report.bundle.model_name} {report.bundle.model_version}, {report.day}: {report.verdict}")
    print(f"  {report.rows} rows of {report.number_of_days} day(s), {report.source}")
    for finding in report.findings:
        if finding.verdict is not Verdict.OK:
            print(f"  {finding.name}: {finding.verdict}, {'; '.join(finding.reasons)}")
    reasons = "; ".join(report.concept.reasons)
    print(f"  concept: {report.concept.verdict}{f', {reasons}' if reasons else ''}")


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


if __name__ == "__main__":
    sys.exit(main())
