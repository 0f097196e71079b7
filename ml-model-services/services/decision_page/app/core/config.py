"""Settings of the page; environment variables only, secrets never printed."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/[^\s]*)?$")]
_TITLES = "feature-store-management/data/movies/movielens_latest_small_2016_movies.csv.gz"


def _committed_titles() -> Path | None:
    """Return MovieLens' titles where the page runs from the repository."""
    return next((path for folder in Path(__file__).parents if (path := folder / _TITLES).is_file()), None)


class PageConfig(BaseSettings):
    """Where the services answer, the key the page calls them with, and who may see the page."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, hide_input_in_errors=True
    )

    page_host: str = "127.0.0.1"
    page_port: Port = 7860
    fraud_api_url: Url = "http://127.0.0.1:8001"
    churn_api_url: Url = "http://127.0.0.1:8002"
    recommendation_api_url: Url = "http://127.0.0.1:8003"
    page_api_key: SecretStr = Field(validation_alias=AliasChoices("PAGE_API_KEY", "DEMO_API_KEY"))
    page_timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="one call of a service")
    page_user: str | None = Field(default=None, min_length=1)
    page_password_sha256: SecretStr | None = Field(
        default=None, description="SHA-256 of the page's password, lower-case hex"
    )
    movies_file: Path | None = Field(
        default_factory=_committed_titles, description="MovieLens' titles; without it movies have numbers"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        digest = self.page_password_sha256
        if (self.page_user is None) != (digest is None):
            raise ValueError("PAGE_USER and PAGE_PASSWORD_SHA256 are given together or not at all")
        if digest is not None and not _is_sha256(digest.get_secret_value()):
            raise ValueError("PAGE_PASSWORD_SHA256 is no SHA-256 in lower-case hex")
        if digest is None and not self.on_loopback:
            raise ValueError("PAGE_USER and PAGE_PASSWORD_SHA256 are needed to bind to other than loopback")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the page."""
        if self.page_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.page_host).is_loopback
        except ValueError:
            return False


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
