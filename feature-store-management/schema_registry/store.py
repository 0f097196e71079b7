"""What the embedded registry knows: schemas, versions, rules and modes, kept in PostgreSQL.

RegistryError is the one error that clients see; the rest of the module raises `psycopg.Error`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple, get_args

from psycopg import sql

from .compatibility import RULES, Rule, UnsupportedSchemaError, incompatibilities
from .database import Connection

DEFAULT_RULE: Rule = "BACKWARD"
MODES = ("READWRITE", "READONLY")
LARGEST_VERSION = 2**31 - 1


class RegistryError(Exception):
    """A request that can't be met: HTTP status, Confluent's error code, a message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Version(NamedTuple):
    """One version of a subject."""

    subject: str
    version: int
    schema_id: int
    schema: str


@dataclass(frozen=True)
class Parsed:
    """A schema as it was sent, and what identifies it: the hash of its canonical JSON."""

    text: str
    document: Any
    fingerprint: str


def parse(body: Any) -> Parsed:
    """Return the schema of a request; RegistryError 42201 where it is no JSON Schema this registry takes."""
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 (slow to import)

    def refuse(reason: str) -> RegistryError:
        return RegistryError(422, 42201, f"Invalid schema: {reason}")

    if not isinstance(body, dict) or not isinstance(body.get("schema"), str):
        raise refuse("the request names none")
    kind = body.get("schemaType") or "AVRO"
    if kind != "JSON":
        raise refuse(f"this registry takes schemaType JSON, not {kind}")
    if body.get("references"):
        raise refuse("references to other subjects are not taken")
    try:
        document = json.loads(body["schema"])
        Draft202012Validator.check_schema(document)
    except (json.JSONDecodeError, SchemaError) as error:
        raise refuse(" ".join(str(error).split())[:300]) from None
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return Parsed(body["schema"], document, hashlib.sha256(canonical.encode()).hexdigest())


def create_tables(connection: Connection, schema: str) -> None:
    """Create what is missing of the registry's tables."""
    name = sql.Identifier(schema)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (schema,))
        connection.execute(sql.SQL("create schema if not exists {}").format(name))
        connection.execute(sql.SQL("set local search_path to {}").format(name))
        connection.execute(resources.files(__package__).joinpath("schema_registry.sql").read_bytes())


