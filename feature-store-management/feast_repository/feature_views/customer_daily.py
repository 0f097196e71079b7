"""Transactions of a customer over the last 1, 7 and 30 full days, as of midnight (UTC)."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import customer_daily_source
from entities import customer
from feature_contract import load_contract

customer_daily = FeatureView(
    name="customer_daily",
    entities=[customer],
    # The row of a day holds from its midnight to the next: an older one lacks a day that is already over.
    ttl=timedelta(days=1),
    schema=view_schema(load_contract("fraud_detection_v1"), "customer_daily"),
    source=customer_daily_source,
    online=True,
    description="Transactions of a customer over the last 1, 7 and 30 full days, as of midnight (UTC).",
    owner=OWNER,
)
