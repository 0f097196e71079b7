"""What a JSON body may not be before anybody parses it: too deep, or ambiguous. On bytes, in microseconds.

>>> guard_body(b'{"a": 1, "b": [2]}', max_nesting=2)
>>> guard_body(b'{"a": 1, "a": 2}', max_nesting=2)
Traceback (most recent call last):
common_service_libs.errors.DuplicateKey: the key "a" occurs twice in one object
"""

from __future__ import annotations

import json
import re
from typing import Any

from common_service_libs.errors import BodyTooDeep, DuplicateKey

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STRING_AND_COLON = re.compile(rb'("[^"]*")[ \t\r\n]*(:?)')
_BRACKET = re.compile(rb"[\[{]|[\]}]")
SHOWN_CHARACTERS = 64


def guard_body(body: bytes, *, max_nesting: int) -> None:
    """Refuse a body with more than `max_nesting` levels, or with a key twice in one object.

    Raises BodyTooDeep or DuplicateKey. Other faults are left to the parser, which says where they are. A body
    with fewer brackets than levels allowed and without escapes, the usual one, costs a count and one pass.
    """
    if body.count(b"{") + body.count(b"[") > max_nesting:
        _refuse_depth(body, max_nesting)
    if b"\\" not in body:
        names = [name for name, colon in _STRING_AND_COLON.findall(body) if colon]
        if len(names) == len(set(names)):
            return
    _refuse_duplicates(body)


def _refuse_depth(body: bytes, max_nesting: int) -> None:
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > max_nesting:
            raise BodyTooDeep(f"at most {max_nesting} levels of objects and arrays are read")


def _refuse_duplicates(body: bytes) -> None:
    """Parse for the names alone: one name in two objects, or written with escapes, needs the structure."""
    try:
        json.loads(body, object_pairs_hook=_distinct, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            shown = json.dumps(name if len(name) <= SHOWN_CHARACTERS else name[:SHOWN_CHARACTERS] + "…")
            raise DuplicateKey(f"the key {shown} occurs twice in one object")
        seen.add(name)
