"""Bring the online store to what the feature tables say as of END.

A value older than its view's time to live is stale, so the rows of [END - ttl, END] are all that the online
store can need, however long ago the last run was, whatever failed since and whatever was corrected. Each run
writes the newest row of that interval for every entity, and a rerun writes the same. Feast's own incremental
command starts where the last run ended, and so misses a row before that which came or was corrected later.

Rows go from PostgreSQL to Redis as columns, in the order of their key and in batches of bounded memory. A run
that was killed goes on after the last batch it wrote, if the table is still the same
(fast_redis_progress.py).
"""

import argparse
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView
from feast.utils import _convert_arrow_to_proto
from tqdm import tqdm

from fast_redis_layout import arrow_column
from fast_redis_online_store import FastRedisOnlineStore
from fast_redis_progress import Progress
from fast_redis_source import FeatureDatabase, FeatureRows, Interval, Resume, last_key
from fast_redis_writer import RedisRowWriter, Ties


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
        return Interval(start, end)
    if written_until is not None and written_until > end:
        return None
    return Interval(end - ttl, end)


def plan(views: Iterable[FeatureView], end: datetime, start: datetime | None) -> dict[str, Interval | None]:
    """Return the interval to write by the name of the view, None for a view to leave as it is."""
    planned = {}
    for view in sorted(views, key=lambda view: view.name):
        if view.ttl is None or not view.ttl:
            raise ValueError(f"feature view {view.name} has no time to live")
        planned[view.name] = interval_to_write(view.ttl, view.most_recent_end_time, end, start)
    return planned


def ties_of(view: FeatureView, forced: bool) -> Ties:
    """Return what a row does to one of the same time.

    A corrected row has the time of the one it corrects and replaces it. Not so where a stream feeds the view:
    its row of that time knew more. A forced run writes over any row.
    """
    if forced:
        return "always"
    return "same_or_newer" if view.stream_source is None else "newer"


def is_plain(view: FeatureView) -> bool:
    """Return whether the view's rows are its source's, with nothing that only Feast's engine computes."""
    transformed = getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None)
    return not transformed and not view.source_views


class ViewWriter:
    """Writes batches of one view: as columns where all types allow it, else through Feast's messages."""

    def __init__(
        self, online: FastRedisOnlineStore, store: FeatureStore, view: FeatureView, ties: Ties
    ) -> None:
        self._online, self._config, self._view, self._ties = online, store.config, view, ties
        self._keys = {field.name: field.dtype.to_value_type() for field in view.entity_columns}
        self._rows: RedisRowWriter | None = online.row_writer(store.config, view)

    def write(self, batch: pa.RecordBatch, time_column: str) -> int:
        """Return how many of the batch's rows were written: the others met a newer one."""
        if self._rows is not None and self._rows.fits(batch):
            times = arrow_column(time_column, "unix_timestamp", batch[time_column]).cast(pa.int64())
            [key] = self._keys
            columns = {field.name: batch[field.name] for field in self._view.features}
            return self._rows.write(batch[key], np.asarray(times), columns, self._ties)
        rows = _convert_arrow_to_proto(batch, self._view, self._keys)
        return self._online.write_rows(self._config, self._view, rows, self._ties)


def write_view(
    store: FeatureStore, database: FeatureDatabase, view: FeatureView, interval: Interval, ties: Ties
) -> tuple[int, int]:
    """Bring one view to the interval's end; return the rows read and those of them that were written."""
    source, online = FeatureRows(database, view), _online_store(store)
    progress = Progress(online._get_client(store.config.online_store), store.project, view.name)
    version = source.version()
    resume = progress.resume(interval, ties, version)
    if resume is not None:
        print(f"{view.name}: going on after {dict(zip(source.keys, resume.after, strict=True))}")
    writer = ViewWriter(online, store, view, ties)
    read = written = 0
    with tqdm(desc=view.name, unit=" rows", disable=None) as bar:
        for batch in source.read(interval, resume):
            written += writer.write(batch, source.time)
            read += len(batch)
            bar.update(len(batch))
            reached = last_key(batch, source.keys)
            if version is not None and is_further(reached, interval, resume):
                progress.reached(interval, ties, version, reached)
    progress.finished()
    return read, written


def is_further(key: tuple[object, ...], interval: Interval, resume: Resume | None) -> bool:
    """Return whether all keys up to `key` are written as of the interval's end, and a note can say so.

    A run that goes on to a later end than the one before it first passes by the keys which that one wrote.
    Texts are ordered by the database's collation, which is not Python's.
    """
    if not all(isinstance(part, int | str) for part in key):
        return False
    if resume is None or resume.until == interval.end:
        return True
    return all(isinstance(part, int) for part in key) and key > resume.after


def materialize(store: FeatureStore, end: datetime, start: datetime | None) -> None:
    """Write every online view of the registry, and say what was written and how long it took."""
    views = {view.name: view for view in store.list_feature_views() if view.online}
    if not views:
        raise SystemExit("the registry holds no feature view: run scripts/run_feast_apply.sh first")
    online = _online_store(store)
    with FeatureDatabase(store.config.offline_store) as database:
        for name, interval in plan(views.values(), end, start).items():
            if interval is None:
                print(f"left as it is, for it stands later than {end.isoformat()}: {name}")
                continue
            view, ties, began = views[name], ties_of(views[name], start is not None), time.monotonic()
            if is_plain(view):
                read, written = write_view(store, database, view, interval, ties)
                store.registry.apply_materialization(view, store.project, interval.start, interval.end)
                what = f"{written} of {read} rows"
            else:
                with online.forcing(ties):
                    store.materialize(interval.start, interval.end, feature_views=[name])
                what = "by Feast's engine"
            _say_written(name, end, what, began)


def _online_store(store: FeatureStore) -> FastRedisOnlineStore:
    online = store._get_provider().online_store
    if not isinstance(online, FastRedisOnlineStore):
        raise SystemExit("feature_store.yaml names another online store than FastRedisOnlineStore")
    return online


def _say_written(name: str, end: datetime, what: str, began: float) -> None:
    print(f"wrote {name} as of {end.isoformat()}: {what} in {time.monotonic() - began:.1f} s")


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="run_feast_materialize_incremental.sh",
        description="Write the newest feature values up to END into the online store. "
        "Safe to rerun; a killed run continues.",
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
