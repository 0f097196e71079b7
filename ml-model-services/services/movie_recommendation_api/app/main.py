"""The application: `python -m app.main`, with the root of the services on PYTHONPATH."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from app.business_logic.recommendation_processing import to_reply
from app.core.config import RecommendationApiConfig
from app.core.model_handler import ModelHandler
from app.dependencies import SCOPE, authorized_request
from app.schemas import ListExplanation, ListRequest, NewMoviesRequest, RecommendationReply, RecommendRequest
from common_service_libs.json_logs import decision_fields
from common_service_libs.recommender_service import RecommenderRuntime
from common_service_libs.runtime import Runtime
from common_service_libs.service_app import (
    ServiceApp,
    add_decision_route,
    add_shared_routes,
    base_app,
    json_response,
    run,
)

DESCRIPTION = "Recommends movies to viewers, known or new, and says why. Send a key in `X-API-Key`."


def create_app(settings: RecommendationApiConfig, runtime: Runtime | None = None) -> ServiceApp:
    """Return the application; nothing is connected before its lifespan begins."""
    runtime = runtime or RecommenderRuntime(settings)
    app = base_app(runtime, title="Movie recommendation", description=DESCRIPTION)
    handler = ModelHandler(runtime)

    async def answer(request: Request, body: ListRequest) -> Response:
        state = request.state
        record = await handler.recommend(
            body, state.request_id, id_sent=state.request_id_sent, started=state.started
        )
        state.log = decision_fields(record)
        return json_response(to_reply(record, runtime.policy.name))

    async def recommend(request: Request) -> Response:
        """Recommend movies to a viewer, or for a history of movies."""
        return await answer(request, await authorized_request(request, RecommendRequest))

    async def recommend_new_movies(request: Request) -> Response:
        """Rank movies without ratings for a viewer: those in the body, or those of the catalogue."""
        return await answer(request, await authorized_request(request, NewMoviesRequest))

    for path, endpoint, body, summary in (
        ("/recommend", recommend, RecommendRequest, "Recommend movies"),
        ("/recommend_new_movies", recommend_new_movies, NewMoviesRequest, "Rank movies without ratings"),
    ):
        add_decision_route(
            app, path, endpoint, request_schema=body.model_json_schema(),
            reply=RecommendationReply, summary=summary,
        )  # fmt: skip
    add_shared_routes(app, SCOPE, ListExplanation)
    return app


def main() -> None:
    """Serve with the settings of the environment."""
    run(create_app, RecommendationApiConfig)


if __name__ == "__main__":
    main()
