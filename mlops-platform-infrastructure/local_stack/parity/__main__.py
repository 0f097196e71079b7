"""`python -m local_stack.parity`: one simulated day through broker, processor, Redis and API, and back.

The last landed day is served as if it were today, in schemas, keys, topics and a service name of its own, so
that the instance's own features and decisions stay as they are. Then every vector that the API logged is
recomputed offline and compared. First a short replay with a deliberately wrong definition must fail: a check
that cannot fail proves nothing.

Exit code: 0 no mismatch, 1 a mismatch or a part that failed (named), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from typing import Any

import yaml

from local_stack import __main__ as stack
from local_stack.demo.requests import ApiError
from local_stack.instance import DEFAULT_INSTANCE, REPO_DIR, Instance, open_instance
from local_stack.measure import PeakMemory, StageTimer
from local_stack.parity.rehearsal import FEATURE_STORE, ParityError, Rehearsal, wrong_definition
from local_stack.transactions import read_day

DEFINITION = REPO_DIR / FEATURE_STORE / "contracts/stream_aggregations/transactions_today.yaml"
WRONG_TRANSACTIONS = 200


def check(instance: Instance, limit: int | None) -> dict[str, Any]:
    """Run the whole check and return the report that `parity.json` holds."""
    timer = StageTimer(stack.say)
    with PeakMemory(instance) as memory:
        with timer.stage("start the stack"):
            stack.up(instance, apis=False)
        rehearsal = Rehearsal(instance)
        transactions = read_day(rehearsal.landing, rehearsal.day)[:limit]
        definition = yaml.safe_load(DEFINITION.read_text())
        with timer.stage("build the features offline"):
            rehearsal.forget()
            rehearsal.build_offline()
            rehearsal.materialize()
        began = datetime.now(UTC)
        with timer.stage("replay with a wrong definition, which must fail"):
            service = rehearsal.replay(
                "wrong", transactions[:WRONG_TRANSACTIONS], wrong_definition(definition)
            )
            wrong = rehearsal.measure(service, began, rehearsal.folder / "wrong-definition.json")
            if wrong["mismatches"] == 0:
                raise ParityError(
                    "a wrong definition of the stream was not noticed: the check proves nothing"
                )
        with timer.stage("replay the day"):
            rehearsal.forget_online()
            rehearsal.materialize()
            began = datetime.now(UTC)
            service = rehearsal.replay("day", transactions, definition)
        with timer.stage("recompute and compare"):
            path = rehearsal.reports / "parity.json"
            report = rehearsal.measure(service, began, path)
        if report["vectors"] + report["degraded_left_out"] != len(transactions):
            raise ParityError(f"{len(transactions)} transactions, but {report['vectors']} vectors")
    report |= {
        "day": str(rehearsal.day),
        "transactions": len(transactions),
        "wrong_definition": {name: wrong[name] for name in ("vectors", "values", "mismatches", "by_feature")},
        "seconds": {name: round(seconds, 1) for name, seconds in timer.seconds.items()},
        "peak_rss_mb": round(memory.peak_mb),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the check, print what it found, and leave `parity.json` and its page."""
    parser = argparse.ArgumentParser(prog="python -m local_stack.parity", description=__doc__)
    parser.add_argument("--instance", default=DEFAULT_INSTANCE)
    parser.add_argument("--limit", type=int, help="replay only the first N transactions of the day")
    options = parser.parse_args(arguments)
    instance = open_instance(options.instance)
    if not (instance.reports_dir / "demo.json").is_file():
        print("the demo has not run on this instance yet: make demo", file=sys.stderr)
        return 2
    try:
        report = check(instance, options.limit)
    except (ParityError, ApiError, TimeoutError, stack.ServiceFailedError) as error:
        print(f"\nThe check stopped: {error}\nLogs: {instance.logs_dir}", file=sys.stderr)
        return 1
    wrong = report["wrong_definition"]
    print(f"\nFeature parity of {report['day']}")
    print(f"  served vectors   {report['vectors']:>10,}  of {report['transactions']:,} transactions")
    print(f"  values compared  {report['values']:>10,}")
    print(f"  mismatches       {report['mismatches']:>10,}  (not recomputed: {report['not_recomputed']:,})")
    print(f"  can it fail?     {wrong['mismatches']:>10,}  of {wrong['values']:,} with a wrong definition")
    print(f"  report           {instance.reports_dir / 'parity.json'}, and .html beside it")
    return 0 if report["mismatches"] == 0 and report["not_recomputed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
