"""Names and numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from common_service_libs.label_engine.reason_codes import reason_codes

DASH = "–"
NBSP = "\u00a0"
SHADOW = "shadow:"

DECISION_WORDS = {
    "approve": "Approve",
    "review": "Send to an analyst",
    "decline": "Decline",
    "none": "Leave alone",
    "contact": "Call the subscriber",
    "offer": "Make an offer",
    "recommend": "Recommend",
}
SEVERITY = {"approve": 0, "none": 0, "recommend": 0, "review": 1, "contact": 1, "decline": 2, "offer": 2}

_VIEWS = {
    "customer_daily": "customer, full days",
    "customer_today": "customer, today",
    "terminal_daily": "terminal, full days",
    "terminal_today": "terminal, today",
    "subscriber_profile": "subscriber's profile",
    "viewer_taste": "viewer's taste",
    "viewer_history": "viewer's history",
    "movie_profile": "movie's profile",
    "movie_popularity": "movie's popularity",
}
_STATUS = {
    "present": "up to date",
    "null": "no value",
    "missing": "nothing known",
    "stale": "out of date",
    "invalid": "unreadable",
    "unavailable": "store silent",
}
RUNGS = {
    "online": "online store",
    "snapshot": "local snapshot",
    "defaults": "default values",
    "rules_only": "rules alone",
}
_FEATURES = {
    "tx_amount": "Amount",
    "tx_is_weekend": "Weekend",
    "tx_is_night": "Night",
    "subscriber_is_female": "Female",
    "subscriber_is_senior": "Senior",
    "subscriber_monthly_charges_usd": "Monthly charges (USD)",
    "subscriber_total_charges_usd": "Total charges (USD)",
    "subscriber_tenure_months": "Months with us",
    "subscriber_streaming_tv": "Streaming TV",
}
_WINDOWED = {
    "customer_tx_count": "Customer's transactions",
    "customer_tx_amount_mean": "Customer's mean amount",
    "terminal_tx_count": "Terminal's transactions",
    "terminal_labelled_tx_count": "Terminal's checked transactions",
    "terminal_fraud_risk": "Terminal's share of frauds",
}
_FIELDS = {
    "customer_id": "Customer",
    "terminal_id": "Terminal",
    "tx_amount": "Amount",
    "tx_datetime": "Time",
    "transaction_id": "Transaction id",
    "subscriber_id": "Subscriber",
    "viewer_id": "Viewer",
    "movie_id": "Movie",
    "history": "Liked movies",
    "k": "How many",
    "movies": "New movies",
    "limit": "Number",
    "before": "Earlier than",
    "query": "Title",
}
_WINDOW = re.compile(r"(.+)_(\d+)d")


def decision_word(decision: str) -> str:
    """Return what a decision means for whoever acts on it."""
    return DECISION_WORDS.get(decision, sentence_case(decision))


def reason_text(code: str) -> str:
    """Return the sentence behind a reason code, from the one table of them.

    >>> reason_text("AMOUNT_OVER_LIMIT")
    'The amount is beyond what occurs in ordinary business.'
    >>> reason_text("A_CODE_OF_TOMORROW")
    'A code of tomorrow'
    """
    known = reason_codes().get(code)
    return known.meaning if known is not None else sentence_case(code.lower())


def rule_text(rule: str) -> str:
    """Return a rule's id as words, and say when it was only watched.

    >>> rule_text("shadow:amount-far-above-habit")
    'Amount far above habit (on trial, decides nothing)'
    """
    if rule.startswith(SHADOW):
        return f"{sentence_case(rule.removeprefix(SHADOW))} (on trial, decides nothing)"
    return sentence_case(rule)


def feature_label(name: str) -> str:
    """Return a feature's name as words.

    >>> feature_label("terminal_fraud_risk_7d"), feature_label("subscriber_payment_method")
    ("Terminal's share of frauds, 7 days", 'Payment method')
    """
    if name in _FEATURES:
        return _FEATURES[name]
    if (found := _WINDOW.fullmatch(name)) and found[1] in _WINDOWED:
        return f"{_WINDOWED[found[1]]}, {found[2]} day{'' if found[2] == '1' else 's'}"
    return sentence_case(re.sub("^(subscriber|viewer|movie)_(has_)?", "", name))


def feature_value(name: str, value: float | str | None) -> str:
    """Return a feature's value as people write it.

    >>> feature_value("terminal_fraud_risk_7d", 0.125), feature_value("tx_is_night", 1.0)
    ('12.5\\xa0%', 'yes')
    """
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if "_is_" in name or "_has_" in name:
        return "yes" if value else "no"
    if "fraud_risk" in name:
        return percent(value)
    if "amount" in name or "charges" in name:
        return money(value)
    return number(value)


def field_label(pointer: str) -> str:
    """Return the field that a JSON pointer of a problem names.

    >>> field_label("/tx_amount"), field_label("/cases/3/customer_id"), field_label("")
    ('Amount', 'Customer', 'The request')
    """
    parts = [part for part in pointer.split("/") if part and not part.isdigit()]
    return _FIELDS.get(parts[-1], sentence_case(parts[-1])) if parts else "The request"


def view_label(view: str) -> str:
    """Return a feature view as words."""
    return _VIEWS.get(view, view.replace("_", " "))


def status_word(view: str, status: str) -> str:
    """Return what a view's status means; a running total of another day is no fault, but a quiet day.

    >>> status_word("customer_today", "stale"), status_word("customer_daily", "stale")
    ('nothing yet', 'out of date')
    """
    if view.endswith("_today") and status in ("stale", "missing"):
        return "nothing yet"
    return _STATUS.get(status, status)


def sentence_case(text: str) -> str:
    """Return an identifier as words that begin with a capital."""
    words = re.sub(r"[-_]+", " ", text).strip()
    return words[:1].upper() + words[1:]


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as per cent, a dash for none.

    >>> percent(0.08135), percent(0.0), percent(None)
    ('8.1\\xa0%', '0.0\\xa0%', '–')
    """
    return DASH if share is None else f"{100 * share:.{digits}f}{NBSP}%"


