"""The application: `python -m app.main`, with the root of the services on PYTHONPATH."""

from __future__ import annotations

from app.business_logic.fraud_processing import to_case, to_reply
from app.core.config import FraudApiConfig
from app.core.model_handler import ModelHandler
from app.dependencies import SCOPE
from app.schemas import FraudReply, FraudRequest
from common_service_libs.hot_route import HotRoute
from common_service_libs.predict_batch import add_batch_route
from common_service_libs.runtime import Runtime
from common_service_libs.service_app import ServiceApp, add_hot_route, add_shared_routes, base_app, run

DESCRIPTION = (
    "Decides card transactions: approve, review or decline, with reasons. Send a key in `X-API-Key`."
)


def create_app(settings: FraudApiConfig, runtime: Runtime | None = None) -> ServiceApp:
    """Return the application; nothing is connected before its lifespan begins."""
    runtime = runtime or Runtime(settings)
    app = base_app(runtime, title="Fraud detection", description=DESCRIPTION)
    hot = HotRoute(
        app, runtime, path="/predict", scope=f"{SCOPE}:predict",
        body=FraudRequest, decide=ModelHandler(runtime).predict, reply=to_reply,
    )  # fmt: skip
    add_hot_route(app, hot, request_schema=FraudRequest.model_json_schema(), reply=FraudReply)
    add_batch_route(
        app, runtime, scope=f"{SCOPE}:predict", body=FraudRequest, to_case=to_case, reply=to_reply
    )
    add_shared_routes(app, SCOPE)
    return app


def main() -> None:
    """Serve with the settings of the environment."""
    run(create_app, FraudApiConfig)


if __name__ == "__main__":
    main()
