"""The embedded registry's REST interface, as Confluent's clients know it: `python -m schema_registry.server`.

It takes JSON schemas, in modes READWRITE and READONLY, without references between subjects. Servers run
Confluent's registry; clients change by SCHEMA_REGISTRY_URL alone. It asks nobody who they are and listens on
the loopback address unless SCHEMA_REGISTRY_HOST says otherwise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import psycopg
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from data_source_connectors.settings import SettingsError, read_settings

from .database import DatabaseSettings, connect
from .store import Registry, RegistryError, Version, create_tables, parse

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
LARGEST_BODY = 1_000_000


class RegistrySettings(BaseSettings):
    """Where the registry listens and keeps its tables: environment variables `SCHEMA_REGISTRY_*`."""

    model_config = SettingsConfigDict(env_prefix="SCHEMA_REGISTRY_", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8081, ge=1, le=65535)
    schema_name: str = Field(default="schema_registry", pattern="^[a-z][a-z0-9_]{0,62}$")


class Call:
    """One request, as the functions below see it."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.path = {name: unquote(value) for name, value in request.path_params.items()}
        self.query, self._body = request.query_params, body

    def flag(self, name: str) -> bool:
        """Return whether a query parameter says true."""
        return self.query.get(name, "").lower() == "true"

    def body(self) -> Any:
        """Return the JSON of the body; RegistryError 42201 where it is none."""
        try:
            return json.loads(self._body)
        except ValueError:
            raise RegistryError(422, 42201, "the body is no JSON") from None

    def word(self, name: str) -> str:
        """Return a word of the body in capitals; '' where the body has none of that name."""
        body = self.body()
        return str(body.get(name) or "").upper() if isinstance(body, dict) else ""

    @property
    def subject(self) -> str:
        """The subject of the path; '' for the registry itself."""
        return self.path.get("subject", "")

    @property
    def schema_id(self) -> int:
        """The id of the path; 40403 where no schema can have it."""
        text = self.path["id"]
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise RegistryError(404, 40403, f"Schema {text} not found")
        return int(text)


Handler = Callable[[Registry, Call], Any]


def described(version: Version) -> dict[str, Any]:
    """Return a version as clients expect it."""
    return {
        "subject": version.subject,
        "version": version.version,
        "id": version.schema_id,
        "schemaType": "JSON",
        "schema": version.schema,
    }


def _register(registry: Registry, call: Call) -> Any:
    return {"id": registry.register(call.subject, parse(call.body())).schema_id}


def _lookup(registry: Registry, call: Call) -> Any:
    return described(registry.lookup(call.subject, parse(call.body()), call.flag("deleted")))


def _versions(registry: Registry, call: Call) -> Any:
    return [version.version for version in registry.versions(call.subject, call.flag("deleted"))]


def _version(registry: Registry, call: Call) -> Any:
    return described(registry.version(call.subject, call.path["version"], call.flag("deleted")))


def _version_text(registry: Registry, call: Call) -> Any:
    return json.loads(registry.version(call.subject, call.path["version"], call.flag("deleted")).schema)


def _compatible(registry: Registry, call: Call) -> Any:
    parsed = parse(call.body())
    wanted = call.path.get("version")
    only = None if wanted is None else registry.version(call.subject, wanted)
    reasons = registry.reasons_against(call.subject, parsed, only)
    return {"is_compatible": not reasons} | ({"messages": reasons} if call.flag("verbose") else {})


def _setting(registry: Registry, call: Call, name: str, missing: RegistryError) -> str:
    """Return the setting that counts for the subject, or raise `missing` where only its own was asked for."""
    if not call.subject or call.flag("defaultToGlobal"):
        return registry.rule(call.subject) if name == "compatibility" else registry.mode(call.subject)
    own = registry.setting(call.subject, name)
    if own is None:
        raise missing
    return own


def _get_rule(registry: Registry, call: Call) -> Any:
    message = f"Subject '{call.subject}' does not have subject-level compatibility configured"
    missing = RegistryError(404, 40408, message)
    return {"compatibilityLevel": _setting(registry, call, "compatibility", missing)}


def _put_rule(registry: Registry, call: Call) -> Any:
    rule = call.word("compatibility")
    registry.set(call.subject, "compatibility", rule)
    return {"compatibility": rule}


def _delete_rule(registry: Registry, call: Call) -> Any:
    former = registry.rule(call.subject)
    registry.set(call.subject, "compatibility", None)
    return {"compatibility": former, "compatibilityLevel": former}


def _get_mode(registry: Registry, call: Call) -> Any:
    message = f"Subject '{call.subject}' does not have subject-level mode configured"
    return {"mode": _setting(registry, call, "mode", RegistryError(404, 40409, message))}


