"""How often, or for how much, an entity was seen within the last minutes: exact sliding windows in Redis.

A limit keeps one sorted set for each entity: a member for each request, scored by its time of arrival. Five
plain commands a limit trim it, add the request and read it, in the same round trip as the features. A request
id counts once, also when it comes again. The request at hand is included. Not more than AT_MOST requests are
kept of an entity: a count saturates there, an amount is that of the newest ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from common_service_libs.redis_link import encode_command

AT_MOST = 1000
_EACH = 5  # commands, and replies, a limit
_ADDED, _READ = 1, 3
_TRIM = b"%d" % (-AT_MOST - 1)
_SEPARATOR = b"|"


class VelocityLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A count of an entity's requests within a window, or the sum of one of their values.

    `entity` is a join key of the case, `sum` the name of a request value; without it requests are counted.
    """

    LONGEST_SECONDS: ClassVar[int] = 7 * 86400

    entity: str
    window_seconds: int
    sum: str | None = None


class Velocity:
    """The limits of one policy, ready to be asked for."""

    def __init__(self, limits: Mapping[str, VelocityLimit], project: str) -> None:
        self.names = tuple(limits)
        self.nothing: Mapping[str, float | None] = dict.fromkeys(self.names)
        self._limits = tuple(
            (limit, limit.window_seconds * 1_000_000, _key_head(project, name, limit))
            for name, limit in limits.items()
        )

    def commands(
        self, entity_ids: Mapping[str, int | str], request: Mapping[str, Any], request_id: str, now: float
    ) -> list[bytes]:
        """Return the encoded commands; `now` is the time of arrival in seconds since the epoch.

        Raises KeyError if the case lacks what a limit is about; `require_fit` has seen to that.
        """
        at, id_ = round(now * 1e6), request_id.encode()
        found: list[bytes] = []
        for limit, window, head in self._limits:
            key = head + str(entity_ids[limit.entity]).encode()
            summed = limit.sum
            member = id_ if summed is None else repr(float(request[summed])).encode() + _SEPARATOR + id_
            found += (
                encode_command(b"ZREMRANGEBYSCORE", key, b"-inf", b"%d" % (at - window)),
                encode_command(b"ZADD", key, b"NX", b"%d" % at, member),
                encode_command(b"ZREMRANGEBYRANK", key, b"0", _TRIM),
                encode_command(b"ZCARD", key)
                if summed is None
                else encode_command(b"ZRANGE", key, b"0", b"-1"),
                encode_command(b"PEXPIRE", key, b"%d" % (limit.window_seconds * 1000)),
            )
        return found

    def values(self, replies: Sequence[Any]) -> Mapping[str, float | None]:
        """Return the value of each limit; null for an error of the server, or without replies."""
        if not replies:
            return self.nothing
        return {
            name: _value(replies[at * _EACH + _ADDED], replies[at * _EACH + _READ])
            for at, name in enumerate(self.names)
        }


def _value(added: Any, read: Any) -> float | None:
    if not isinstance(added, int):
        return None  # the request at hand would be missing
    if isinstance(read, int):
        return float(read)
    if not isinstance(read, list):
        return None
    amounts: dict[bytes, float] = {}
    for member in read:
        amount, _, request_id = member.partition(_SEPARATOR)
        amounts.setdefault(request_id, float(amount))
    return sum(amounts.values())


def _key_head(project: str, name: str, limit: VelocityLimit) -> bytes:
    """Return the key up to the entity's value.

    What is counted, and for how long, is part of it: a changed limit begins anew.
    """
    return f"velocity:{project}:{name}:{limit.sum or ''}:{limit.window_seconds}:{limit.entity}:".encode()


NO_VELOCITY = Velocity({}, "")
