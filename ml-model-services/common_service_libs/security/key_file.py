"""The commands on a file of API keys: a key is printed once, the file holds its hash and stays mode 0600."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from common_service_libs.auth_utils import Client, RateLimit, read_clients

PREFIX = "dsk_"  # what scanners for leaked secrets can look for
KEY_BYTES = 32
ID_CHARACTERS = 12
_SPAN = re.compile(r"(\d{1,5})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def key_id(client: Client) -> str:
    """Return what names a key without telling it: the first characters of its hash."""
    return client.sha256[:ID_CHARACTERS]


def new_key(
    path: Path,
    name: str,
    scopes: Sequence[str],
    *,
    not_before: datetime | None = None,
    expires_at: datetime | None = None,
    rate_limit: RateLimit | None = None,
) -> tuple[str, Client]:
    """Add a key to the file and return it with its entry; it is written nowhere else."""
    if not name or not scopes:
        raise ValueError("a key needs a name and a scope")
    if expires_at is not None and expires_at <= max(datetime.now(UTC), not_before or datetime.now(UTC)):
        raise ValueError("the key would never be valid")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    client = Client(name, digest, frozenset(scopes), not_before, expires_at, rate_limit)
    with _editing(path) as clients:
        clients.append(client)
    return key, client


def rotate(path: Path, name: str, overlap: timedelta) -> tuple[str, Client]:
    """Give a client a new key like its newest one; its other keys end after `overlap`."""
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    end = datetime.now(UTC) + overlap
    with _editing(path) as clients:
        own = [client for client in clients if client.name == name]
        if not own:
            raise ValueError(f"no client is called {name}")
        for index, client in enumerate(clients):
            if client.name == name and (client.expires_at is None or client.expires_at > end):
                clients[index] = msgspec.structs.replace(client, expires_at=end)
        new = msgspec.structs.replace(own[-1], sha256=digest, not_before=None, expires_at=None)
        clients.append(new)
    return key, new


def revoke(path: Path, *, name: str | None = None, identity: str | None = None) -> list[Client]:
    """Remove the keys of a client, or the one with this id, and return what was removed."""
    with _editing(path) as clients:
        gone = [c for c in clients if (name and c.name == name) or (identity and key_id(c) == identity)]
        if not gone:
            raise ValueError("there is no such key")
        clients[:] = [client for client in clients if client not in gone]
    return gone


@contextmanager
def _editing(path: Path) -> Iterator[list[Client]]:
    """Yield the entries and write them back at once or not at all; one editor at a time."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        clients = list(read_clients(path)) if path.exists() else []
        yield clients
        entries = [{**msgspec.to_builtins(c), "scopes": sorted(c.scopes)} for c in clients]
        text = msgspec.json.format(msgspec.json.encode(entries), indent=2)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def moment(text: str) -> datetime:
    """Return a time given as `30d`, `12h`, `15m` from now, as a date, or as a time with a zone.

    >>> moment("2030-01-31")
    datetime.datetime(2030, 1, 31, 0, 0, tzinfo=datetime.timezone.utc)
    """
    if _SPAN.fullmatch(text):
        return datetime.now(UTC) + span(text)
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        if "T" in text or " " in text:
            raise ValueError("a time needs a zone, such as 2030-01-31T12:00:00Z")
        found = found.replace(tzinfo=UTC)
    return found


def span(text: str) -> timedelta:
    """Return a duration given as `30d`, `12h` or `15m`."""
    matched = _SPAN.fullmatch(text)
    if matched is None:
        raise ValueError("a duration is a number with d, h or m")
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _argument(kind: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{kind}: {error}") from None

    return convert


def _limit(text: str) -> RateLimit:
    per_second, _, burst = text.partition("/")
    return msgspec.convert({"per_second": float(per_second), "burst": int(burst or "1")}, RateLimit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common_service_libs.auth_utils", description="Keys of the decision services."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new-key", help="print a new key once and write its hash")
    new.add_argument("--name", required=True, help="the client; several keys may share it")
    new.add_argument("--scope", required=True, action="append", help="such as fraud:predict; repeatable")
    new.add_argument(
        "--expires", type=_argument("expires", moment), help="90d, a date, or a time with a zone"
    )
    new.add_argument("--not-before", type=_argument("not before", moment), help="as --expires")
    new.add_argument(
        "--rate-limit",
        type=_argument("rate limit", _limit),
        help="requests a second/burst, such as 50/100",
    )
    rotation = commands.add_parser("rotate", help="give a client a new key; its old ones end later")
    rotation.add_argument("--name", required=True)
    rotation.add_argument(
        "--overlap",
        type=_argument("overlap", span),
        default=timedelta(days=7),
        help="how long the old keys stay valid (7d)",
    )
    revocation = commands.add_parser("revoke", help="remove a key, or all keys of a client")
    which = revocation.add_mutually_exclusive_group(required=True)
    which.add_argument("--name")
    which.add_argument("--id", help="as `new-key` and `list` show it")
    listing = commands.add_parser("list", help="show whose keys there are; no key can be shown again")
    for command in (new, rotation, revocation, listing):
        command.add_argument("--file", type=Path, help="the file of keys (API_KEYS_FILE)")
    return parser


def _shown(client: Client) -> str:
    until = "without end" if client.expires_at is None else f"until {client.expires_at.isoformat()}"
    return f"{key_id(client)}  {client.name}  {' '.join(sorted(client.scopes))}  {until}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what went wrong is one line and exit code 1."""
    given = _parser().parse_args(arguments)
    path = given.file or (Path(os.environ["API_KEYS_FILE"]) if "API_KEYS_FILE" in os.environ else None)
    if path is None:
        sys.exit("name the file of keys with --file or API_KEYS_FILE")
    try:
        if given.command in {"new-key", "rotate"}:
            key, client = (
                rotate(path, given.name, given.overlap)
                if given.command == "rotate"
                else new_key(
                    path,
                    given.name,
                    given.scope,
                    not_before=given.not_before,
                    expires_at=given.expires,
                    rate_limit=given.rate_limit,
                )
            )
            print(_shown(client), file=sys.stderr)
            print(key)
        elif given.command == "revoke":
            for client in revoke(path, name=given.name, identity=given.id):
                print("revoked", _shown(client))
        else:
            for client in read_clients(path):
                print(_shown(client))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot {given.command}: {error}")
