"""From settings to a service that answers: in this process, or in several workers behind one port."""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from common_service_libs import worker_metrics
from common_service_libs.access_log import AccessLog
from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.errors import ServiceError
from common_service_libs.json_logs import configure_logging
from common_service_libs.monitoring_middleware import write_to
from common_service_libs.resilience.server import server_of
from common_service_libs.runtime import Runtime
from common_service_libs.worker_metrics import WorkerMetrics
from common_service_libs.workers import Supervisor, own_socket, require_free

if TYPE_CHECKING:
    from common_service_libs.service_app import ServiceApp

C = TypeVar("C", bound=BaseApiConfig)

YOUNG_OBJECTS = 20_000  # a decision leaves few cycles behind: looking for them less often costs nothing
SWITCH_SECONDS = 0.001  # how long a thread that sends records on may keep the interpreter from a decision


def run(create_app: Callable[[C], ServiceApp], config: type[C]) -> None:
    """Serve with the settings of the environment until SIGTERM or SIGINT, and answer what is under way.

    What keeps the service from starting is one line, and exit code 1.
    """
    try:
        settings = config()
        configure_logging(settings.service_name, settings.log_level)
    except ValidationError as error:
        wrong = ", ".join(f"{str(item['loc'][0]).upper()}: {item['msg'].lower()}" for item in error.errors())
        sys.exit(f"cannot start, settings are missing or wrong: {wrong}")
    if settings.service_workers == 1:
        _serve(create_app, settings)
        return
    folder = settings.spool_dir / settings.service_name / "workers"
    try:
        require_free(settings.service_host, settings.service_port)
        worker_metrics.begin(folder)
    except OSError as error:
        sys.exit(f"cannot start: {error}")
    gc.freeze()  # what is imported stays shared between the workers
    work = partial(_serve, create_app, settings, folder)
    sys.exit(Supervisor(settings.service_workers, work, ended=partial(worker_metrics.retire, folder)).run())


def _serve(create_app: Callable[[C], ServiceApp], settings: C, shared: Path | None = None) -> None:
    """Serve in this process; `shared` is the folder in which workers publish their metrics."""
    try:
        app = create_app(settings)
        sockets = None if shared is None else [own_socket(settings.service_host, settings.service_port)]
    except (OSError, ValueError, ServiceError) as error:
        sys.exit(f"cannot start: {error}")
    runtime: Runtime = app.state.runtime
    if shared is not None:
        app.state.worker_metrics = WorkerMetrics(runtime.metrics.registry, shared)
    # A line says nothing of thread, process or place in the code, so nobody has to look them up.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    sys.setswitchinterval(SWITCH_SECONDS)
    # uvicorn raises the signal again once everything is closed; an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    access_log = AccessLog(settings.service_name, sys.stdout.buffer)
    write_to(access_log)
    server = server_of(
        app,
        runtime.admission,
        runtime.drain,
        drain_seconds=settings.drain_seconds,
        max_connections=settings.max_connections,
        shutdown_seconds=settings.shutdown_seconds,
        direct=app.direct_way(settings.max_body_bytes),
        host=settings.service_host,
        port=settings.service_port,
    )
    try:
        server.run(sockets)
    finally:
        access_log.flush()
