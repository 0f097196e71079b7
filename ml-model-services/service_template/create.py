"""Make a new decision service: `python -m service_template.create NAME [--feature-service S]`.

The service has the documented layout, decides on the entities and values of one published feature service,
and passes its own tests at once. What it shall say, its policy, is then changed in its `policies` folder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import yaml

from common_service_libs.errors import ContractError, ServiceError
from common_service_libs.feature_contract import FeatureContract, parse_contract

ROOT = Path(__file__).resolve().parents[1]
FILES = Path(__file__).resolve().parent / "files"
CONTRACTS = ROOT.parent / "feature-store-management" / "contracts" / "feature_services"
SUFFIX = ".template"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*_api")
LOCK_OF = "fraud_detection_api"
"""Whose lock a new service begins with: that of the same model library."""
FIRST_PORT = 8010
SAMPLE_NUMBER = 57.5


class CannotCreate(ServiceError):
    """The service cannot be made; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What is to be made."""

    name: str
    contract: FeatureContract
    model_name: str
    port: int

    @property
    def scope(self) -> str:
        """What begins the scopes of a key: the name without `_api`."""
        return self.name.removesuffix("_api")


def values_of(wanted: Wanted) -> dict[str, str]:
    """Return what the template's placeholders stand for."""
    contract, scope = wanted.contract, wanted.scope
    fields: list[str] = []
    body: dict[str, str | float] = {}
    given: list[str] = []
    for entity in contract.entities:
        fields.append(f"    {entity.join_key}: {'EntityKey' if entity.type == 'string' else 'EntityId'}")
        body[entity.join_key] = "1" if entity.type == "string" else 1
    keys = ", ".join(f'"{entity.join_key}": request.{entity.join_key}' for entity in contract.entities)
    for field in contract.request:
        if field.type == "unix_timestamp":
            given.append(f'"{field.name}": requested_at')
            continue
        fields.append(f"    {field.name}: Number")
        body[field.name] = SAMPLE_NUMBER
        given.append(f'"{field.name}": request.{field.name}')
    return {
        "name": wanted.name,
        "title": scope.replace("_", " ").capitalize(),
        "scope": scope,
        "prefix": "".join(part.capitalize() for part in scope.split("_")),
        "model_name": wanted.model_name,
        "feature_service": contract.name,
        "port": str(wanted.port),
        "fields": "\n".join(fields),
        "types": "\n".join(_types("\n".join(fields))),
        "id_import": "MAX_ENTITY_ID, " if "EntityId" in "\n".join(fields) else "",
        "keys": keys,
        "given": ", ".join(given),
        "body": json.dumps(body),
        "first_key": contract.entities[0].join_key,
        "image": wanted.name.replace("_", "-"),
    }


def _types(fields: str) -> list[str]:
    known = {
        "EntityId": "EntityId = Annotated[int, Field(ge=0, le=MAX_ENTITY_ID)]",
        "EntityKey": 'EntityKey = Annotated[str, Field(pattern=r"^[\\x21-\\x7e]{1,64}$$")]',
        "Number": "Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]",
    }
    return [line.replace("$$", "$") for name, line in known.items() if f": {name}" in fields]


def create(wanted: Wanted, services: Path) -> Path:
    """Write the service into a new folder of `services` and return it; raises CannotCreate."""
    folder = services / wanted.name
    if folder.exists():
        raise CannotCreate(f"{folder} exists")
    values = values_of(wanted)
    for source in sorted(FILES.rglob(f"*{SUFFIX}")):
        name = str(source.relative_to(FILES)).removesuffix(SUFFIX).replace("SCOPE", wanted.scope)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(source.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    lock = (ROOT / "services" / LOCK_OF / "requirements.txt").read_text(encoding="utf-8")
    (folder / "requirements.txt").write_text(lock, encoding="utf-8")
    return folder


def wanted_from(options: argparse.Namespace, services: Path) -> Wanted:
    """Return what the options ask for; raises CannotCreate."""
    if not NAME.fullmatch(options.name):
        raise CannotCreate("a name is lower-case words joined by _ and ends with _api: credit_limit_api")
    path = CONTRACTS / f"{options.feature_service}.yaml"
    try:
        contract = parse_contract(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError:
        known = ", ".join(sorted(found.stem for found in CONTRACTS.glob("*.yaml")))
        raise CannotCreate(f"no feature service {options.feature_service}; there are {known}") from None
    except (ContractError, yaml.YAMLError) as error:
        raise CannotCreate(str(error)) from None
    model = options.model or options.name.removesuffix("_api").replace("_", "-") + "-model"
    return Wanted(options.name, contract, model, options.port or next_port(services))


def next_port(services: Path) -> int:
    """Return the first port that no service has for its default."""
    said = "".join(path.read_text(encoding="utf-8") for path in services.glob("*/app/core/config.py"))
    taken = {int(port) for port in re.findall(r"port: Port = (\d+)", said)}
    return next(port for port in range(FIRST_PORT, 65536) if port not in taken)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the service, format it, commit nothing; returns the exit code."""
    parser = argparse.ArgumentParser(prog="service_template.create", description=__doc__)
    parser.add_argument("name", help="of the folder, such as credit_limit_api")
    parser.add_argument("--feature-service", default="customer_churn_v1", help="what its model reads")
    parser.add_argument("--model", help="in the registry; credit-limit-model for credit_limit_api")
    parser.add_argument("--port", type=int, help=f"the first free one from {FIRST_PORT} if it is left out")
    parser.add_argument("--services", type=Path, default=ROOT / "services", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        wanted = wanted_from(options, options.services)
        folder = create(wanted, options.services)
    except CannotCreate as error:
        print(f"new service: {error}", file=sys.stderr)
        return 1
    tools = [sys.executable, "-m", "ruff"]
    for step in (["check", "--quiet", "--fix-only"], ["format", "--quiet"]):
        subprocess.run([*tools, *step, str(folder)], check=True, cwd=options.services.parent)  # noqa: S603
    print(
        f"{folder}: decides on {wanted.contract.name} by {wanted.model_name}, port {wanted.port}\n"
        f"next: its policy in {folder / 'policies'}; `make check test`; a key with the scopes "
        f"{wanted.scope}:predict and {wanted.scope}:read; "
        f"`python -m common_service_libs.openapi_document --write {wanted.name}` before it is published"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
