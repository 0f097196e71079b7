"""Every policy that was ever in service, by its hash: on the local disk and in the decision database."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import psycopg

from common_service_libs.errors import PolicyError
from common_service_libs.label_engine.policy import Policy, parse_policy
from common_service_libs.label_engine.watched_file import replace_file

logger = logging.getLogger(__name__)

DDL = """
select pg_advisory_xact_lock(hashtext('decisions.label_policies'));
create schema if not exists decisions;
create table if not exists decisions.label_policies (
    sha256      text primary key,
    name        text not null,
    version     integer not null,
    content     text not null,
    recorded_at timestamptz not null default now()
);
comment on table decisions.label_policies is
    'Every policy that decided something, by the hash of its file; written by the decision services.';
"""
INSERT = """
insert into decisions.label_policies (sha256, name, version, content) values (%s, %s, %s, %s)
on conflict (sha256) do nothing
"""
SELECT = "select sha256, content from decisions.label_policies where sha256 = any(%s)"


class PolicyArchive:
    """Keeps policies; what the database could not take yet is tried again by `flush`."""

    def __init__(self, folder: Path, conninfo: str | None) -> None:
        self._folder = folder
        self._conninfo = conninfo
        self._unwritten: dict[str, Policy] = {}
        self._told = False

    def keep(self, policy: Policy) -> None:
        """Keep a policy on the disk now, and in the database at the next `flush`."""
        path = self._folder / f"{policy.sha256}.yaml"
        try:
            if not path.exists():
                replace_file(path, policy.content)
        except OSError as error:
            logger.error("the policy cannot be kept on the disk", extra={"reason": error.strerror})
        if self._conninfo is not None:
            self._unwritten[policy.sha256] = policy

    def flush(self) -> None:
        """Write what is not in the database yet; a silent database is tried again the next time."""
        if not self._unwritten or self._conninfo is None:
            return
        waiting = dict(self._unwritten)
        try:
            with psycopg.connect(self._conninfo) as connection:
                connection.execute(DDL)
                for policy in waiting.values():
                    row = (policy.sha256, policy.name, policy.version, policy.content.decode())
                    connection.execute(INSERT, row)
        except psycopg.Error as error:
            if not self._told:
                logger.warning(
                    "the policy in service is not in the database yet",
                    extra={"reason": " ".join(str(error).split())},
                )
            self._told = True
            return
        self._told = False
        for sha256 in waiting:
            del self._unwritten[sha256]


def policies_of(
    hashes: Iterable[str], *, conninfo: str | None, folders: Iterable[Path], files: Iterable[Path]
) -> dict[str, Policy]:
    """Return the policies with these hashes, as far as they are found: files, archives, database.

    Raises PolicyError for a policy that this version cannot read.
    """
    wanted, found = set(hashes), dict[str, Policy]()
    candidates = [*files, *(folder / f"{sha256}.yaml" for folder in folders for sha256 in wanted)]
    for path in candidates:
        if path.is_file():
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 in wanted and sha256 not in found:
                found[sha256] = parse_policy(content, path.name)
    missing = wanted - found.keys()
    if missing and conninfo is not None:
        for sha256, text in _recorded(conninfo, missing):
            content = text.encode()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise PolicyError(f"the recorded policy {sha256} does not have its hash")
            found[sha256] = parse_policy(content, f"policy {sha256[:12]}")
    return found


def _recorded(conninfo: str, hashes: Iterable[str]) -> list[tuple[str, str]]:
    with psycopg.connect(conninfo) as connection:
        there = connection.execute("select to_regclass('decisions.label_policies')").fetchone()
        if there is None or there[0] is None:
            return []
        return connection.execute(SELECT, (list(hashes),)).fetchall()
