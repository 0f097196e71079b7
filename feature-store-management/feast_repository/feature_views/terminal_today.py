"""Transactions of a terminal since midnight (UTC), as they became known."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import terminal_today_push
from entities import terminal
from feature_contract import load_contract

terminal_today = FeatureView(
    name="terminal_today",
    entities=[terminal],
    # Totals since midnight are void after midnight at the latest; the row names its day, so a younger one of
    # yesterday counts as zero.
    ttl=timedelta(days=1),
    schema=view_schema(load_contract("fraud_detection_v1"), "terminal_today"),
    source=terminal_today_push,
    online=True,
    description="Transactions of a terminal since midnight (UTC), as they became known.",
    owner=OWNER,
)
