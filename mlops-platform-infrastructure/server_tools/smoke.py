"""`python -m server_tools smoke`: is a server's own ready, and does each API decide?

Asks what a user asks. A decision that comes from rules alone, without its features, is no healthy one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server_tools import places, server_settings

TIMEOUT_SECONDS = 5.0
Reply = tuple[int, Any]
Ask = Callable[[str, Mapping[str, Any] | None, Mapping[str, str]], Reply]


@dataclass(frozen=True)
class Probe:
    """A question to a service, and what is wrong with an answer (nothing: an empty list)."""

    service: str
    server: str
    port: int
    path: str
    wrong: Callable[[int, Any], list[str]]
    body: Mapping[str, Any] | None = None
    needs_key: bool = False
    host: str = ""  # what the service expects to be called, if it looks


def answers(status: int, _document: Any) -> list[str]:
    """It is enough that the service answers 200."""
    return [] if status == 200 else [f"status {status}"]


def ready(status: int, document: Any) -> list[str]:
    """`/readyz`: ready, every check true, a model loaded."""
    if not isinstance(document, dict):
        return [f"status {status}, no JSON object"]
    wrong = [
        f"check {name} fails" for name, good in (document.get("checks") or {}).items() if good is not True
    ]
    if status != 200 or document.get("ready") is not True:
        wrong.append(f"status {status}, ready is {document.get('ready')!r}")
    if not (document.get("model") or {}).get("bundle_sha256"):
        wrong.append("no model is loaded")
    return wrong


def decided(decisions: set[str], *, probability: bool = True) -> Callable[[int, Any], list[str]]:
    """Return what checks a decision: one of these, a score, the online store's features, model and policy."""

    def wrong(status: int, document: Any) -> list[str]:
        if status != 200 or not isinstance(document, dict):
            detail = document.get("title") if isinstance(document, dict) else document
            return [f"status {status}: {detail}"]
        found = []
        if document.get("decision") not in decisions:
            found.append(f"decision {document.get('decision')!r} is none of {', '.join(sorted(decisions))}")
        score = document.get("score")
        if not isinstance(score, int | float) or (probability and not 0 <= score <= 1):
            found.append(f"score {score!r}")
        if document.get("rung") != "online":
            found.append(f"decided from {document.get('rung')!r}, not from the online store")
        if not document.get("request_id"):
            found.append("no request id")
        for part, name in (("model", "bundle_sha256"), ("policy", "sha256")):
            if not (document.get(part) or {}).get(name):
                found.append(f"no {part} is named")
        return found

    return wrong


FRAUD = {"customer_id": 1, "terminal_id": 2, "tx_amount": 25.0}
PROBES = (
    Probe("schema-registry", "server1", 8081, "/subjects", answers),
    Probe("stream-processor", "server1", 9108, "/metrics", answers),
    Probe("mlflow", "server2", 5000, "/health", answers, host="server2:5000"),
    Probe("airflow", "server2", 8080, "/api/v2/monitor/health", answers),
    Probe("fraud-detection-api", "server3", 8001, "/readyz", ready),
    Probe(
        "fraud-detection-api",
        "server3",
        8001,
        "/predict",
        decided({"approve", "review", "decline"}),
        body=FRAUD,
        needs_key=True,
    ),
    Probe("customer-churn-api", "server3", 8002, "/readyz", ready),
    Probe(
        "customer-churn-api",
        "server3",
        8002,
        "/predict",
        decided({"none", "contact", "offer"}),
        body={"subscriber_id": 1},
        needs_key=True,
    ),
    Probe("movie-recommendation-api", "server3", 8003, "/readyz", ready),
    Probe(
        "movie-recommendation-api",
        "server3",
        8003,
        "/recommend",
        decided({"recommend", "none"}, probability=False),
        body={"viewer_id": 1, "k": 3},
        needs_key=True,
    ),
    Probe("decision-page", "server3", 7860, "/livez", answers),
    Probe("prometheus", "server3", 9090, "/-/ready", answers),
    Probe("alertmanager", "server3", 9093, "/-/ready", answers),
)
# Where a service is published, if not on its server's private address.
ADDRESSES = {
    "fraud-detection-api": "API_BIND",
    "customer-churn-api": "API_BIND",
    "movie-recommendation-api": "API_BIND",
    "airflow": "UI_BIND",
    "decision-page": "UI_BIND",
    "prometheus": "UI_BIND",
    "alertmanager": "UI_BIND",
}


def ask(address: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Reply:
    """Return status and document (None where the body is no JSON); raises OSError where nobody answers."""
    request = urllib.request.Request(  # noqa: S310 - addresses are ours, http only
        address, None if body is None else json.dumps(body).encode(), dict(headers)
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:  # noqa: S310
            status, text = reply.status, reply.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, None


def failures(probe: Probe, address: str, key: str | None, asking: Ask = ask) -> list[str]:
    """Return what is wrong with one service's answer."""
    headers = {"Content-Type": "application/json"}
    if probe.needs_key and key:
        headers["X-API-Key"] = key
    if probe.host:
        headers["Host"] = probe.host
    try:
        status, document = asking(address + probe.path, probe.body, headers)
    except OSError as error:
        return [f"no answer: {error}"]
    return probe.wrong(status, document)


def base_address(probe: Probe, known: Mapping[str, str]) -> str:
    """Return where a service of this set answers, as seen from its own server."""
    setting = ADDRESSES.get(probe.service)
    host = known.get(setting, "127.0.0.1") if setting else known[f"{probe.server.upper()}_HOST"]
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{probe.port}"  # noqa: S104 - compared, not bound


def main(arguments: list[str]) -> int:
    """Run the command line: exit 1 where a service of the server fails."""
    parser = argparse.ArgumentParser(prog="server_tools smoke", description=__doc__)
    parser.add_argument("--server", required=True, choices=("server1", "server2", "server3"))
    parser.add_argument("--only", default="", help="a,b: these services")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for a service to become well")
    parser.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="SERVICE=URL",
        help="where a service answers, if elsewhere",
    )
    given = parser.parse_args(arguments[1:])
    only = set(given.only.replace(",", " ").split())
    elsewhere = dict(pair.split("=", 1) for pair in given.at)
    probes = [p for p in PROBES if p.server == given.server and (not only or p.service in only)]
    if not probes:
        print(f"server_tools smoke: {given.server} has no service {given.only}", file=sys.stderr)
        return 2
    key_file = places.secrets_dir() / "demo_api_key"
    key = key_file.read_text(encoding="utf-8").strip() if key_file.exists() else None
    known = (
        server_settings.read(places.settings_file())
        if len(elsewhere) < len({p.service for p in probes})
        else {}
    )
    deadline = time.monotonic() + given.wait
    failed = 0
    for probe in probes:
        address = elsewhere.get(probe.service) or base_address(probe, known)
        wrong = failures(probe, address, key)
        while wrong and time.monotonic() < deadline:
            time.sleep(1)
            wrong = failures(probe, address, key)
        print(f"{'FAILS' if wrong else 'ok':<6}{probe.service} {probe.path} {'; '.join(wrong)}".rstrip())
        failed += bool(wrong)
    return 1 if failed else 0
