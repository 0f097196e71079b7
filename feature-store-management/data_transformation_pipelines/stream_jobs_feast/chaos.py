"""Show that nothing is lost or counted twice: events in disorder, a processor killed again and again.

A stream of its own gets `--events` events over some days, some of them twice, some late. The real processor
is killed with SIGKILL `--kills` times on the way. In the end Redis is compared with a batch computation over
the events, byte for byte, and the offline tables with the totals of every day. Exit 1 where anything differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
from psycopg import sql
from tqdm import tqdm

from data_source_connectors.kafka_consumer_utils import KafkaSettings, open_producer
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import (
    OneLineParser,
    ReportSettings,
    whole_number,
    write_report,
)

from .aggregation_contract import load_definition
from .batch_oracle import compare, daily_totals
from .rehearsal import Rehearsal, as_messages, in_disorder, made_up_events, rehearse, source_topic

ROOT = Path(__file__).resolve().parents[2]
PROCESSOR = "data_transformation_pipelines.stream_jobs_feast.process_transaction_stream"
DAYS = 12
WATCH_SECONDS = 0.05
STANDSTILL_SECONDS = 120


class StandstillError(Exception):
    """The processor makes no progress."""


def start_processor(rehearsal: Rehearsal, log: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the real processor on a rehearsal; its log goes to a file."""
    return subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-m", PROCESSOR, *arguments],
        cwd=ROOT,
        env=rehearsal.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def send_all(
    kafka: KafkaSettings, topic: str, arrivals: pd.DataFrame, rate: float | None = None, linger_ms: int = 20
) -> None:
    """Send events in their order of arrival, at most `rate` a second; raises what the broker answered."""
    failures: list[BaseException] = []
    producer = open_producer(kafka, linger_ms=linger_ms)
    began = time.monotonic()
    try:
        for number, (key, value) in enumerate(as_messages(arrivals)):
            producer.send(topic, key=key, value=value).add_errback(failures.append)
            if rate is not None and number % 50 == 0:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
        producer.flush(timeout=120)
    finally:
        producer.close(timeout=5)
    if failures:
        raise failures[0]


def run(events: int, kills: int, *, days: int = DAYS, seed: int = 0) -> dict[str, Any]:
    """Run it all on a stream of its own and return the figures."""
    definition, chance = load_definition(), random.Random(seed)  # noqa: S311 (a rehearsal's dice)
    frame = made_up_events(events, days, seed=seed)
    arrivals = in_disorder(frame, seed=seed)
    with rehearse(definition, name="chaos") as rehearsal:
        topic = source_topic(rehearsal.settings.stream, definition)
        sender_error: list[BaseException] = []

        def send() -> None:
            try:
                send_all(rehearsal.settings.kafka, topic, arrivals)
            except BaseException as error:  # shown by the main thread
                sender_error.append(error)

        sender = threading.Thread(target=send, daemon=True)
        began = time.monotonic()
        sender.start()
        # Every arrival is read once, every event once more by its terminal.
        total = len(arrivals) + events
        marks = [(number + chance.random()) / (kills + 1) * total for number in range(kills)]
        log_path = Path(rehearsal.environment["REPORTS_DIR"]) / "stream-chaos.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as log, tqdm(total=total, unit="message", mininterval=1) as progress:
            killed = 0
            for mark in marks:
                _kill_at(rehearsal, log, mark, total, progress)
                killed += 1
            sender.join()
            if sender_error:
                raise sender_error[0]
            code = start_processor(rehearsal, log, "--until-caught-up").wait(timeout=1_800)
            progress.update(rehearsal.processed() - progress.n)
        seconds = time.monotonic() - began
        if code:
            raise StandstillError(f"the last processor ended with {code}: see {log_path}")
        online = compare(rehearsal.redis, frame, rehearsal.project)
        offline = {view.view: _offline_mismatches(rehearsal, frame, view.view) for view in definition.views}
        return {
            "events": events,
            "days": days,
            "messages": len(arrivals),
            "duplicates": len(arrivals) - events,
            "out_of_order": int((arrivals["tx_datetime"] < arrivals["tx_datetime"].cummax()).sum()),
            "kills": killed,
            "seconds": round(seconds, 1),
            "online": online,
            "offline": offline,
        }


def _kill_at(rehearsal: Rehearsal, log: Any, mark: float, total: int, progress: tqdm) -> None:
    """Run a processor until so many messages are durable, some of them its own, then kill it in the midst."""
    first, since = rehearsal.processed(), time.monotonic()
    last = first
    processor = start_processor(rehearsal, log)
    try:
        while (now := rehearsal.processed()) < mark or first == now < total:
            progress.update(now - progress.n)
            if processor.poll() is not None:
                raise StandstillError(f"the processor ended with {processor.returncode}")
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > STANDSTILL_SECONDS:
                raise StandstillError(f"no progress beyond {now} messages in {STANDSTILL_SECONDS} s")
            time.sleep(WATCH_SECONDS)
    finally:
        processor.kill()
        processor.wait()


def _offline_mismatches(rehearsal: Rehearsal, events: pd.DataFrame, view: str) -> dict[str, int]:
    """Compare the last row of every entity and day in an offline table with the day's totals."""
    entity = view.removesuffix("_today")
    expected = daily_totals(events, entity)
    names = list(expected.columns)
    found = rehearsal.database.execute(
        sql.SQL(
            "select distinct on ({key}, {day}) {columns} from {table}"
            " order by {key}, {day}, event_timestamp desc, created_timestamp desc"
        ).format(
            key=sql.Identifier(f"{entity}_id"),
            day=sql.Identifier(f"{entity}_today_day"),
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            table=sql.Identifier(f"{rehearsal.schema_prefix}features", f"fct_{view}"),
        )
    ).fetchall()
    wanted = {tuple(row) for row in expected.itertuples(index=False, name=None)}
    return {"entity_days": len(wanted), "mismatches": len(wanted ^ {tuple(row) for row in found})}


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = OneLineParser(prog="chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", type=whole_number, default=1_000_000)
    parser.add_argument("--kills", type=whole_number, default=20)
    parser.add_argument("--days", type=whole_number, default=DAYS, help="over so many days")
    parser.add_argument("--seed", type=int, default=0)
    options: argparse.Namespace = parser.parse_args(arguments)
    # Leave nothing behind, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        folder = read_settings(ReportSettings).reports_dir
        report = run(options.events, options.kills, days=options.days, seed=options.seed)
    except SettingsError as error:
        parser.error(str(error))
    except StandstillError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    path = write_report(folder, "stream-chaos.json", report)
    wrong = report["online"]["mismatches"] + sum(each["mismatches"] for each in report["offline"].values())
    print(f"{report['kills']} kills, {report['messages']} messages, {wrong} mismatches; report: {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
