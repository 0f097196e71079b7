"""Who may pass: a key or a token, then the client's rate limit, then the scope. Denied by default."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from common_service_libs.auth_utils import RELOAD_SECONDS, ApiKeys, Client, RateLimit, require_scope
from common_service_libs.base_api_config import BaseApiConfig
from common_service_libs.errors import Unauthenticated
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.security.rate_limit import Link, RateLimiter

if TYPE_CHECKING:
    from common_service_libs.security.jwt_tokens import TokenVerifier

_BEARER = "bearer "


class Gate:
    """Admits the requests of an application."""

    def __init__(self, settings: BaseApiConfig, keys: ApiKeys, metrics: ServiceMetrics) -> None:
        self._keys = keys
        self._tokens = _verifier(settings)
        self._limiter = RateLimiter(
            settings.service_name,
            RateLimit(settings.rate_limit_per_second, settings.rate_limit_burst),
            on_local=metrics.rate_limit_local.inc,
        )

    def connect(self, link: Link) -> None:
        """Count requests in Redis from now on."""
        self._limiter.connect(link)

    async def admit(self, key: str | None, authorization: str | None, scope: str) -> Client:
        """Return the client behind a request's headers `X-API-Key` and `Authorization`; the key goes first.

        Raises Unauthenticated, RateLimited or Forbidden. Ordinarily nothing is waited for.
        """
        client = self._keys.identify(key) if key or self._tokens is None else self._bearer(authorization)
        if not self._limiter.take(client):
            await self._limiter.wait(client)
        return require_scope(client, scope)

    def _bearer(self, authorization: str | None) -> Client:
        assert self._tokens is not None
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated(
                "a key in the header X-API-Key or a bearer token is needed",
                'ApiKey realm="decision service", Bearer realm="decision service"',
            )
        return self._tokens.verify(authorization[len(_BEARER) :].strip())

    def reload(self) -> None:
        """Read the files of keys again if they have changed."""
        self._keys.reload()
        if self._tokens is not None:
            self._tokens.reload()

    async def watch(self) -> None:
        """Read changed files again, until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.reload()


def _verifier(settings: BaseApiConfig) -> TokenVerifier | None:
    if settings.jwks_file is None:
        return None
    from common_service_libs.security.jwt_tokens import TokenVerifier  # noqa: PLC0415  (only where it is set up)

    assert settings.jwt_issuer is not None
    assert settings.jwt_audience is not None
    return TokenVerifier(settings.jwks_file, settings.jwt_issuer, settings.jwt_audience)
