"""Settings read from environment variables, with complaints that name the variable and never show a value."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound=BaseSettings)


class SettingsError(Exception):
    """Environment variables are missing or wrong; the message is one line that names them."""


def read_settings(kind: type[Settings]) -> Settings:
    """Return the settings that the environment states, or raise SettingsError."""
    stated: dict[str, Any] = {}
    try:
        return kind(**stated)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        complaints = [
            f"{prefix}{'_'.join(str(part) for part in item['loc'])}".upper()
            + (" is not set" if item["type"] == "missing" else f": {item['msg']}")
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise SettingsError("; ".join(complaints)) from None
