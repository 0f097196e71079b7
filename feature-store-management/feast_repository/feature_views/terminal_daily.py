"""Transactions and known frauds of a terminal over 1, 7, 30 full days, as of midnight (UTC)."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import terminal_daily_source
from entities import terminal
from feature_contract import load_contract

terminal_daily = FeatureView(
    name="terminal_daily",
    entities=[terminal],
    # The row of a day holds from its midnight to the next: an older one lacks a day that is already over.
    ttl=timedelta(days=1),
    schema=view_schema(load_contract("fraud_detection_v1"), "terminal_daily"),
    source=terminal_daily_source,
    online=True,
    description="Transactions and known frauds of a terminal over 1, 7, 30 full days, as of midnight (UTC).",
    owner=OWNER,
)
