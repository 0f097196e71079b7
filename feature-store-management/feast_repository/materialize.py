"""Bring the online store to what the feature tables say as of END.

A value older than its view's time to live is stale, so the rows of [END - ttl, END] are all that the online
store can need, however long ago the last run was, whatever failed since and whatever was corrected. Each run
writes the newest row of that interval for every entity, and a rerun writes the same. Feast's own incremental
command starts where the last run ended, and so misses a row before that which came or was corrected later.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from feast import FeatureStore, FeatureView

Interval = tuple[datetime, datetime]


def parse_time(text: str) -> datetime:
    """Return an ISO 8601 date or time as an aware datetime; without an offset it is UTC.

    >>> parse_time("2026-11-21").isoformat()
    '2026-11-21T00:00:00+00:00'
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no ISO 8601 date or time such as 2026-11-21 or 2026-11-21T06:00:00Z"
        raise argparse.ArgumentTypeError(message) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def interval_to_write(
    ttl: timedelta, written_until: datetime | None, end: datetime, start: datetime | None
) -> Interval | None:
    """Return the interval of a view to write, None where the online store already stands later than `end`.

    An explicit `start` always writes: it can set the online store back to an earlier time.
    """
    if start is not None:
        return start, end
    if written_until is not None and written_until > end:
        return None
    return end - ttl, end


def plan(
    views: Iterable[FeatureView], end: datetime, start: datetime | None
) -> dict[Interval | None, list[str]]:
    """Return the names of the views by the interval to write; those under None are left as they are."""
    planned: dict[Interval | None, list[str]] = {}
    for view in sorted(views, key=lambda view: view.name):
        if view.ttl is None or not view.ttl:
            raise ValueError(f"feature view {view.name} has no time to live")
        interval = interval_to_write(view.ttl, view.most_recent_end_time, end, start)
        planned.setdefault(interval, []).append(view.name)
    return planned


def materialize(store: FeatureStore, end: datetime, start: datetime | None) -> None:
    """Write every online view of the registry, and say what was written and how long it took."""
    views = [view for view in store.list_feature_views() if view.online]
    if not views:
        raise SystemExit("the registry holds no feature view: run scripts/run_feast_apply.sh first")
    for interval, names in plan(views, end, start).items():
        if interval is None:
            print(f"left as it is, for it stands later than {end.isoformat()}: {', '.join(names)}")
            continue
        began = time.monotonic()
        store.materialize(start_date=interval[0], end_date=interval[1], feature_views=names)
        print(f"wrote {', '.join(names)} as of {end.isoformat()} in {time.monotonic() - began:.1f} s")


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="run_feast_materialize_incremental.sh",
        description="Write the newest feature values up to END into the online store. Safe to rerun.",
    )
    end_help = "date or time, UTC without an offset; default: now"
    start_help = "write from START on, even over newer values"
    parser.add_argument("end", nargs="?", type=parse_time, metavar="END", help=end_help)
    parser.add_argument("--from", dest="start", type=parse_time, metavar="START", help=start_help)
    options = parser.parse_args(arguments)
    end = options.end or datetime.now(UTC)
    if options.start is not None and options.start >= end:
        parser.error(f"START {options.start.isoformat()} is not before END {end.isoformat()}")
    materialize(FeatureStore(repo_path=str(Path(__file__).parent)), end, options.start)


if __name__ == "__main__":
    main(sys.argv[1:])
