"""Send simulated transactions to the stream: a day of them, at a chosen speed.

Events keep the times they have; `--speed 60` sends an hour of them in a minute, `max` as fast as the broker
takes them. They come from the landing folder or from the raw table. Safe to rerun: the processor counts each
event once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import psycopg
from kafka import KafkaProducer
from kafka.errors import KafkaError
from numpy.typing import NDArray
from psycopg import sql
from pydantic import Field
from pydantic_settings import BaseSettings
from tqdm import tqdm

from data_source_connectors.database_connector import (
    DatabaseSettings,
    DatabaseUnavailableError,
    connect,
    read_chunks,
)
from data_source_connectors.kafka_consumer_utils import (
    BrokerUnavailableError,
    KafkaSettings,
    ensure_topics,
    open_producer,
)
from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.python_scripts_feast.command_line import OneLineParser, iso_date
from data_transformation_pipelines.python_scripts_feast.landing_files import file_name
from data_transformation_pipelines.python_scripts_feast.raw_tables import RawSettings
from data_transformation_pipelines.python_scripts_feast.transaction_files import (
    RefusedFileError,
    TransactionColumns,
    parse_transactions,
)

from .aggregation_contract import load_definition
from .stream_settings import StreamSettings
from .transaction_events import encode

FLUSH_SECONDS = 60
SLEEP_AT_MOST = 0.2


class DataSettings(BaseSettings):
    """Where landed files are: `DATA_DIR`."""

    data_dir: Path = Field()


class NoTransactionsError(Exception):
    """There is nothing to send for that day; the message says where it was looked for."""


class NotSentError(Exception):
    """The broker did not take every message."""


def landed(folder: Path, day: date) -> TransactionColumns:
    """Return a day's transactions from the landing folder; NoTransactionsError or RefusedFileError."""
    path = folder / file_name("transactions", day)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NoTransactionsError(f"{path} does not exist: simulate that day, or name another") from None
    return parse_transactions(content, day)


def loaded(database: DatabaseSettings, raw: RawSettings, day: date) -> TransactionColumns:
    """Return a day's transactions from the raw table, in order of time, or raise NoTransactionsError."""
    query = sql.SQL(
        "select transaction_id, tx_datetime, customer_id, terminal_id, tx_amount from {}"
        " where tx_date = %s order by tx_datetime, transaction_id"
    ).format(sql.Identifier(raw.raw_schema, "transactions"))
    with connect(database, application_name="replay-transactions") as connection:
        rows = [row for chunk in read_chunks(connection, query, (day,)) for row in chunk]
    if not rows:
        raise NoTransactionsError(f"{raw.raw_schema}.transactions holds none of {day}")
    ids, times, customers, terminals, amounts = zip(*rows, strict=True)
    return TransactionColumns(
        np.array(ids, dtype=np.int64),
        np.array([moment.replace(tzinfo=None) for moment in times], dtype="datetime64[us]"),
        np.array(customers, dtype=np.int64),
        np.array(terminals, dtype=np.int64),
        np.array(amounts, dtype=np.float64),
    )


def messages(columns: TransactionColumns) -> Iterator[tuple[bytes, bytes]]:
    """Yield each transaction's key and value as the schema contract says."""
    moments = np.datetime_as_string(columns.tx_datetime, unit="us")
    for transaction_id, moment, customer, terminal, amount in zip(
        columns.transaction_id.tolist(),
        moments.tolist(),
        columns.customer_id.tolist(),
        columns.terminal_id.tolist(),
        columns.tx_amount.tolist(),
        strict=True,
    ):
        yield b"%d" % customer, encode(transaction_id, f"{moment}Z", customer, terminal, amount)


def due_seconds(columns: TransactionColumns, speed: float | None) -> NDArray[np.float64]:
    """Return when to send each event, in seconds after the first; at once where there is no speed."""
    elapsed = (columns.tx_datetime - columns.tx_datetime[0]) / np.timedelta64(1, "s")
    return np.zeros(len(elapsed)) if speed is None else np.maximum.accumulate(elapsed) / speed


def send(producer: KafkaProducer, topic: str, columns: TransactionColumns, speed: float | None) -> float:
    """Send all events and return the seconds it took; raises NotSentError where the broker refused one."""
    failures: list[BaseException] = []
    began = time.monotonic()
    due = due_seconds(columns, speed).tolist()
    progress = tqdm(total=len(due), unit="event", desc=topic, mininterval=0.5)
    with progress:
        for when, (key, value) in zip(due, messages(columns), strict=True):
            while (ahead := began + when - time.monotonic()) > 0:
                time.sleep(min(ahead, SLEEP_AT_MOST))
            producer.send(topic, key=key, value=value).add_errback(failures.append)
            progress.update()
            if failures:
                break
        producer.flush(timeout=FLUSH_SECONDS)
    if failures:
        raise NotSentError(f"the broker did not take an event: {failures[0]}")
    return time.monotonic() - began


def speed_factor(text: str) -> float | None:
    """Return the number > 0 that the text states, None for `max`, for argparse."""
    if text == "max":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor max")
    return factor


def read_day(source: Literal["landing", "raw"], day: date) -> TransactionColumns:
    """Return a day's transactions from where they are asked of."""
    if source == "raw":
        return loaded(read_settings(DatabaseSettings), read_settings(RawSettings), day)
    return landed(read_settings(DataSettings).data_dir / "landing" / "transactions", day)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = OneLineParser(prog="replay_transactions", description=__doc__.split("\n\n")[0])
    parser.add_argument("--date", type=iso_date, required=True, action="append", dest="days", metavar="D")
    parser.add_argument("--until", type=iso_date, metavar="D", help="send every day from --date to this one")
    parser.add_argument(
        "--speed", type=speed_factor, default=None, help="times real time, or max (the default)"
    )
    parser.add_argument("--source", choices=["landing", "raw"], default="landing")
    parser.add_argument("--topic", help="default: where the stream's events arrive")
    options = parser.parse_args(arguments)
    days = sorted(set(options.days))
    if options.until is not None:
        days = [days[0] + timedelta(days=n) for n in range((options.until - days[0]).days + 1)]
    try:
        stream, kafka, definition = (
            read_settings(StreamSettings),
            read_settings(KafkaSettings),
            load_definition(),
        )
        ensure_topics(kafka, stream.topics(definition))
        topic = options.topic or stream.topic(definition.views[0].topic)
        producer = open_producer(kafka, linger_ms=20)
        try:
            for day in days:
                columns = read_day(options.source, day)
                if not len(columns.transaction_id):
                    raise NoTransactionsError(f"{day} has no transactions")
                seconds = send(producer, topic, columns, options.speed)
                print(
                    f"sent {len(columns.transaction_id)} transactions of {day} to {topic} in {seconds:.1f} s"
                )
        finally:
            producer.close(timeout=5)
    except (SettingsError, NoTransactionsError, RefusedFileError) as error:
        parser.error(str(error))
    except (
        BrokerUnavailableError,
        DatabaseUnavailableError,
        NotSentError,
        KafkaError,
        psycopg.Error,
    ) as error:
        print(f"replay_transactions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
