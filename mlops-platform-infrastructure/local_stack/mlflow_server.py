"""The MLflow server in one process.

`mlflow server` imports everything twice, in itself and in the server it starts: twice the memory and twice
the start-up time. This does the same steps (database schema, then uvicorn) in one. All settings come from
the environment: MLFLOW_BACKEND_STORE_URI, MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_PORT and what MLflow reads.
"""

from __future__ import annotations

import os

import uvicorn


def main() -> None:
    """Create or migrate the database schema, then serve on loopback until SIGTERM."""
    # The server application reads these names while it is imported, hence the order.
    from mlflow.server import constants

    backend = os.environ["MLFLOW_BACKEND_STORE_URI"]
    artifacts = "mlflow-artifacts:/"
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = backend
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = backend
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"

    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(backend, backend, artifacts)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["MLFLOW_PORT"]),
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
