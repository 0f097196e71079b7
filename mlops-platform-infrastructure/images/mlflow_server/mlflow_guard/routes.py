"""Who may call what: a table of the routes that are open at all, each with the least role that may call it.

What is not in the table is closed to everybody, and so is whatever a new version of MLflow adds: gateway,
webhooks, assistant, jobs, scorers and prompt optimisation, presigned and multipart addresses of the object
store, workspaces, traces and the telemetry of the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """Each role may do what the ones before it may."""

    SERVICE = 1
    TRAINER = 2
    ADMIN = 3


@dataclass(frozen=True)
class Route:
    """Methods and paths that are open from a role on."""

    methods: frozenset[str]
    pattern: re.Pattern[str]
    role: Role


_API = r"/(?:ajax-)?api/2\.0/mlflow/"
_ID = r"[A-Za-z0-9_-]+"
ARTIFACTS = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts(?:/(?P<path>.*))?", re.DOTALL)
HEALTH = "/health"


def _open(methods: str, pattern: str, role: Role) -> Route:
    return Route(frozenset(methods.split()), re.compile(pattern), role)


TABLE: tuple[Route, ...] = (
    # What a service needs: which version an alias names, and its files.
    _open("GET", _API + r"registered-models/(?:get|search|alias|get-latest-versions)", Role.SERVICE),
    _open("POST", _API + r"registered-models/get-latest-versions", Role.SERVICE),
    _open("GET", _API + r"model-versions/(?:get|search|get-download-uri)", Role.SERVICE),
    _open("GET", _API + rf"logged-models/{_ID}(?:/artifacts/directories)?", Role.SERVICE),
    _open("GET", _API + r"artifacts/list", Role.SERVICE),
    _open(
        "GET", _API + r"runs/get", Role.SERVICE
    ),  # monitoring compares with what the version's run measured
    _open("GET", ARTIFACTS.pattern, Role.SERVICE),
    _open("GET", r"/version|/(?:ajax-)?api/3\.0/mlflow/server-info", Role.SERVICE),
    # What training and promotion need.
    _open("GET", _API + r"experiments/(?:get|get-by-name|search)", Role.TRAINER),
    _open("POST", _API + r"experiments/(?:create|search|update|set-experiment-tag)", Role.TRAINER),
    _open("POST", _API + r"runs/(?:create|update|search|set-tag|delete-tag|outputs)", Role.TRAINER),
    _open("POST", _API + r"runs/log-(?:batch|metric|parameter|inputs|model)", Role.TRAINER),
    _open("GET", _API + r"metrics/get-history(?:-bulk|-bulk-interval)?", Role.TRAINER),
    _open("POST", _API + rf"logged-models(?:/search|/{_ID}/params)?", Role.TRAINER),
    _open("PATCH", _API + rf"logged-models/{_ID}(?:/tags)?", Role.TRAINER),
    _open("POST", _API + r"registered-models/(?:create|set-tag|alias)", Role.TRAINER),
    _open("PATCH", _API + r"(?:registered-models|model-versions)/update", Role.TRAINER),
    _open("DELETE", _API + r"registered-models/(?:delete-tag|alias)", Role.TRAINER),
    _open("POST", _API + r"model-versions/(?:create|set-tag)", Role.TRAINER),
    _open(
        "DELETE", _API + r"model-versions/(?:delete-tag|delete)", Role.TRAINER
    ),  # a failed training tidies up
    _open("PUT", ARTIFACTS.pattern, Role.TRAINER),
    # The page in a browser reads; what it may change is above.
    _open("GET", r"/|/static-files/.+|/build/.+|/get-artifact|/model-versions/get-artifact", Role.TRAINER),
    _open("GET", rf"/ajax-api/2\.0/mlflow/logged-models/{_ID}/artifacts/files", Role.TRAINER),
    _open("POST", r"/graphql", Role.TRAINER),
    _open("POST", r"/ajax-api/2\.0/?mlflow/experiments/search-datasets", Role.TRAINER),
    # What destroys.
    _open("POST", _API + r"(?:experiments|runs)/(?:delete|restore)", Role.ADMIN),
    _open("POST", _API + r"registered-models/rename", Role.ADMIN),
    _open("POST", _API + r"experiments/delete-experiment-tag", Role.ADMIN),
    _open("DELETE", _API + r"registered-models/delete", Role.ADMIN),
    _open("DELETE", _API + rf"logged-models/{_ID}(?:/tags/[^/]+)?", Role.ADMIN),
    _open("DELETE", ARTIFACTS.pattern, Role.ADMIN),
)


def least_role(method: str, path: str) -> Role | None:
    """Return the least role that may call a route, None where it is open to nobody."""
    method = "GET" if method == "HEAD" else method
    found = [route.role for route in TABLE if method in route.methods and route.pattern.fullmatch(path)]
    return min(found) if found else None
