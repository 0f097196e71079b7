"""What a viewer has rated so far and how, as of midnight (UTC)."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import viewer_taste_source
from entities import viewer
from feature_contract import load_contract

viewer_taste = FeatureView(
    name="viewer_taste",
    entities=[viewer],
    # A row is written when something changes, and holds until the next one: a hundred years is "always".
    ttl=timedelta(days=36_525),
    schema=view_schema(load_contract("movie_recommendation_v1"), "viewer_taste"),
    source=viewer_taste_source,
    online=True,
    description="What a viewer has rated so far and how, as of midnight (UTC).",
    owner=OWNER,
)
