"""What is computed at request time: how old the movie is, and how its genres meet the viewer's taste."""

from contract_definitions import on_demand_view
from data_sources import recommendation_request
from feature_contract import load_contract
from feature_views.movie_profile import movie_profile
from feature_views.viewer_taste import viewer_taste

recommendation_on_demand = on_demand_view(
    load_contract("movie_recommendation_v1"),
    [viewer_taste, movie_profile],
    recommendation_request,
    "How old the movie is, and how its genres meet the viewer's taste.",
)
