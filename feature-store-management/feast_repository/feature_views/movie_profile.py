"""What a movie is: its year of release and its genres."""

from datetime import timedelta

from feast import FeatureView

from contract_definitions import OWNER, view_schema
from data_sources import movie_profile_source
from entities import movie
from feature_contract import load_contract

movie_profile = FeatureView(
    name="movie_profile",
    entities=[movie],
    # Year and genres of a movie do not age: a hundred years is "always".
    ttl=timedelta(days=36_525),
    schema=view_schema(load_contract("movie_recommendation_v1"), "movie_profile"),
    source=movie_profile_source,
    online=True,
    description="What a movie is: its year of release and its genres.",
    owner=OWNER,
)
