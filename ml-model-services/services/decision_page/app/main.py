"""The page: `python -m app.main`, with the root of the services on PYTHONPATH."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from app.core.catalogue import Catalogue
from app.core.config import PageConfig
from app.core.guard import Guard, Password, hosts_of
from app.core.services import Services
from common_service_libs.json_logs import configure_logging

SERVICE_NAME = "decision_page"
SHUTDOWN_SECONDS = 3


def create_app(settings: PageConfig, services: Services | None = None) -> FastAPI:
    """Return the application; importing Gradio takes a second, so it is done here."""
    import gradio as gr  # noqa: PLC0415

    from app.page import HEAD, STYLE, build_page, theme  # noqa: PLC0415

    services = services or Services.from_settings(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        services.close()

    app = FastAPI(title="Decision page", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/livez")
    def livez() -> dict[str, bool]:
        """Say that the process answers."""
        return {"alive": True}

    password = None
    if settings.page_user is not None and settings.page_password_sha256 is not None:
        password = Password(settings.page_user, settings.page_password_sha256.get_secret_value())
    gr.mount_gradio_app(
        app,
        build_page(services, Catalogue.read(settings.movies_file)),
        path="/",
        server_name=settings.page_host,
        server_port=settings.page_port,
        footer_links=[],
        run_history=False,
        auth=password,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        max_file_size=1,
        theme=theme(),
        css_paths=[STYLE],
        head=HEAD,
    )
    app.add_middleware(Guard, hosts=hosts_of(settings))
    return app


def main() -> None:
    """Serve with the settings of the environment; what keeps the page from starting is one line."""
    try:
        settings = PageConfig()
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']).upper()} {item['msg'].lower()}".strip()
            for item in error.errors()
        )
        sys.exit(f"cannot start, settings are missing or wrong: {wrong}")
    configure_logging(SERVICE_NAME, settings.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app = create_app(settings)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"cannot start: {error}")
    # uvicorn raises the signal again once everything is closed; an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    uvicorn.run(
        app,
        host=settings.page_host,
        port=settings.page_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


if __name__ == "__main__":
    main()
