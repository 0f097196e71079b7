"""Who gets the canary: a share of the entities, the same ones as long as the rollout lasts."""

from __future__ import annotations

import hashlib

_RANGE = 2.0**64


def position(salt: bytes, entity: int | str) -> float:
    """Return where an entity stands in a rollout, in [0, 1): whoever stands below the share gets the canary.

    Growing the share only adds entities. The type counts: 7 and "7" are two entities. `salt` differs from
    rollout to rollout, so that not the same entities are always the first.

    >>> position(b"a rollout", 596) == position(b"a rollout", 596)
    True
    """
    digest = hashlib.blake2b(f"{type(entity).__name__}:{entity}".encode(), digest_size=8, key=salt).digest()
    return int.from_bytes(digest, "little") / _RANGE


def salt_of(bundle_sha256: str) -> bytes:
    """Return the salt of a canary's rollout: it stays while the bundle stays."""
    return hashlib.sha256(b"rollout:" + bundle_sha256.encode()).digest()


def share_in(text: str) -> float:
    """Return a share written as text; raises ValueError unless it is a number in [0, 1].

    >>> share_in("0.05")
    0.05
    """
    share = float(text)
    if not 0.0 <= share <= 1.0:  # NaN is not, either
        raise ValueError("a share is a number from 0 to 1")
    return share
