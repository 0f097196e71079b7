"""The daily windows of docs/architecture.md as Spark data frames: the same numbers, to the bit, as dbt's.

Days are counted from 1970-01-01 and instants in microseconds since then (UTC), so that all arithmetic is on
whole numbers; money is summed in cents and divided once, at the end.

A window of N full days before D is the difference of two running totals, of the days before D and of the days
before D - N: one pass over an entity's days whatever N is, and exact, since the totals are whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F  # noqa: N812 (its name everywhere)

WINDOW_DAYS = (1, 7, 30)
LONGEST_WINDOW = max(WINDOW_DAYS)
MICROSECONDS_A_DAY = 86_400_000_000


@dataclass(frozen=True)
class Span:
    """The days D, first and last included, whose rows are computed."""

    first: int
    last: int


@dataclass(frozen=True)
class RawFrames:
    """What the windows are computed from.

    `transactions`, of all days that the windows reach: `transaction_id`, `tx_day`, `customer_id`,
    `terminal_id`, `tx_amount_cents`, `known_us`, and of its label `is_fraud` and `label_known_us`, null where
    it has none. `first_customer_days`, `first_terminal_days`: the id and, of all days ever, `first_day`.
    """

    transactions: DataFrame
    first_customer_days: DataFrame
    first_terminal_days: DataFrame
    label_delay_days: int


def first_raw_day(span: Span, label_delay_days: int) -> int:
    """Return the earliest day whose transactions enter the span's windows.

    >>> first_raw_day(Span(100, 120), 7)
    63
    """
    return span.first - LONGEST_WINDOW - label_delay_days


def customer_daily(raw: RawFrames, span: Span) -> DataFrame:
    """Return the rows of `fct_customer_daily`; grain: customer x day of the span, from its second day on."""
    transactions = raw.transactions.select(
        "customer_id",
        F.col("tx_day").alias("day"),
        F.lit(1).cast("long").alias("tx_count"),
        F.col("tx_amount_cents"),
        F.col("known_us"),
    )
    windows = _windows(
        transactions, raw.first_customer_days, span, "customer_id", ("tx_count", "tx_amount_cents")
    )
    return windows.select(
        "customer_id",
        "event_timestamp",
        "created_timestamp",
        *(F.col(f"tx_count_{n}d").alias(f"customer_tx_count_full_{n}d") for n in WINDOW_DAYS),
        *(
            (F.col(f"tx_amount_cents_{n}d").cast("double") / 100).alias(f"customer_tx_amount_sum_full_{n}d")
            for n in WINDOW_DAYS
        ),
    )


def terminal_daily(raw: RawFrames, span: Span) -> DataFrame:
    """Return the rows of `fct_terminal_daily`; grain: terminal x day of the span, from its second day on.

    A label enters the windows of the days after the one on which it matures: moving it there by the delay
    turns [D - delay - N, D - delay) into [D - N, D).
    """
    zero = F.lit(0).cast("long")
    transactions = raw.transactions.select(
        "terminal_id",
        F.col("tx_day").alias("day"),
        F.lit(1).cast("long").alias("tx_count"),
        zero.alias("labelled_tx_count"),
        zero.alias("fraud_count"),
        F.col("known_us"),
    )
    labels = raw.transactions.where("is_fraud is not null").select(
        "terminal_id",
        (F.col("tx_day") + raw.label_delay_days).alias("day"),
        zero.alias("tx_count"),
        F.lit(1).cast("long").alias("labelled_tx_count"),
        F.col("is_fraud").cast("long").alias("fraud_count"),
        F.greatest("known_us", "label_known_us").alias("known_us"),
    )
    windows = _windows(
        transactions.unionByName(labels),
        raw.first_terminal_days,
        span,
        "terminal_id",
        ("tx_count", "labelled_tx_count", "fraud_count"),
    )
    return windows.select(
        "terminal_id",
        "event_timestamp",
        "created_timestamp",
        *(F.col(f"tx_count_{n}d").alias(f"terminal_tx_count_full_{n}d") for n in WINDOW_DAYS),
        *(F.col(f"labelled_tx_count_{n}d").alias(f"terminal_labelled_tx_count_{n}d") for n in WINDOW_DAYS),
        *(_fraud_risk(n).alias(f"terminal_fraud_risk_{n}d") for n in WINDOW_DAYS),
    )


def _fraud_risk(days: int) -> Column:
    labelled = F.col(f"labelled_tx_count_{days}d")
    risk = F.col(f"fraud_count_{days}d").cast("double") / F.nullif(labelled, F.lit(0)).cast("double")
    return F.coalesce(risk, F.lit(0.0))


def _windows(
    facts: DataFrame, first_days: DataFrame, span: Span, entity: str, measures: Sequence[str]
) -> DataFrame:
    """Return, for each entity and day of the span after its first, each measure over the windows before it.

    `facts` has the entity, `day`, the measures and `known_us`, when the fact became known. The result has
    `<measure>_<N>d`, `event_timestamp` and `created_timestamp`.
    """
    reach = span.first - LONGEST_WINDOW
    # A row of zeros for every day: "no activity" is a zero, and N rows back are N days back.
    calendar = first_days.where(F.col("first_day") < span.last).select(
        entity,
        "first_day",
        F.explode(F.sequence(F.greatest("first_day", F.lit(reach)), F.lit(span.last))).alias("day"),
    )
    days = (
        facts.where(F.col("day").between(reach, span.last))
        .unionByName(calendar, allowMissingColumns=True)
        .groupBy(entity, "day")
        .agg(
            # Only the calendar's row has it, and it is the same in all of an entity's.
            F.max("first_day").alias("first_day"),
            F.max("known_us").alias("known_us"),
            *(F.coalesce(F.sum(measure), F.lit(0)).alias(measure) for measure in measures),
        )
    )
    by_day = Window.partitionBy(entity).orderBy("day")
    before = by_day.rowsBetween(Window.unboundedPreceding, -1)
    totals = days.select(
        entity,
        "day",
        "first_day",
        F.max("known_us").over(by_day.rowsBetween(-LONGEST_WINDOW, -1)).alias("known_us"),
        *(F.coalesce(F.sum(measure).over(before), F.lit(0)).alias(measure) for measure in measures),
    )
    midnight_us = F.col("day").cast("long") * MICROSECONDS_A_DAY
    windows = totals.select(
        entity,
        "day",
        "first_day",
        F.timestamp_micros(midnight_us).alias("event_timestamp"),
        F.timestamp_micros(F.greatest(midnight_us, F.col("known_us") + 1)).alias("created_timestamp"),
        *(
            (F.col(measure) - F.lag(measure, n, 0).over(by_day)).alias(f"{measure}_{n}d")
            for measure in measures
            for n in WINDOW_DAYS
        ),
    )
    return windows.where((F.col("day") > F.col("first_day")) & (F.col("day") >= span.first))
