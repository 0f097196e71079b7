"""The application: `python -m app.main`, with the root of the services on PYTHONPATH."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from app.business_logic.churn_processing import to_reply
from app.core.config import ChurnApiConfig
from app.core.model_handler import ModelHandler
from app.dependencies import SCOPE, authorized_subscriber
from app.schemas import ChurnReply, ChurnRequest
from common_service_libs.json_logs import decision_fields
from common_service_libs.runtime import Runtime
from common_service_libs.service_app import add_predict_route, add_shared_routes, base_app, json_response, run

DESCRIPTION = "Says how likely a subscriber leaves, and what to do about it. Send a key in `X-API-Key`."


def create_app(settings: ChurnApiConfig, runtime: Runtime | None = None) -> FastAPI:
    """Return the application; nothing is connected before its lifespan begins."""
    runtime = runtime or Runtime(settings)
    app = base_app(runtime, title="Customer churn", description=DESCRIPTION)
    handler = ModelHandler(runtime)

    async def predict(request: Request) -> Response:
        """Decide one subscriber."""
        subscriber = await authorized_subscriber(request)
        state = request.state
        record = await handler.predict(
            subscriber, state.request_id, id_sent=state.request_id_sent, started=state.started
        )
        state.log = decision_fields(record)
        return json_response(to_reply(record, runtime.policy.name))

    add_predict_route(app, predict, request_schema=ChurnRequest.model_json_schema(), reply=ChurnReply)
    add_shared_routes(app, SCOPE)
    return app


def main() -> None:
    """Serve with the settings of the environment."""
    run(create_app, ChurnApiConfig)


if __name__ == "__main__":
    main()
