"""Messages of transactions.v1 as events: the boundary where they are validated, once.

Pure: bytes in, a Transaction out. RefusedMessageError says what is wrong; such a message goes to the dead
letters. The rules are those of contracts/schemas/transactions.v1.schema.json, and a test holds them together;
stricter in one thing: an identifier is written without a decimal point.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

EVENT_ID = "transaction_id"
EVENT_TIME = "tx_datetime"
INTEGER_FIELDS = ("transaction_id", "customer_id", "terminal_id")
NUMBER_FIELDS = ("tx_amount",)

MAX_MESSAGE_BYTES = 4096
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Identifier = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Moment = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$")
]


class Transaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One card transaction; `tx_datetime` is UTC text, `tx_amount` USD."""

    transaction_id: Identifier
    tx_datetime: Moment
    customer_id: Identifier
    terminal_id: Identifier
    tx_amount: Amount


class RefusedMessageError(Exception):
    """A message is no valid event; `reason` is one of a few words, the text says more."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


_decoder = msgspec.json.Decoder(Transaction)


def decode(value: bytes | None) -> tuple[Transaction, int]:
    """Return the event and its time in microseconds since 1970, or refuse the message.

    >>> event, time_us = decode(
    ...     b'{"transaction_id": 1, "tx_datetime": "1970-01-02T00:00:00.000001Z",'
    ...     b' "customer_id": 2, "terminal_id": 3, "tx_amount": 4.5}'
    ... )
    >>> time_us
    86400000001
    """
    if not value:
        raise RefusedMessageError("empty", "the message has no value")
    if len(value) > MAX_MESSAGE_BYTES:
        raise RefusedMessageError("oversized", f"{len(value)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
    try:
        event = _decoder.decode(value)
        elapsed = datetime.fromisoformat(event.tx_datetime) - EPOCH
    except msgspec.ValidationError as error:
        raise RefusedMessageError("schema", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedMessageError("not_json", str(error)) from None
    except ValueError as error:
        raise RefusedMessageError("schema", f"{EVENT_TIME}: {error}") from None
    return event, (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def check_key(key: bytes | None, entity: int, name: str) -> None:
    """Refuse a message whose key is not its entity's identifier as decimal text."""
    if key != b"%d" % entity:
        raise RefusedMessageError("wrong_key", f"the key {key!r:.60} is not {name} {entity}")


def encode(
    transaction_id: int, tx_datetime: str, customer_id: int, terminal_id: int, tx_amount: float
) -> bytes:
    """Return a transaction as the schema says; `tx_datetime` is its text in UTC, with microseconds and Z."""
    return msgspec.json.encode(Transaction(transaction_id, tx_datetime, customer_id, terminal_id, tx_amount))
