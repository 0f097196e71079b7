"""Policies from the command line: check a file, or try a changed one on logged decisions.

python -m common_service_libs.policy check FILE ...
python -m common_service_libs.policy backtest --service S --policy NEW.yaml [--from D --to D] [--old FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg
from pydantic import ValidationError

from common_service_libs.errors import PolicyError, ServiceError
from common_service_libs.label_engine.documents import WrongFile
from common_service_libs.label_engine.lists import load_lists
from common_service_libs.label_engine.policy import find_policy, load_policy
from common_service_libs.model_registry import BundleCache, MlflowRegistry
from common_service_libs.policy_backtest import (
    FOLDER,
    BacktestSettings,
    Engines,
    FraudLabels,
    Interval,
    compare,
    document_of,
    read_records,
    recorded_policies,
)
from common_service_libs.policy_report import page

SERVICES = Path(__file__).resolve().parent.parent / "services"


def check(files: Iterable[Path]) -> int:
    """Print every problem of the files as `file:line: message`; return 1 if there is one."""
    wrong = False
    for path in files:
        try:
            policy = load_policy(path)
        except WrongFile as error:
            wrong = True
            for problem in error.problems:
                print(problem.said(str(path)))
        except PolicyError as error:
            wrong = True
            print(error)
        else:
            shadow = sum(rule.mode == "shadow" for rule in policy.rules)
            print(
                f"{path}: policy {policy.name} version {policy.version} is in order: "
                f"{len(policy.rules)} rules, {shadow} of them in shadow"
            )
    return int(wrong)


def backtest(options: argparse.Namespace, command: str) -> int:
    """Run a backtest, write HTML and JSON, print where and what; 1 if a decision is not reproduced."""
    settings = BacktestSettings()
    new = load_policy(options.policy)
    lists = None if options.lists is None else load_lists(options.lists)
    interval = Interval(options.first, options.last)
    current = find_policy(SERVICES / options.service / "policies")
    old, counts = recorded_policies(
        settings.decisions_conninfo(),
        options.service,
        interval,
        folders=[settings.spool_dir / options.service / "policies"],
        files=[*options.old, current, options.policy],
    )
    registry = MlflowRegistry(
        settings.mlflow_tracking_uri,
        deadline=settings.registry_deadline_seconds,
        download_deadline=settings.download_deadline_seconds,
    )
    engines = Engines(BundleCache(settings.spool_dir / "bundles", registry))
    labels = FraudLabels(settings.feature_store_conninfo(), options.known_as_of)
    records = read_records(settings.decisions_conninfo(), options.service, interval, labels)
    found = compare(records, new, old, engines.of, lists)
    report = document_of(
        found,
        service=options.service,
        new=new,
        old=old,
        counts=counts,
        command=command,
        labels_problem=labels.problem,
        unavailable=engines.unavailable,
    )
    folder = settings.reports_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{options.service}-{new.sha256[:12]}"
    (folder / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / f"{stem}.html").write_text(page(report), encoding="utf-8")
    kept = ("records", "flipped", "flips_by_kind", "verification", "skipped", "inputs_not_recorded")
    summary = {"report": str(folder / f"{stem}.html")} | {name: report[name] for name in kept}
    summary["alerts_a_day"] = {side: report[side]["alerts_a_day"] for side in ("old", "new")}
    print(json.dumps(summary, indent=1))
    return int(found.mismatched > 0)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(prog="policy", description="Check policies, and try them on the past.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    checking = verbs.add_parser("check", help="say what is wrong with policy files")
    checking.add_argument("files", nargs="+", type=Path)
    testing = verbs.add_parser("backtest", help="decide logged decisions anew")
    testing.add_argument("--service", required=True, choices=sorted(p.name for p in SERVICES.iterdir()))
    testing.add_argument("--policy", required=True, type=Path, help="the changed policy")
    testing.add_argument("--from", dest="first", type=date.fromisoformat, help="first day of arrival, UTC")
    testing.add_argument("--to", dest="last", type=date.fromisoformat, help="last day of arrival, UTC")
    testing.add_argument("--old", type=Path, action="append", default=[], help="a policy that decided then")
    testing.add_argument("--lists", type=Path, help="lists for those that were not looked at then")
    testing.add_argument("--known-as-of", type=_moment, default=None, help="labels known by then; now")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if options.verb == "check":
        return check(options.files)
    options.known_as_of = options.known_as_of or datetime.now(UTC)
    try:
        return backtest(options, f"python -m common_service_libs.policy {shlex.join(given)}")
    except ValidationError as error:
        wrong = ", ".join(f"{str(item['loc'][0]).upper()}: {item['msg'].lower()}" for item in error.errors())
        print(f"policy: settings are missing or wrong: {wrong}", file=sys.stderr)
    except (ServiceError, OSError, psycopg.Error) as error:
        print(f"policy: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