def _put_mode(registry: Registry, call: Call) -> Any:
    mode = call.word("mode")
    registry.set(call.subject, "mode", mode)
    return {"mode": mode}


def _delete_mode(registry: Registry, call: Call) -> Any:
    former = registry.mode(call.subject)
    registry.set(call.subject, "mode", None)
    return {"mode": former}


ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/", lambda registry, call: {}),
    ("GET", "/subjects", lambda r, c: r.subjects(c.query.get("subjectPrefix", ""), c.flag("deleted"))),
    ("POST", "/subjects/{subject}", _lookup),
    ("DELETE", "/subjects/{subject}", lambda r, c: r.delete(c.subject, permanent=c.flag("permanent"))),
    ("GET", "/subjects/{subject}/versions", _versions),
    ("POST", "/subjects/{subject}/versions", _register),
    ("GET", "/subjects/{subject}/versions/{version}", _version),
    ("GET", "/subjects/{subject}/versions/{version}/schema", _version_text),
    ("GET", "/subjects/{subject}/versions/{version}/referencedby", lambda registry, call: []),
    (
        "DELETE",
        "/subjects/{subject}/versions/{version}",
        lambda r, c: r.delete(c.subject, c.path["version"], c.flag("permanent"))[0],
    ),
    ("GET", "/schemas/types", lambda registry, call: ["JSON"]),
    ("GET", "/schemas/ids/{id}", lambda r, c: {"schema": r.schema(c.schema_id), "schemaType": "JSON"}),
    ("GET", "/schemas/ids/{id}/schema", lambda r, c: json.loads(r.schema(c.schema_id))),
    (
        "GET",
        "/schemas/ids/{id}/subjects",
        lambda r, c: sorted({subject for subject, _ in r.uses(c.schema_id, c.flag("deleted"))}),
    ),
    (
        "GET",
        "/schemas/ids/{id}/versions",
        lambda r, c: [{"subject": s, "version": v} for s, v in r.uses(c.schema_id, c.flag("deleted"))],
    ),
    ("POST", "/compatibility/subjects/{subject}/versions", _compatible),
    ("POST", "/compatibility/subjects/{subject}/versions/{version}", _compatible),
    ("GET", "/config", _get_rule),
    ("PUT", "/config", _put_rule),
    ("GET", "/config/{subject}", _get_rule),
    ("PUT", "/config/{subject}", _put_rule),
    ("DELETE", "/config/{subject}", _delete_rule),
    ("GET", "/mode", _get_mode),
    ("PUT", "/mode", _put_mode),
    ("GET", "/mode/{subject}", _get_mode),
    ("PUT", "/mode/{subject}", _put_mode),
    ("DELETE", "/mode/{subject}", _delete_mode),
]


def create_app(database: DatabaseSettings, schema: str) -> ASGIApp:
    """Return the application; the tables are made by `create_tables` before it serves."""

    def reply(status: int, content: Any) -> Response:
        return Response(json.dumps(content), status_code=status, media_type=MEDIA_TYPE)

    def refused(status: int, code: int, message: str) -> Response:
        return reply(status, {"error_code": code, "message": message})

    def answer(handler: Handler, call: Call) -> Response:
        try:
            with connect(database, schema) as connection:
                return reply(200, handler(Registry(connection), call))
        except RegistryError as error:
            return refused(error.status, error.code, str(error))
        except psycopg.Error as error:
            print(f"schema_registry: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            return refused(500, 50001, "Error in the backend data store")

    def endpoint(handler: Handler) -> Callable[[Request], Any]:
        async def serve(request: Request) -> Response:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    return refused(413, 41301, f"the body is larger than {LARGEST_BODY} bytes")
            return await run_in_threadpool(answer, handler, Call(request, body))

        return serve

    async def http_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return refused(status, status, error.detail if isinstance(error, HTTPException) else "error")

    routes = [Route(path, endpoint(handler), methods=[method]) for method, path, handler in ROUTES]
    routed = Starlette(routes=routes, exception_handlers={HTTPException: http_error})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The path as it was sent: the name of a subject may hold an encoded slash.
        path = {"path": scope["raw_path"].decode("ascii")} if scope["type"] == "http" else {}
        await routed({**scope, **path}, receive, send)

    return app


def main() -> int:
    """Serve until told to stop; exit 2 for wrong settings, 1 where the database can't be reached."""
    import uvicorn  # noqa: PLC0415 (the tests run the application without it)

    try:
        settings, database = read_settings(RegistrySettings), read_settings(DatabaseSettings)
    except SettingsError as error:
        print(f"schema_registry: {error}", file=sys.stderr)
        return 2
    try:
        with connect(database) as connection:
            create_tables(connection, settings.schema_name)
    except psycopg.Error as error:
        print(f"schema_registry: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    uvicorn.run(
        create_app(database, settings.schema_name),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        ws="none",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