def money(amount: float) -> str:
    """Return an amount with its cents.

    >>> money(1234.5)
    '1,234.50'
    """
    return f"{amount:,.2f}"


def number(value: float) -> str:
    """Return a number without needless digits.

    >>> number(12.0), number(1754155), number(0.3333333)
    ('12', '1,754,155', '0.333')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1 else f"{value:,.2f}"


def milliseconds(value: float) -> str:
    """Return a latency.

    >>> milliseconds(4.336), milliseconds(0.42)
    ('4.3\\xa0ms', '0.42\\xa0ms')
    """
    return f"{value:.2f}{NBSP}ms" if value < 1 else f"{value:.1f}{NBSP}ms"


def clock(hour: float) -> str:
    """Return a whole hour as a time of day.

    >>> clock(7)
    '07:00'
    """
    return f"{hour:02.0f}:00"


def moment(text: str | None) -> str:
    """Return a time of RFC 3339 to the second, in UTC.

    >>> moment("2026-11-21T23:46:36.369918Z")
    '2026-11-21 23:46:36 UTC'
    """
    return DASH if not text else f"{instant(text):%Y-%m-%d %H:%M:%S} UTC"


def day(text: str | None) -> str:
    """Return the day of a time of RFC 3339, in UTC."""
    return DASH if not text else f"{instant(text):%Y-%m-%d}"


def instant(text: str) -> datetime:
    """Return a time of RFC 3339 as a datetime in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def thresholds_in_order(thresholds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return thresholds from the lowest to the highest."""
    return sorted(thresholds.items(), key=lambda item: item[1])


def band_words(thresholds: Mapping[str, float]) -> str:
    """Say from which score on what is done.

    >>> band_words({"decline": 0.494, "review": 0.066})
    'review from 6.6\\xa0%, decline from 49.4\\xa0%'
    """
    return ", ".join(f"{name} from {percent(limit)}" for name, limit in thresholds_in_order(thresholds))


def listed(parts: Sequence[str]) -> str:
    """Return parts as they are listed in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
