"""The way to a service: HTTP with a deadline, and every failure as a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import SecretStr

from app.presentation.words import field_label


class Trouble(Exception):
    """What went wrong, as a sentence that a person can act on; holds no key and no address.

    `slug` is the last part of the problem's type, empty if the service did not give one.
    """

    def __init__(self, sentence: str, slug: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.slug = slug


class ServiceClient:
    """One decision service; safe to be used from several threads."""

    def __init__(
        self,
        label: str,
        url: str,
        key: SecretStr,
        *,
        timeout: float = 5.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.label = label
        self._timeout = timeout
        self._http = httpx.Client(
            base_url=url,
            headers={"X-API-Key": key.get_secret_value()},
            timeout=timeout,
            trust_env=False,  # a proxy of the environment would be given the key
            follow_redirects=False,
            transport=transport,
        )

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the document at `path`; raises Trouble."""
        return self._ask("GET", path, params=params)

    def post(self, path: str, body: Any = None, request_id: str | None = None) -> dict[str, Any]:
        """Return the answer to `body`; raises Trouble."""
        headers = {} if request_id is None else {"X-Request-ID": request_id}
        return self._ask("POST", path, json=body, headers=headers)

    def close(self) -> None:
        """Give the connections up."""
        self._http.close()

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TimeoutException:
            late = f"The {self.label} service did not answer within {self._timeout:g} seconds."
            raise Trouble(f"{late} Try again in a moment.") from None
        except httpx.HTTPError:
            raise Trouble(
                f"The {self.label} service is away: nothing answers where it should. Is it running?"
            ) from None
        document = _document(response)
        if response.status_code == 200 and document is not None:
            return document
        if path == "/readyz" and document is not None and "ready" in document:
            return document  # 503 is an answer here
        raise self.trouble(response.status_code, document or {}, response.headers.get("Retry-After"))

    def trouble(self, status: int, problem: Mapping[str, Any], retry_after: str | None = None) -> Trouble:
        """Return what a problem document says, in words for people."""
        slug = str(problem.get("type", "")).rpartition(":")[2]
        detail = str(problem.get("detail") or problem.get("title") or "").strip()
        again = _try_again(retry_after)
        match status:
            case 401 | 403:
                text = f"The {self.label} service does not accept the key of this page"
                text += f" ({detail})." if detail else "."
            case 429:
                text = f"The {self.label} service takes no more requests from this page for now. {again}"
            case 503 if detail:
                text = f"The {self.label} service cannot answer now: {detail}. {again}"
            case 503:
                text = f"The {self.label} service is overloaded or starting. {again}"
            case 422 if errors := problem.get("errors"):
                text = "; ".join(
                    f"{field_label(error['pointer'])}: {_lower_first(error['detail'])}" for error in errors
                )
                text = f"Please correct this. {text}."
            case _ if status < 500 and detail:
                text = f"The {self.label} service says: {detail}."
            case _:
                text = f"The {self.label} service failed (HTTP {status}). Its log says more."
        return Trouble(text.replace("..", "."), slug)


def _document(response: httpx.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _try_again(retry_after: str | None) -> str:
    """Say when to try again.

    >>> _try_again("2"), _try_again(None)
    ('Try again in 2 seconds.', 'Try again in a moment.')
    """
    try:
        seconds = math.ceil(float(retry_after or ""))
    except ValueError:
        return "Try again in a moment."
    return f"Try again in {seconds} second{'' if seconds == 1 else 's'}."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
