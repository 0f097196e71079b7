"""The three services the page talks to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.core.client import ServiceClient, Trouble
from app.core.config import PageConfig

CONCURRENT_CALLS = 4


class Services:
    """One client each, and what is asked of more than one of them."""

    def __init__(self, fraud: ServiceClient, churn: ServiceClient, movies: ServiceClient) -> None:
        self.fraud = fraud
        self.churn = churn
        self.movies = movies
        self._calls = ThreadPoolExecutor(CONCURRENT_CALLS, "page-call")

    @classmethod
    def from_settings(cls, settings: PageConfig) -> Services:
        """Return the clients of the services that the settings name."""
        key, timeout = settings.page_api_key, settings.page_timeout_seconds
        return cls(
            ServiceClient("fraud", settings.fraud_api_url, key, timeout=timeout),
            ServiceClient("churn", settings.churn_api_url, key, timeout=timeout),
            ServiceClient("recommendation", settings.recommendation_api_url, key, timeout=timeout),
        )

    @property
    def named(self) -> dict[str, ServiceClient]:
        """The clients by the name that people read."""
        return {"Fraud": self.fraud, "Churn": self.churn, "Movies": self.movies}

    def ask_all(self, ask: Callable[[ServiceClient], Any]) -> dict[str, Any]:
        """Ask every service at the same time; one that fails gives its Trouble."""

        def asked(client: ServiceClient) -> Any:
            try:
                return ask(client)
            except Trouble as trouble:
                return trouble

        return dict(zip(self.named, self._calls.map(asked, self.named.values()), strict=True))

    def close(self) -> None:
        """Give the connections up."""
        self._calls.shutdown(cancel_futures=True)
        for client in self.named.values():
            client.close()


def thresholds_of(client: ServiceClient) -> dict[str, float]:
    """Return the thresholds of the model in service; none where the service does not tell."""
    try:
        found: dict[str, float] = client.get("/model").get("thresholds", {})
    except Trouble:
        return {}
    return found


def decide_many(client: ServiceClient, cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """Return the decisions on many cases, in their order, None where one could not be decided.

    Raises Trouble, also if none of them could be.
    """
    results = client.post("/predict/batch", {"cases": list(cases)})["results"]
    decided: list[dict[str, Any] | None] = [result["decision"] for result in results]
    if all(decision is None for decision in decided):
        raise client.trouble(results[0]["status"], results[0]["problem"])
    return decided
