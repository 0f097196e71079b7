"""`init` and `serve`: the database at the version of the code, its users, the server in one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from mlflow_guard import settings as settings_module
from mlflow_guard import sources, users
from mlflow_guard.layer import App, Layer
from mlflow_guard.settings import Settings

logger = logging.getLogger("mlflow_guard")


def migrate(database: str) -> None:
    """Create MLflow's tables or bring them to the version of the code; safe to rerun."""
    from mlflow.store.db import utils  # noqa: PLC0415 - takes seconds

    engine = utils.create_sqlalchemy_engine_with_retry(database)
    if utils._is_empty_database(engine):
        utils._initialize_tables(engine)
    else:
        utils._upgrade_db(engine)


def initialise(environment: Mapping[str, str]) -> list[str]:
    """Migrate the database and put the platform's users; returns the users that changed."""
    database = settings_module.database_uri(environment)
    migrate(database)
    return users.put_platform_users(users.UserTable(database), environment)


class _Closed:
    """What no artifact store is: MLflow offers to clients what its store can do by its class."""


def create_app(settings: Settings, environment: Mapping[str, str]) -> App:
    """Return MLflow's application behind the layer; raises ConfigurationError where that is not safe."""
    table = users.UserTable(settings.database)
    users.check_before_start(table.read())
    # MLflow reads its settings while it is imported, hence the order.
    os.environ.update(settings_module.mlflow_environment(settings, environment))
    from mlflow.server import handlers  # noqa: PLC0415
    from mlflow.server.fastapi_app import app  # noqa: PLC0415

    # Clients must not be told of addresses of the object store: what they send and fetch passes through here.
    for offered in ("MultipartUploadMixin", "MultipartDownloadMixin"):
        setattr(handlers, offered, _Closed)
    handlers.initialize_backend_stores(settings.database, settings.database, "mlflow-artifacts:/")
    return Layer(app, settings, users.UserDirectory(table), sources.check)


def serve(environment: Mapping[str, str]) -> None:
    """Serve until SIGTERM."""
    import uvicorn  # noqa: PLC0415 - `init` needs none

    settings = settings_module.read(environment)
    uvicorn.run(
        create_app(settings, environment),
        host=settings.host,
        port=settings.port,
        ws="none",
        server_header=False,
        proxy_headers=False,
        access_log=False,
        limit_concurrency=256,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
    )
