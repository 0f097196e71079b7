"""What is known of a feature's value: one enumeration for views, single values and columns of values."""

from __future__ import annotations

from enum import StrEnum


class FeatureStatus(StrEnum):
    """From best to worst what the online store said, then what the contract made of it.

    A view is never `defaulted`. A value that an expression computed has the worst status of what it read. A
    value beside `stale` is the old one, served because the contract says `use_stale`.
    """

    PRESENT = "present"
    SNAPSHOT = "snapshot"  # as it was read last: the store does not answer, and it may have changed since
    NULL = "null"  # there, but null; of a view: a field of it is
    MISSING = "missing"  # the entity has no such row
    STALE = "stale"  # older than the view's time to live, as of the request
    INVALID = "invalid"  # bytes that cannot be read; they spoil all values of their view
    UNAVAILABLE = "unavailable"  # the store did not answer in time
    DEFAULTED = "defaulted"  # one of the above, and the contract's default stands in its place


STATUSES = tuple(FeatureStatus)
"""What the codes in a column of statuses mean: its code is the index of a status."""

CODE = {status: code for code, status in enumerate(STATUSES)}
"""The code of each status; a greater code is a worse status."""
