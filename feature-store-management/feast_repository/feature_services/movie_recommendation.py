"""What a ranker of movies reads: the viewer's taste, the movie, and how the two meet."""

from contract_definitions import feature_service
from feature_views.movie_popularity import movie_popularity
from feature_views.movie_profile import movie_profile
from feature_views.recommendation_on_demand import recommendation_on_demand
from feature_views.viewer_taste import viewer_taste

movie_recommendation_v1 = feature_service(
    "movie_recommendation_v1",
    {
        "viewer_taste": viewer_taste,
        "movie_profile": movie_profile,
        "movie_popularity": movie_popularity,
        "recommendation_on_demand": recommendation_on_demand,
    },
    "A viewer and a movie, from what was known strictly before the request.",
)
