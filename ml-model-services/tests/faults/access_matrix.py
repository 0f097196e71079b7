"""Every route x every kind of caller x every kind of object, against the table in `access_table.yaml`.

Run: `PYTHONPATH=.:tests python -m faults.access_matrix --scale full`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from common_service_libs.security.key_file import new_key, revoke
from faults.served_app import BODIES, SCOPES, VIEWER, ServedApp, command_line, result

TABLE = Path(__file__).with_name("access_table.yaml")
SERVICES = {"small": ("fraud_detection_api",), "full": tuple(BODIES)}
ISSUER, AUDIENCE = "https://issuer.test", "decision-services"
FOREIGN = "of-another-service"
REVOKED = "revoked key"
RELOADED_WITHIN_SECONDS = 12.0


class Caller(NamedTuple):
    """What a caller sends."""

    headers: Mapping[str, str]
    query: Mapping[str, str]
    secret: str


def _b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Issuer:
    """Signs tokens as an issuer does, and as somebody does who would like to be one."""

    def __init__(self, folder: Path) -> None:
        self._rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._ec = ec.generate_private_key(ec.SECP256R1())
        self._stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        rsa_jwk = jwt.algorithms.RSAAlgorithm.to_jwk(self._rsa.public_key(), as_dict=True)
        ec_jwk = jwt.algorithms.ECAlgorithm.to_jwk(self._ec.public_key(), as_dict=True)
        keys = [
            rsa_jwk | {"kid": "rsa-1", "use": "sig", "alg": "RS256"},
            ec_jwk | {"kid": "ec-1", "alg": "ES256"},
        ]
        self.jwks = folder / "jwks.json"
        self.jwks.write_text(json.dumps({"keys": keys}))

    def token(self, headers: dict[str, Any] | None = None, *, key: Any = None, algorithm: str = "RS256",
              drop: str = "", **claims: Any) -> str:  # fmt: skip
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "tester", "exp": now + 600} | claims
        payload.pop(drop, None)
        return jwt.encode(payload, key or self._rsa, algorithm, {"kid": "rsa-1"} | (headers or {}))

    def forged(self, header: dict[str, Any], secret: bytes | None, **claims: Any) -> str:
        """Return a token put together by hand, as no library would do it."""
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 600} | claims
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(payload).encode())}"
        signature = b"" if secret is None else hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        return f"{signed}.{_b64(signature)}"

    def tokens(self, own: str) -> dict[str, str]:
        """Return a token for every caller of the table that has one."""
        everything = f"{own}:predict {own}:read model:read"
        now = int(time.time())
        public = self._rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        own_jwk = jwt.algorithms.RSAAlgorithm.to_jwk(self._stranger.public_key(), as_dict=True)
        good = self.token(scope=everything)
        return {
            "token without scopes": self.token(),
            "token for predictions": self.token(scope=f"{own}:predict"),
            "token for reading, as a list": self.token(scp=[f"{own}:read"]),
            "token for the model": self.token(scope="model:read"),
            "token of another service": self.token(scope="other:predict other:read"),
            "token with everything": good,
            "token on an elliptic curve": self.token(
                {"kid": "ec-1"}, key=self._ec, algorithm="ES256", scope=f"{own}:predict"
            ),
            "token of another issuer": self.token(scope=everything, iss="https://other.test"),
            "token for another audience": self.token(scope=everything, aud="another"),
            "token without audience": self.token(scope=everything, drop="aud"),
            "token without subject": self.token(scope=everything, drop="sub"),
            "token without end": self.token(scope=everything, drop="exp"),
            "token that has expired": self.token(scope=everything, exp=now - 60),
            "token not valid yet": self.token(scope=everything, nbf=now + 300),
            "token with the algorithm none": self.forged(
                {"alg": "none", "kid": "rsa-1"}, None, scope=everything
            ),
            "token signed with the public key as a secret": self.forged(
                {"alg": "HS256", "kid": "rsa-1"}, public, scope=everything
            ),
            "token signed by a stranger": self.token(key=self._stranger, scope=everything),
            "token of an unknown key": self.token({"kid": "rsa-2"}, key=self._stranger, scope=everything),
            "token without kid": self.forged({"alg": "RS256"}, public, scope=everything),
            "token that brings its own key": self.token(
                {"kid": "own", "jwk": own_jwk}, key=self._stranger, scope=everything
            ),
            "token cut off": good[:-20],
            "token in the key's header": good,
            "token beside an unknown key": good,
        }


def callers(table: Mapping[str, Any], own: str, keys_file: Path, issuer: Issuer) -> dict[str, Caller]:
    """Return what each caller of the table sends; their keys are written into the file."""
    now, made = datetime.now(UTC), {}
    everything = [f"{own}:predict", f"{own}:read", "model:read"]

    def key(scopes: list[str], **limits: Any) -> str:
        return new_key(keys_file, f"client {len(made)}", scopes, **limits)[0]

    keys = {
        name: key([scope.format(own=own) for scope in scopes] or ["nothing"])
        for name, scopes in table["callers"].items()
        if name.startswith("key ") and scopes != "nobody"
    }
    keys |= {
        "key not valid yet": key(everything, not_before=now + timedelta(hours=1)),
        "expired key": key(everything, expires_at=datetime.now(UTC) + timedelta(seconds=0.5)),
        REVOKED: new_key(keys_file, REVOKED, everything)[0],
        "unknown key": "dsk_unknown-to-everybody",
        "empty key": "",
        "hash of a key": hashlib.sha256(keys["key with everything"].encode()).hexdigest(),
    }
    for name, secret in keys.items():
        made[name] = Caller({"X-API-Key": secret}, {}, secret)
    good = keys["key with everything"]
    made["no key"] = Caller({}, {}, "")
    made["key in the wrong header"] = Caller({"Authorization": f"Bearer {good}", "Api-Key": good}, {}, good)
    made["key in the query"] = Caller({}, {"X-API-Key": good, "api_key": good}, good)
    made["password"] = Caller({"Authorization": f"Basic {_b64(good.encode())}"}, {}, good)
    for name, token in issuer.tokens(own).items():
        made[name] = Caller({"Authorization": f"Bearer {token}"}, {}, token)
    token = made["token in the key's header"].secret
    made["token in the key's header"] = Caller({"X-API-Key": token}, {}, token)
    made["token beside an unknown key"] = Caller(
        {"X-API-Key": "dsk_unknown", "Authorization": f"Bearer {token}"}, {}, token
    )
    return made


def missing_entries(table: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """Return the routes of an OpenAPI document that the table does not name."""
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    return sorted(routes - set(table["routes"]))


def expected(table: Mapping[str, Any], route: str, caller: str, kind: str, own: str) -> int:
    """Return the status that the table wants."""
    rule, scopes = table["routes"][route], table["callers"][caller]
    if rule.get("open"):
        return 200
    if scopes == "nobody":
        return 401
    if rule["scope"].format(own=own) not in {scope.format(own=own) for scope in scopes}:
        return 403
    return int(table["objects"][kind]) if rule.get("objects") else 200


def _cells(
    table: Mapping[str, Any], document: Mapping[str, Any], names: list[str]
) -> Iterator[tuple[str, str, str]]:
    known = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    for route in (known | {"GET /openapi.json"}) & set(table["routes"]):
        for caller in names:
            for kind in table["objects"] if table["routes"][route].get("objects") else ["own"]:
                yield route, caller, kind


def _wrong(response: httpx.Response, status: int, caller: Caller) -> str:
    """Say what is wrong with a reply; empty if nothing is."""
    if response.status_code != status:
        return f"{response.status_code} in place of {status}"
    if status in {401, 403}:
        if response.headers["content-type"] != "application/problem+json":
            return "no problem document"
        if status == 401 and "www-authenticate" not in response.headers:
            return "no challenge"
    if len(caller.secret) > 8 and caller.secret in response.text + str(response.headers):
        return "the reply repeats the secret"
    headers = response.headers
    return "" if headers["x-content-type-options"] == "nosniff" and "server" not in headers else "headers"


def matrix(service: str, folder: Path) -> dict[str, Any]:
    """Return how many cells of one service there are, and what is wrong with which."""
    table = yaml.safe_load(TABLE.read_text())
    own, issuer, keys_file = SCOPES[service], Issuer(folder), folder / "client_keys.json"
    who = callers(table, own, keys_file, issuer)
    assert who.keys() == table["callers"].keys(), who.keys() ^ table["callers"].keys()
    settings = {
        "api_keys_file": keys_file, "jwks_file": issuer.jwks, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE,
        "log_level": "DEBUG",
    }  # fmt: skip
    wrong: list[str] = []
    cells = 0
    with ServedApp(service, folder / "app", **settings) as app, httpx.Client(base_url=app.url) as http:
        document = http.get("/openapi.json").json()
        path, body = BODIES[service]
        admin = who["key with everything"].headers
        made = http.post(path, json=body, headers={**admin, "X-Request-ID": "own-decision"})
        assert made.status_code == 200, made.text
        _until_found(http, admin)
        assert http.get("/model", headers=who[REVOKED].headers).status_code == 200
        revoke(keys_file, name=REVOKED)
        ids = {"own": "own-decision", "of another service": FOREIGN, "missing": "nobody-knows"}
        order = sorted(_cells(table, document, list(who)), key=lambda cell: cell[1] == REVOKED)
        revoked_at = time.monotonic()
        for route, caller, kind in order:
            if caller == REVOKED:
                _until_revoked(http, who[REVOKED], revoked_at)
            method, _, template = route.partition(" ")
            content = {"json": _body_of(service, template)} if method == "POST" else {}
            response = http.request(
                method, template.replace("{request_id}", ids[kind]), headers=dict(who[caller].headers),
                params=dict(who[caller].query), **content,
            )  # fmt: skip
            cells += 1
            fault = _wrong(response, expected(table, route, caller, kind, own), who[caller])
            if fault:
                wrong.append(f"{service}: {route}, {caller}, {kind}: {fault}")
        log = app.log_file.read_text()
    leaked = [name for name, caller in who.items() if len(caller.secret) > 8 and caller.secret in log]
    return {
        "cells": cells, "wrong": wrong, "missing": missing_entries(table, document), "leaked": leaked
    }  # fmt: skip


def _body_of(service: str, path: str) -> dict[str, Any]:
    if path == "/predict/batch":
        return {"cases": [BODIES[service][1]]}
    return {"viewer_id": VIEWER} if path == "/recommend_new_movies" else BODIES[service][1]


def _until_found(http: httpx.Client, headers: Mapping[str, str]) -> None:
    """Wait until the store knows the first decision, and with it the planted one of another service."""
    deadline = time.monotonic() + 10
    while not http.get("/decisions", headers=dict(headers)).json()["decisions"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _until_revoked(http: httpx.Client, caller: Caller, since: float) -> None:
    while http.get("/model", headers=dict(caller.headers)).status_code == 200:
        if time.monotonic() > since + RELOADED_WITHIN_SECONDS:
            return  # the matrix itself says that the key is still good
        time.sleep(0.1)


def run(scale: str) -> dict[str, Any]:
    """Return what was measured, service by service."""
    results = []
    for service in SERVICES[scale]:
        with tempfile.TemporaryDirectory() as folder:
            found = matrix(service, Path(folder))
        print("\n".join([*found["wrong"], *found["missing"], *found["leaked"]]))
        right = 100.0 * (1 - len(found["wrong"]) / found["cells"])
        results += [
            result(
                f"{service}: cells as the table says", right, f"% of {found['cells']}", 100, met=right == 100
            ),
            result(
                f"{service}: routes without an entry",
                len(found["missing"]),
                "routes",
                0,
                met=not found["missing"],
            ),
            result(
                f"{service}: secrets in the log", len(found["leaked"]), "secrets", 0, met=not found["leaked"]
            ),
        ]
    return {"results": results}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
