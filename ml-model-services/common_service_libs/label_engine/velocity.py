"""How often, or for how much, an entity was seen within the last minutes: exact sliding windows in Redis.

A limit keeps one sorted set for each entity: a member for each request, scored by its time of arrival. One
script trims it, adds the request and answers, in the same round trip as the features and without anything
between two of its steps. A request id counts once, also when it comes again. The request at hand is
included. Not more than AT_MOST requests are kept of an entity: a count saturates there, an amount is that of
the newest ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from common_service_libs.redis_link import encode_command

AT_MOST = 1000

# KEYS[1] the set; ARGV: time of arrival and window in microseconds, request id, amount or "", AT_MOST.
# A member is the request id, or `<amount>|<request id>`. Answers text: numbers would be cut to integers.
SCRIPT = b"""
local set, now, window, id, amount, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', set, '-inf', string.format('%.0f', now - window))
local answer
if amount == '' then
  redis.call('ZADD', set, 'NX', now, id)
  answer = tostring(math.min(redis.call('ZCARD', set), most))
else
  local amounts, known = {}, false
  for i, member in ipairs(redis.call('ZRANGE', set, 0, -1)) do
    local at = string.find(member, '|', 1, true)
    amounts[i] = tonumber(string.sub(member, 1, at - 1))
    known = known or string.sub(member, at + 1) == id
  end
  if not known then
    redis.call('ZADD', set, now, amount .. '|' .. id)
    table.insert(amounts, tonumber(amount))
  end
  local sum = 0
  for i = math.max(1, #amounts - most + 1), #amounts do sum = sum + amounts[i] end
  answer = string.format('%.17g', sum)
end
redis.call('ZREMRANGEBYRANK', set, 0, -most - 1)
redis.call('PEXPIRE', set, math.ceil(window / 1000))
return answer
"""


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
            (
                limit.entity,
                limit.sum,
                b"%d" % (limit.window_seconds * 1_000_000),
                _key_head(project, name, limit),
            )
            for name, limit in limits.items()
        )

    def commands(
        self, entity_ids: Mapping[str, int | str], request: Mapping[str, Any], request_id: str, now: float
    ) -> list[bytes]:
        """Return one encoded command a limit; `now` is the time of arrival in seconds since the epoch.

        Raises KeyError if the case lacks what a limit is about; `require_fit` has seen to that.
        """
        at, id_, most = b"%d" % round(now * 1e6), request_id.encode(), b"%d" % AT_MOST
        return [
            encode_command(
                b"EVAL", SCRIPT, b"1", head + str(entity_ids[entity]).encode(), at, window, id_,
                b"" if summed is None else repr(float(request[summed])).encode(), most,
            )
            for entity, summed, window, head in self._limits
        ]  # fmt: skip

    def values(self, replies: Sequence[Any]) -> Mapping[str, float | None]:
        """Return the value of each limit; null for an error of the server, or without replies."""
        if not replies:
            return self.nothing
        return {
            name: float(reply) if isinstance(reply, bytes) else None
            for name, reply in zip(self.names, replies, strict=True)
        }


def _key_head(project: str, name: str, limit: VelocityLimit) -> bytes:
    """Return the key up to the entity's value.

    What is counted, and for how long, is part of it: a changed limit begins anew.
    """
    return f"velocity:{project}:{name}:{limit.sum or ''}:{limit.window_seconds}:{limit.entity}:".encode()


NO_VELOCITY = Velocity({}, "")
