"""The users of the server: a table in MLflow's database, passwords as scrypt hashes.

`init` writes the three users of the platform from secret files; people get users of their own. A password
that was found right is remembered as a keyed hash in memory, so that only the first request of a client pays
for scrypt; a changed or removed user counts within REFRESH_SECONDS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from mlflow_guard.errors import ConfigurationError
from mlflow_guard.routes import Role

REFRESH_SECONDS = 5.0
MIN_PASSWORD = 16
MOST_KNOWN = ("password1234", "password", "admin")  # tried on every user before the server starts
_NAME = re.compile(r"[a-z][a-z0-9._-]{1,62}")
_COST = {"n": 1 << 14, "r": 8, "p": 1}
_MAX_REMEMBERED = 1000
# Passwords that stand in documentation, images and guides; the first was MLflow's own.
WELL_KNOWN = (*MOST_KNOWN, "mlflow", "changeme", "default", "secret", "")
PLATFORM_USERS = {
    "ops": ("MLFLOW_ADMIN_PASSWORD", Role.ADMIN),
    "trainer": ("MLFLOW_TRAINER_PASSWORD", Role.TRAINER),
    "service": ("MLFLOW_SERVICE_PASSWORD", Role.SERVICE),
}

_METADATA = sa.MetaData()
_TABLE = sa.Table(
    "platform_users",
    _METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password", sa.String(255), nullable=False),
)


@dataclass(frozen=True)
class User:
    """Somebody who may call the server."""

    name: str
    role: Role
    password: str  # scrypt hash


def check_password(name: str, password: str) -> None:
    """Raise ConfigurationError for a password that is missing, short, well known or the user's name."""
    if password.lower() in (*WELL_KNOWN, name) or len(set(password)) < 6:
        raise ConfigurationError(f"the password of {name} is missing, a well-known one or too simple")
    if len(password) < MIN_PASSWORD:
        raise ConfigurationError(f"the password of {name} has fewer than {MIN_PASSWORD} characters")


def hashed(password: str) -> str:
    """Return a new salted hash of a password."""
    salt = secrets.token_bytes(16)
    key = hashlib.scrypt(password.encode(), salt=salt, **_COST)
    return "$".join(["scrypt", *(base64.b64encode(part).decode() for part in (salt, key))])


def matches(password: str, stored: str) -> bool:
    """Return whether a password is the one that was hashed."""
    _, salt, key = stored.split("$")
    found = hashlib.scrypt(password.encode(), salt=base64.b64decode(salt), **_COST)
    return hmac.compare_digest(found, base64.b64decode(key))


class UserTable:
    """The table in the database."""

    def __init__(self, database: str) -> None:
        self._engine = sa.create_engine(database, pool_pre_ping=True, pool_size=2)

    def create(self) -> None:
        """Create the table unless it is there."""
        _METADATA.create_all(self._engine)

    def read(self) -> dict[str, User]:
        """Return all users by name; empty where the table was not made yet."""
        if not sa.inspect(self._engine).has_table(_TABLE.name):
            return {}
        return self.read_known()

    def read_known(self) -> dict[str, User]:
        """Return all users by name; raises SQLAlchemyError where the database or the table is away."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_TABLE)).all()
        return {row.name: User(row.name, Role[row.role], row.password) for row in rows}

    def put(self, name: str, password: str, role: Role) -> bool:
        """Create or change a user, and return whether anything had to be written."""
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no user's name: lower-case letters, digits, '.', '_', '-'")
        check_password(name, password)
        known = self.read_known().get(name)
        if known is not None and known.role is role and matches(password, known.password):
            return False
        values = {"role": role.name, "password": hashed(password)}
        with self._engine.begin() as connection:
            if known is None:
                connection.execute(sa.insert(_TABLE).values(name=name, **values))
            else:
                connection.execute(sa.update(_TABLE).where(_TABLE.c.name == name).values(**values))
        return True

    def remove(self, name: str) -> bool:
        """Remove a user, and return whether there was one."""
        with self._engine.begin() as connection:
            return bool(connection.execute(sa.delete(_TABLE).where(_TABLE.c.name == name)).rowcount)


def put_platform_users(table: UserTable, environment: Mapping[str, str]) -> list[str]:
    """Create or change the users of the platform; returns those that changed.

    Raises ConfigurationError where a password is missing, weak or shared by two users.
    """
    passwords = {name: environment.get(variable, "") for name, (variable, _) in PLATFORM_USERS.items()}
    for name, password in passwords.items():
        if not password:
            raise ConfigurationError(f"{PLATFORM_USERS[name][0]} is not set: there is no default password")
        check_password(name, password)
    if len(set(passwords.values())) < len(passwords):
        raise ConfigurationError("two of the platform's users share a password")
    table.create()
    return [
        name for name, password in passwords.items() if table.put(name, password, PLATFORM_USERS[name][1])
    ]


def check_before_start(users: Mapping[str, User]) -> None:
    """Raise ConfigurationError where nobody can administer the server, or where anybody can."""
    if not any(user.role is Role.ADMIN for user in users.values()):
        raise ConfigurationError(
            "there is no user who may administer the server: run `python -m mlflow_guard init`"
        )
    for user in users.values():
        if any(matches(password, user.password) for password in (*MOST_KNOWN, user.name)):
            raise ConfigurationError(f"the password of {user.name} is a well-known one: change it")


class UserDirectory:
    """Who a request is from; safe for threads, blocks for scrypt and the database."""

    def __init__(self, table: UserTable) -> None:
        self._table = table
        self._key = secrets.token_bytes(32)
        self._users: dict[str, User] = {}
        self._read_at = float("-inf")
        self._remembered: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._nobody = hashed(secrets.token_urlsafe(24))

    def refresh(self) -> None:
        """Read the table again if it was read too long ago; raises SQLAlchemyError."""
        with self._lock:
            if time.monotonic() - self._read_at >= REFRESH_SECONDS:
                self._users = self._table.read_known()
                self._read_at = time.monotonic()

    def remembered(self, name: str, password: str) -> User | None:
        """Return the user if this password was found right before; costs a microsecond, asks nobody."""
        if time.monotonic() - self._read_at >= REFRESH_SECONDS:
            return None
        user = self._users.get(name)
        if user is not None and self._remembered.get(self._mark(user, password)) == name:
            return user
        return None

    def verify(self, name: str, password: str) -> User | None:
        """Return the user if name and password are right; raises SQLAlchemyError where the table is away."""
        self.refresh()
        user = self._users.get(name)
        if user is None:
            matches(password, self._nobody)  # takes as long as a wrong password
            return None
        mark = self._mark(user, password)
        if self._remembered.get(mark) == name:
            return user
        if not matches(password, user.password):
            return None
        with self._lock:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[mark] = name
        return user

    def _mark(self, user: User, password: str) -> bytes:
        """Return what stands for a right password: of no use outside this process or after a change."""
        return hmac.digest(self._key, "\0".join((user.name, user.password, password)).encode(), "sha256")
