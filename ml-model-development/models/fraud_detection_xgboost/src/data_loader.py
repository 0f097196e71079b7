"""The fraud model's data: time intervals with the label delay between them, point-in-time training sets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import pandas as pd

from common_ml_utils.data_schemas.training_data_contract import PublishedContract, TrainingDataContract
from common_ml_utils.errors import EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient, day_windows
from src.config import FraudWindows

KEY = "transaction_id"
LABEL = "is_fraud"
REQUEST = {"tx_amount": "tx_amount", "tx_timestamp": "extract(epoch FROM {timestamp})::float8"}


@dataclass(frozen=True)
class Interval:
    """Event times [start, end), UTC midnights."""

    start: datetime
    end: datetime

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame's rows of the interval."""
        times = frame["event_timestamp"]
        return frame[(times >= self.start) & (times < self.end)].reset_index(drop=True)


@dataclass(frozen=True)
class FraudIntervals:
    """What may be learned and measured as of a time, with a label delay before each measuring interval.

    ```
    |<------------- training ------------->| delay |<- holdout ->| delay | as_of
    |<-- fit -->| delay |<- validation --->|
    ```
    Before `validation` and `holdout` lies one delay, so that their models see only labels known at their
    start.
    """

    as_of: datetime
    fit: Interval
    validation: Interval
    training: Interval
    holdout: Interval


def resolve_intervals(
    as_of: datetime, first_day: date, delay_days: int, windows: FraudWindows
) -> FraudIntervals:
    """Lay the intervals back from `as_of`; training starts at the first loaded day when there are fewer days.

    Raises EmptyWindowError when no whole day is left to fit the validation model on.
    """
    as_of = datetime.combine(as_of.astimezone(UTC).date(), time(), UTC)
    delay = timedelta(days=delay_days)
    holdout_end = as_of - delay
    holdout_start = holdout_end - timedelta(days=windows.holdout_days)
    training_end = holdout_start - delay
    validation_start = training_end - timedelta(days=windows.validation_days)
    fit_end = validation_start - delay
    loaded_from = datetime.combine(first_day, time(), UTC)
    training_start = max(loaded_from, training_end - timedelta(days=windows.training_days))
    if fit_end <= training_start:
        raise EmptyWindowError(
            f"too few days for a training as of {as_of:%Y-%m-%d}: data begins on {first_day}, and "
            f"validation, holdout and their label delays reach back to {fit_end:%Y-%m-%d}"
        )
    return FraudIntervals(
        as_of=as_of,
        fit=Interval(training_start, fit_end),
        validation=Interval(validation_start, training_end),
        training=Interval(training_start, training_end),
        holdout=Interval(holdout_start, holdout_end),
    )


def data_contract(contract: PublishedContract) -> TrainingDataContract:
    """Return the shape of the fraud training set: one row a transaction."""
    return TrainingDataContract(service=contract.service, key=KEY, label=LABEL)


def load_labelled(
    client: FeatureStoreClient, contract: PublishedContract, intervals: list[Interval], known_as_of: datetime
) -> pd.DataFrame:
    """Return the transactions of the intervals with features and labels known at `known_as_of`, checked.

    Grain: one row a transaction, ordered by `transaction_id`. A label known later is left out, not guessed.
    """
    entities = EntityQuery(
        table=("labels", "fct_fraud_labels"),
        columns=(KEY, *contract.service.join_keys, LABEL, "label_known_at"),
        order_by=KEY,
        request=_request("event_timestamp"),
        labels_known_as_of=known_as_of,
    )
    windows = [window for interval in intervals for window in day_windows(interval.start, interval.end)]
    frame = client.features_as_of(contract, entities, windows, "training set")
    shape = data_contract(contract)
    return shape.validate_frame(frame.drop(columns="tx_timestamp"), known_as_of)


def day_entities(contract: PublishedContract) -> EntityQuery:
    """Return the query of transactions, labelled or not, each to be looked at as of its own moment."""
    return EntityQuery(
        table=("raw", "transactions"),
        columns=(KEY, *contract.service.join_keys),
        order_by=KEY,
        request=_request("tx_datetime"),
        timestamp="tx_datetime",
    )


def load_day(client: FeatureStoreClient, contract: PublishedContract, day: date) -> pd.DataFrame:
    """Return a day's transactions, labelled or not, with features as of each and `tx_timestamp`."""
    start = datetime.combine(day, time(), UTC)
    windows = day_windows(start, start + timedelta(days=1))
    return client.features_as_of(contract, day_entities(contract), windows, f"day {day}")


def _request(timestamp: str) -> dict[str, str]:
    return {name: expression.format(timestamp=timestamp) for name, expression in REQUEST.items()}
