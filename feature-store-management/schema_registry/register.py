"""Register every contract of the repository: `python -m schema_registry.register`.

Talks to any registry of Confluent's interface at SCHEMA_REGISTRY_URL (which may hold `user:password@`). Each
subject gets its contract's rule first, then its schema. Safe to rerun: what is registered keeps its id.

Exit 0: all registered; 1: refused (the field is named) or no registry there; 2: wrong settings. What is
refused does not keep the other contracts from being registered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from data_source_connectors.settings import SettingsError, read_settings

from .contracts import SCHEMAS_DIR, Contract, ContractError, check_all, read_contracts

SECONDS = 10.0
HEADERS = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


class RegistrationError(Exception):
    """The registry refused a contract or can't be reached; the message says which and why."""


class RegistryAddress(BaseSettings):
    """Where the registry is: environment variable SCHEMA_REGISTRY_URL."""

    model_config = SettingsConfigDict(env_prefix="SCHEMA_REGISTRY_", frozen=True, hide_input_in_errors=True)

    url: str = Field(pattern="^https?://.+")


def register(contract: Contract, client: httpx.Client) -> dict[str, int]:
    """Register a contract under each of its subjects; return the id by subject, or RegistrationError."""
    ids = {}
    for subject in contract.subjects:
        path = quote(subject, safe="")
        _send(client, "PUT", f"/config/{path}", {"compatibility": contract.rule}, contract)
        body = {"schemaType": "JSON", "schema": contract.text}
        ids[subject] = int(_send(client, "POST", f"/subjects/{path}/versions", body, contract)["id"])
    return ids


def _send(
    client: httpx.Client, method: str, path: str, body: dict[str, Any], contract: Contract
) -> dict[str, Any]:
    try:
        reply = client.request(method, path, json=body, headers=HEADERS)
    except httpx.HTTPError as error:
        where = f"{client.base_url.host}:{client.base_url.port}"
        raise RegistrationError(f"no registry at {where}: {error}") from None
    if reply.is_success:
        found: dict[str, Any] = reply.json()
        return found
    try:
        reason = str(reply.json()["message"])
    except (ValueError, KeyError, TypeError):
        reason = f"status {reply.status_code}"
    raise RegistrationError(f"{contract.name}: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m schema_registry.register", description=__doc__)
    parser.add_argument("--folder", type=Path, default=SCHEMAS_DIR, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        address = read_settings(RegistryAddress)
    except SettingsError as error:
        print(f"schema_registry.register: {error}", file=sys.stderr)
        return 2
    try:
        refused = {verdict.name: verdict.reasons for verdict in check_all(options.folder) if verdict.reasons}
        contracts = read_contracts(options.folder)
    except ContractError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    for name, reasons in refused.items():
        print(f"refused: {name}: {'; '.join(reasons)}", file=sys.stderr)
    failed = bool(refused)
    with httpx.Client(base_url=address.url, timeout=SECONDS) as client:
        for contract in contracts:
            if contract.name in refused:
                continue
            try:
                for subject, schema_id in register(contract, client).items():
                    print(f"{subject}: id {schema_id}")
            except RegistrationError as error:
                print(f"refused: {error}", file=sys.stderr)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
