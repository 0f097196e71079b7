"""Requests and replies of the service, strict: no text for numbers, no unknown fields."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common_service_libs.schemas import MAX_ENTITY_ID, ModelReference, PolicyReference, Reply

MAX_MOVIES = 2500
"""As many as a stored history holds."""
MAX_LIST = 100
GENRES = (
    "Action", "Adventure", "Children", "Comedy", "Crime", "Drama", "Fantasy", "Romance", "Sci-Fi", "Thriller"
)  # fmt: skip
"""The main genres: the ones that the model and the feature store know."""

EntityId = Annotated[int, Field(ge=0, le=MAX_ENTITY_ID)]
MovieIds = Annotated[list[EntityId], Field(max_length=MAX_MOVIES)]
MainGenre = Literal[
    "Action", "Adventure", "Children", "Comedy", "Crime", "Drama", "Fantasy", "Romance", "Sci-Fi", "Thriller"
]
GenreName = Annotated[str, Field(min_length=1, max_length=40)]


class ListRequest(BaseModel):
    """For whom a list is, and what it shall look like."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    viewer_id: EntityId | None = Field(default=None, description="whose stored history counts")
    history: MovieIds | None = Field(
        default=None, description="movies the viewer liked, oldest first; they come after the stored ones"
    )
    k: int = Field(default=10, ge=1, le=MAX_LIST, description="how many movies")
    exclude_seen: bool = Field(default=True, description="leave out the movies of the history")
    exclude: MovieIds | None = Field(default=None, description="movies never to be shown")
    genres: Annotated[list[MainGenre], Field(min_length=1, max_length=10)] | None = Field(
        default=None, description="movies of at least one of these main genres"
    )
    max_per_genre: int | None = Field(
        default=None, ge=1, le=MAX_LIST, description="at most so many movies of each main genre"
    )

    @model_validator(mode="after")
    def _for_somebody(self) -> Self:
        if self.viewer_id is None and self.history is None:
            raise ValueError("viewer_id or history is needed; an empty history is a new viewer's")
        return self


class RecommendRequest(ListRequest):
    """A viewer, a history of movies, or both."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"viewer_id": 42, "k": 5},
                {"history": [318, 50, 2571], "genres": ["Sci-Fi"], "max_per_genre": 3},
            ]
        }
    )

    only: MovieIds | None = Field(default=None, description="a choice of movies; no other is shown")


class NewMovie(BaseModel):
    """A movie that nobody has rated, by what is known of it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    movie_id: EntityId
    year: int | None = Field(default=None, ge=1870, le=2200, description="of release; null is unknown")
    genres: Annotated[list[GenreName], Field(max_length=20)] | None = Field(
        default=None, description="names as in MovieLens; null is unknown"
    )


class NewMoviesRequest(ListRequest):
    """A viewer or a history, and the new movies; without them, the catalogue's movies without ratings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "viewer_id": 42,
                    "movies": [
                        {"movie_id": 900001, "year": 2026, "genres": ["Sci-Fi", "Thriller"]},
                        {"movie_id": 900002, "year": 2025, "genres": ["Comedy"]},
                    ],
                }
            ]
        }
    )

    movies: Annotated[list[NewMovie], Field(min_length=1, max_length=500)] | None = None

    @model_validator(mode="after")
    def _each_movie_once(self) -> Self:
        ids = [movie.movie_id for movie in self.movies or ()]
        if len(set(ids)) != len(ids):
            raise ValueError("a movie stands there twice")
        return self


class RecommendedMovie(Reply):
    """One place of a list."""

    movie_id: int
    score: float = Field(description="higher is better; comparable within a list only")


class RecommendationReply(Reply):
    """A list of movies, best first, and by what it was made."""

    request_id: str = Field(examples=["7f0c6c0e-6a0e-4a53-9a52-2f3d5a1a8d10"])
    decision: Literal["recommend", "none"] = Field(description="none: no movie is left")
    movies: list[RecommendedMovie]
    score: float | None = Field(description="that of the first movie")
    viewer_rating_count: int = Field(ge=0, description="movies of the history that the model knows")
    hidden_count: int = Field(ge=0, description="better movies that the policy did not let through")
    left_out: list[int] = Field(description="movies that were sent as new and are in the catalogue")
    reason_codes: list[str] = Field(min_length=1)
    rules_fired: list[str] = Field(description="over all movies looked at; `shadow:` rules hide nothing")
    degraded: bool = Field(description="the stored history could not be read")
    rung: str = Field(description="where the history comes from: online, snapshot, or defaults (nowhere)")
    variant: str = Field(description="the model's part in a rollout: champion or canary")
    feature_status: dict[str, str] = Field(description="of the stored history; empty if nobody was named")
    model: ModelReference
    policy: PolicyReference
    latency_ms: float = Field(ge=0, description="from arrival to decision")


class Near(Reply):
    """A movie of the history that speaks for a recommended one."""

    movie_id: int
    contribution: float = Field(description="what it adds to the score")


class ExplainedMovie(Reply):
    """Why a movie stands in the list: `history`, `content` and `popularity` add up to the score."""

    movie_id: int
    score: float
    genres: list[str] = Field(description="its main genres")
    history: float = Field(description="what viewers with such a history rate as well")
    content: float = Field(description="how its genres and age fit the viewer's taste")
    popularity: float
    because_of: list[Near] = Field(description="the movies of the history that say most for it")


class ListExplanation(Reply):
    """A list replayed from its record."""

    request_id: str
    decision: str
    reason_codes: list[str]
    recorded_score: float
    replayed_score: float | None
    reproduced: bool = Field(description="the same movies in the same order with the same scores")
    model: ModelReference
    unit: str
    movies: list[ExplainedMovie]
