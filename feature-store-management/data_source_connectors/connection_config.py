"""Named connections to further sources: the sections of the file that `CONNECTIONS_FILE` names.

The platform's own stores need none: they are settings in environment variables (docs/architecture.md). A
secret stands in the file as a reference only, `${NAME}` (environment variable) or `file:/path`; any other
value may be `${NAME}`. Complaints name section and key and never show a value.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from .batch_source import BatchSource
from .database_connector import DatabaseSettings, PostgresSource
from .http_api_connector import HttpApiConnection, HttpApiSource
from .kafka_consumer_utils import KafkaSettings
from .object_store_connector import ObjectStore, ObjectStoreConnection
from .settings import SettingsError, read_settings

AnyConnection: TypeAlias = DatabaseSettings | ObjectStoreConnection | HttpApiConnection | KafkaSettings

# A new kind of source: its settings here, its reader in `open_source`.
KINDS: dict[str, type[AnyConnection]] = {
    "postgresql": DatabaseSettings,
    "s3": ObjectStoreConnection,
    "http": HttpApiConnection,
    "kafka": KafkaSettings,
}
ENVIRONMENT_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
FILE_REFERENCE = re.compile(r"file:(/.+)")


class ConnectionConfigError(SettingsError):
    """The file of connections, or a section of it, can't be used; the message is one line without values."""


class ConnectionsSettings(BaseSettings):
    """Where the file of connections is: environment variable `CONNECTIONS_FILE`."""

    connections_file: Path


def connections_file() -> Path:
    """Return the path that `CONNECTIONS_FILE` states; raises SettingsError without one."""
    return read_settings(ConnectionsSettings).connections_file


def read_connection(name: str, path: Path, environment: Mapping[str, str] = os.environ) -> AnyConnection:
    """Return the settings of a named connection; raises ConnectionConfigError."""
    sections = _read_sections(path)
    if name not in sections:
        known = ", ".join(sections.sections()) or "none"
        raise ConnectionConfigError(f"{path}: no connection [{name}] (there are: {known})")
    where = f"{path} [{name}]"
    stated = dict(sections[name])
    kind = KINDS.get(stated.pop("type", ""))
    if kind is None:
        raise ConnectionConfigError(f"{where} type: say one of {', '.join(KINDS)}")
    values = {
        key: _resolve(value, f"{where} {key}", secret=_is_secret(kind.model_fields.get(key)), env=environment)
        for key, value in stated.items()
    }
    return _validated(kind, values, where)


def open_source(connection: AnyConnection) -> BatchSource:
    """Return the reader of a connection; ConnectionConfigError for Kafka, whose topics have no end."""
    match connection:
        case DatabaseSettings():
            return PostgresSource(connection)
        case ObjectStoreConnection():
            return ObjectStore(connection)
        case HttpApiConnection():
            return HttpApiSource(connection)
        case _:
            raise ConnectionConfigError("a Kafka topic is read by its consumers, not in batches")


def _read_sections(path: Path) -> configparser.ConfigParser:
    # No section gives defaults to the others: each connection says all of itself.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ConnectionConfigError(f"{path}: {error.strerror or 'can not be read'}") from None
    except UnicodeDecodeError:
        raise ConnectionConfigError(f"{path}: not UTF-8 text") from None
    except configparser.DuplicateSectionError as error:
        raise ConnectionConfigError(f"{path}: [{error.section}] stands there twice") from None
    except configparser.DuplicateOptionError as error:
        raise ConnectionConfigError(f"{path} [{error.section}] {error.option}: stands there twice") from None
    except configparser.MissingSectionHeaderError as error:
        raise ConnectionConfigError(
            f"{path} line {error.lineno}: stands before the first [section]"
        ) from None
    except configparser.ParsingError as error:  # its own message quotes the line
        lines = ", ".join(str(number) for number, _ in error.errors)
        raise ConnectionConfigError(f"{path} line {lines}: write `key = value`") from None
    return parser


def _is_secret(field: FieldInfo | None) -> bool:
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def _resolve(value: str, where: str, *, secret: bool, env: Mapping[str, str]) -> str:
    if reference := ENVIRONMENT_REFERENCE.fullmatch(value):
        variable = reference[1]
        if not env.get(variable):
            raise ConnectionConfigError(f"{where}: environment variable {variable} is not set")
        return env[variable]
    if not secret:
        return value
    if not (reference := FILE_REFERENCE.fullmatch(value)):
        raise ConnectionConfigError(
            f"{where}: a secret does not stand in this file; write a reference, ${{NAME}} or file:/path"
        )
    try:
        content = Path(reference[1]).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConnectionConfigError(f"{where}: the secret's file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConnectionConfigError(f"{where}: the secret's file is not UTF-8 text") from None
    if not content:
        raise ConnectionConfigError(f"{where}: the secret's file is empty")
    return content


def _validated(kind: type[AnyConnection], values: Mapping[str, Any], where: str) -> AnyConnection:
    # The platform's own kinds also read environment variables: stated in full, nothing is left to those.
    missing = [
        name for name, field in kind.model_fields.items() if field.is_required() and name not in values
    ]
    if missing:
        raise ConnectionConfigError(f"{where} {', '.join(missing)}: not set")
    defaults = {name: field.get_default() for name, field in kind.model_fields.items() if name not in missing}
    try:
        return kind(**{**defaults, **values})
    except ValidationError as error:
        complaints = []
        for item in error.errors(include_input=False, include_url=False, include_context=False):
            key = ".".join(str(part) for part in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            reason = "is no key of this type" if item["type"] == "extra_forbidden" else message
            complaints.append(f"{key}: {reason}" if key else reason)
        raise ConnectionConfigError(f"{where} {'; '.join(complaints)}") from None
