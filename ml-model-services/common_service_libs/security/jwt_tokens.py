"""Bearer tokens: by one issuer, for one audience, signed by a key in a JWKS file, never a shared secret."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec

from common_service_libs.auth_utils import Client
from common_service_libs.errors import Unauthenticated

logger = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
LEEWAY_SECONDS = 30
MAX_TOKEN_CHARACTERS = 8192
MAX_CACHED = 4096
SMALLEST_RSA_BITS = 2048
CHALLENGE = 'Bearer realm="decision service", error="invalid_token"'


class TokenVerifier:
    """Verifies tokens against the keys of a file, which is read again when it changes.

    A token that was found good is remembered by its hash until it expires or the file changes.
    """

    def __init__(self, path: Path, issuer: str, audience: str) -> None:
        self._path = path
        self._issuer = issuer
        self._audience = audience
        self._changed = path.stat().st_mtime_ns
        self._keys = read_jwks(path)
        self._verified: dict[bytes, tuple[Client, float]] = {}

    def verify(self, token: str) -> Client:
        """Return the client that a token stands for; raises Unauthenticated, which does not repeat it."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise Unauthenticated("the token is not valid", CHALLENGE)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None:
            client, ends = known
            if time.time() < ends:
                return client
            del self._verified[digest]
        client, ends = self._check(token)
        if len(self._verified) >= MAX_CACHED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = client, ends
        return client

    def _check(self, token: str) -> tuple[Client, float]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthenticated("the token names no key that is known here", CHALLENGE)
            claims = jwt.decode(
                token, key, algorithms=ALGORITHMS, audience=self._audience, issuer=self._issuer,
                leeway=LEEWAY_SECONDS, options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise Unauthenticated(_reason(error), CHALLENGE) from None
        return _client(claims), float(claims["exp"]) + LEEWAY_SECONDS

    def reload(self) -> None:
        """Read the file if it has changed; one that cannot be read leaves the keys as they are."""
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._changed:
                return
            self._keys = read_jwks(self._path)
            self._changed = changed
            self._verified.clear()  # a key that was taken out vouches for nothing any more
            logger.info("keys for tokens read again", extra={"keys": len(self._keys)})
        except (OSError, ValueError) as error:
            logger.error("the file of keys for tokens cannot be read", extra={"reason": str(error)})


def read_jwks(path: Path) -> Mapping[str, jwt.PyJWK]:
    """Return the public keys of a JWKS file by `kid`; raises OSError or ValueError."""
    document = msgspec.json.decode(path.read_bytes())
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("it is no JWKS: an object with the list `keys`")
    keys: dict[str, jwt.PyJWK] = {}
    for position, entry in enumerate(document["keys"]):
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        kid = entry.get("kid")
        if not isinstance(kid, str) or not kid or kid in keys:
            raise ValueError(f"key {position} has no `kid` of its own")
        if entry.get("kty") not in KEY_TYPES or "d" in entry:
            raise ValueError(f"key {position} is not a public key of the type RSA, EC or OKP")
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError as error:
            raise ValueError(f"key {position} cannot be used: {type(error).__name__}") from None
        if entry["kty"] == "RSA" and key.key.key_size < SMALLEST_RSA_BITS:
            raise ValueError(f"key {position} has fewer than {SMALLEST_RSA_BITS} bits")
        keys[kid] = key
    return keys


def _client(claims: Mapping[str, Any]) -> Client:
    """Return the client of verified claims; its name is a digest, for a subject may be somebody's address."""
    subject = hashlib.blake2b(f"{claims['iss']}\n{claims['sub']}".encode(), digest_size=8).hexdigest()
    return Client(f"jwt:{subject}", "", _scopes(claims.get("scope")) | _scopes(claims.get("scp")))


def _scopes(claim: object) -> frozenset[str]:
    """Return the scopes of a claim: a text with spaces between them, or a list."""
    if isinstance(claim, str):
        return frozenset(claim.split())
    if isinstance(claim, list):
        return frozenset(scope for scope in claim if isinstance(scope, str))
    return frozenset()


def _reason(error: Exception) -> str:
    """Say what is wrong with a token, in words of our own: the library's may hold parts of it."""
    reasons: dict[type[Exception], str] = {
        jwt.ExpiredSignatureError: "the token has expired",
        jwt.ImmatureSignatureError: "the token is not valid yet",
        jwt.InvalidAudienceError: "the token is meant for another audience",
        jwt.InvalidIssuerError: "the token comes from another issuer",
        jwt.MissingRequiredClaimError: "the token lacks a claim: exp, iss, aud and sub are needed",
        jwt.InvalidAlgorithmError: "the token is not signed with an algorithm that is allowed",
    }
    return reasons.get(type(error), "the token is not valid")
