"""The application: `python -m app.main`, with the root of the services on PYTHONPATH."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from app.business_logic.fraud_processing import to_reply
from app.core.config import FraudApiConfig
from app.core.model_handler import ModelHandler
from app.dependencies import SCOPE, authorized_transaction
from app.schemas import FraudReply, FraudRequest
from common_service_libs.json_logs import decision_fields
from common_service_libs.runtime import Runtime
from common_service_libs.service_app import add_predict_route, add_shared_routes, base_app, json_response, run

DESCRIPTION = (
    "Decides card transactions: approve, review or decline, with reasons. Send a key in `X-API-Key`."
)


def create_app(settings: FraudApiConfig, runtime: Runtime | None = None) -> FastAPI:
    """Return the application; nothing is connected before its lifespan begins."""
    runtime = runtime or Runtime(settings)
    app = base_app(runtime, title="Fraud detection", description=DESCRIPTION)
    handler = ModelHandler(runtime)

    async def predict(request: Request) -> Response:
        """Decide one card transaction."""
        transaction = await authorized_transaction(request)
        state = request.state
        record = await handler.predict(
            transaction, state.request_id, id_sent=state.request_id_sent, started=state.started
        )
        state.log = decision_fields(record)
        return json_response(to_reply(record, runtime.policy.name))

    add_predict_route(app, predict, request_schema=FraudRequest.model_json_schema(), reply=FraudReply)
    add_shared_routes(app, SCOPE)
    return app


def main() -> None:
    """Serve with the settings of the environment."""
    run(create_app, FraudApiConfig)


if __name__ == "__main__":
    main()
