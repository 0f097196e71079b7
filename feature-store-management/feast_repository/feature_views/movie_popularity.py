"""How often and how well a movie was rated so far, as of midnight (UTC)."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import movie_popularity_source
from entities import movie
from feature_contract import load_contract

movie_popularity = FeatureView(
    name="movie_popularity",
    entities=[movie],
    # A row is written when something changes, and holds until the next one: a hundred years is "always".
    ttl=timedelta(days=36_525),
    schema=view_schema(load_contract("movie_recommendation_v1"), "movie_popularity"),
    source=movie_popularity_source,
    online=True,
    description="How often and how well a movie was rated so far, as of midnight (UTC).",
    owner=OWNER,
)