class Registry:
    """The registry over one connection, whose search path begins with the registry's schema."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def subjects(self, prefix: str = "", deleted: bool = False) -> list[str]:
        """Return the names of the subjects."""
        rows = self.connection.execute(
            "select distinct subject from versions where starts_with(subject, %s) and (%s or not deleted)"
            " order by subject",
            (prefix, deleted),
        )
        return [row[0] for row in rows]

    def versions(self, subject: str, deleted: bool = False) -> list[Version]:
        """Return the versions of a subject, oldest first; 40401 where it has none."""
        rows = self.connection.execute(
            "select subject, version, schema_id, schema from versions join schemas on schemas.id = schema_id"
            " where subject = %s and (%s or not deleted) order by version",
            (subject, deleted),
        ).fetchall()
        if not rows:
            raise RegistryError(404, 40401, f"Subject '{subject}' not found.")
        return [Version(*row) for row in rows]

    def version(self, subject: str, wanted: str, deleted: bool = False) -> Version:
        """Return one version, by number or `latest` (also -1); 40401, 40402 or 42202."""
        versions = self.versions(subject, deleted)
        number = version_number(wanted)
        if number is None:
            return versions[-1]
        for version in versions:
            if version.version == number:
                return version
        raise RegistryError(404, 40402, f"Version {number} not found.")

    def register(self, subject: str, parsed: Parsed) -> Version:
        """Add a schema to a subject or find it there; 409 where it is incompatible, 42205 when READONLY."""
        with self.connection.transaction():
            # Ids and versions are given one after the other, whoever asks at the same time.
            self.connection.execute("lock table versions in share row exclusive mode")
            if self.mode(subject) == "READONLY":
                raise RegistryError(422, 42205, f"Subject {subject} is in read-only mode")
            if found := self._find(subject, parsed.fingerprint, deleted=False):
                return found
            reasons = self.reasons_against(subject, parsed)
            if reasons:
                raise RegistryError(
                    409,
                    409,
                    "Schema being registered is incompatible with an earlier schema for subject"
                    f' "{subject}", details: {reasons}',
                )
            row = self.connection.execute(
                "select id, schema from schemas where fingerprint = %s", (parsed.fingerprint,)
            ).fetchone()
            row = (
                row
                or self.connection.execute(
                    "insert into schemas (fingerprint, schema) values (%s, %s) returning id, schema",
                    (parsed.fingerprint, parsed.text),
                ).fetchone()
            )
            assert row is not None
            number = self.connection.execute(
                "insert into versions (subject, version, schema_id)"
                " select %s, coalesce(max(version), 0) + 1, %s from versions where subject = %s"
                " returning version",
                (subject, row[0], subject),
            ).fetchone()
            assert number is not None
            return Version(subject, number[0], row[0], row[1])

    def lookup(self, subject: str, parsed: Parsed, deleted: bool = False) -> Version:
        """Return the version that holds a schema; 40401 or 40403."""
        self.versions(subject, deleted)
        found = self._find(subject, parsed.fingerprint, deleted)
        if found is None:
            raise RegistryError(404, 40403, "Schema not found")
        return found

    def _find(self, subject: str, fingerprint: str, deleted: bool) -> Version | None:
        row = self.connection.execute(
            "select subject, version, schema_id, schema from versions join schemas on schemas.id = schema_id"
            " where subject = %s and fingerprint = %s and (%s or not deleted) order by version desc limit 1",
            (subject, fingerprint, deleted),
        ).fetchone()
        return Version(*row) if row else None

    def reasons_against(self, subject: str, parsed: Parsed, only: Version | None = None) -> list[str]:
        """Return why a schema may not follow the subject's versions (or the one given)."""
        rows = self.connection.execute(
            "select schema from versions join schemas on schemas.id = schema_id"
            " where subject = %s and not deleted order by version",
            (subject,),
        ).fetchall()
        published = [json.loads(row[0]) for row in rows] if only is None else [json.loads(only.schema)]
        try:
            return incompatibilities(self.rule(subject), parsed.document, published)
        except UnsupportedSchemaError as error:
            return [str(error)]

    def schema(self, schema_id: int) -> str:
        """Return the text of a schema as it was first sent; 40403."""
        row = self.connection.execute("select schema from schemas where id = %s", (schema_id,)).fetchone()
        if row is None:
            raise RegistryError(404, 40403, f"Schema {schema_id} not found")
        return str(row[0])

    def uses(self, schema_id: int, deleted: bool = False) -> list[tuple[str, int]]:
        """Return the subjects and versions that hold a schema."""
        self.schema(schema_id)
        rows = self.connection.execute(
            "select subject, version from versions where schema_id = %s and (%s or not deleted)"
            " order by 1, 2",
            (schema_id, deleted),
        )
        return [(row[0], row[1]) for row in rows]

    def delete(self, subject: str, wanted: str | None = None, permanent: bool = False) -> list[int]:
        """Delete a subject or a version, softly first; 40405 or 40407 where `permanent` comes too early."""
        with self.connection.transaction():
            self.connection.execute("lock table versions in share row exclusive mode")
            found = self.versions(subject, deleted=permanent)
            if wanted is not None:
                found = [self.version(subject, wanted, deleted=permanent)]
            numbers = [version.version for version in found]
            if permanent:
                left = self.connection.execute(
                    "select 1 from versions where subject = %s and version = any(%s) and not deleted",
                    (subject, numbers),
                ).fetchone()
                if left:
                    code, what = (40405, "Subject") if wanted is None else (40407, "Version")
                    raise RegistryError(404, code, f"{what} of '{subject}' was not deleted first")
                self.connection.execute(
                    "delete from versions where subject = %s and version = any(%s)", (subject, numbers)
                )
            else:
                self.connection.execute(
                    "update versions set deleted = true where subject = %s and version = any(%s)",
                    (subject, numbers),
                )
        return numbers

    def rule(self, subject: str) -> Rule:
        """Return the rule that counts for a subject: its own, else the registry's."""
        stated = self.setting(subject, "compatibility") or self.setting("", "compatibility")
        for rule in get_args(Rule):
            if rule == stated:
                found: Rule = rule
                return found
        return DEFAULT_RULE

    def mode(self, subject: str) -> str:
        """Return the mode that counts for a subject."""
        return self.setting(subject, "mode") or self.setting("", "mode") or MODES[0]

    def setting(self, subject: str, name: str) -> str | None:
        """Return what is set for just this subject ('' is the registry itself)."""
        row = self.connection.execute(
            sql.SQL("select {} from settings where subject = %s").format(sql.Identifier(name)), (subject,)
        ).fetchone()
        return row[0] if row else None

    def set(self, subject: str, name: str, value: str | None) -> None:
        """Set a rule (42203 where there is none of that name) or a mode (42204); None takes it back."""
        known, code = (RULES, 42203) if name == "compatibility" else (MODES, 42204)
        if value is not None and value not in known:
            raise RegistryError(422, code, f"Invalid {name} {value!r}: one of {', '.join(known)}")
        column = sql.Identifier(name)
        self.connection.execute(
            sql.SQL(
                "insert into settings (subject, {0}) values (%s, %s)"
                " on conflict (subject) do update set {0} = excluded.{0}"
            ).format(column),
            (subject, value),
        )


def version_number(text: str) -> int | None:
    """Return the number that names a version, None for the latest; RegistryError 42202 for another word.

    >>> version_number("3"), version_number("latest")
    (3, None)
    """
    if text in ("latest", "-1"):
        return None
    if text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_VERSION:
        return int(text)
    raise RegistryError(
        422, 42202, f"The specified version '{text}' is not a valid version id: a number from 1 up or latest"
    )
