"""The latest profile of a subscriber: contract, products and charges."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import subscriber_profile_source
from entities import subscriber
from feature_contract import load_contract

subscriber_profile = FeatureView(
    name="subscriber_profile",
    entities=[subscriber],
    # A profile stands until the next snapshot replaces it, however late that is: ten years is "always".
    ttl=timedelta(days=3650),
    schema=view_schema(load_contract("customer_churn_v1"), "subscriber_profile"),
    source=subscriber_profile_source,
    online=True,
    description="The latest profile of a subscriber: contract, products and charges.",
    owner=OWNER,
)
