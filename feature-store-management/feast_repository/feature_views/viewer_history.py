"""Which movies a viewer has rated so far, as of midnight (UTC)."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import viewer_history_source
from entities import viewer
from feature_contract import load_contract

viewer_history = FeatureView(
    name="viewer_history",
    entities=[viewer],
    # A row is written when a movie is rated, and holds until the next one: a hundred years is "always".
    ttl=timedelta(days=36_525),
    schema=view_schema(load_contract("viewer_history_v1"), "viewer_history"),
    source=viewer_history_source,
    online=True,
    description="Which movies a viewer has rated so far, as of midnight (UTC), most recent last.",
    owner=OWNER,
)
