from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from common_service_libs.errors import (
    BodyTooDeep,
    DuplicateKey,
    InvalidRequest,
    MalformedRequest,
    RequestError,
)
from common_service_libs.request_body import parse_body
from common_service_libs.security.body_guard import guard_body


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    amount: float = Field(ge=0, allow_inf_nan=False)
    name: str = ""


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (b'{"amount": 1, "amount": 2}', DuplicateKey, '"amount"'),
        (b'{"amount" : 1, "name": "\\"amount\\":", "amount":2}', DuplicateKey, '"amount"'),
        (b'{"amount": 1, "am\\u006funt": 2}', DuplicateKey, '"amount"'),
        (b'{"amount": 1, "x": [{"y": 1, "y": 2}]}', DuplicateKey, '"y"'),
        (b'{"a":"b",":k":1,":k":2}', DuplicateKey, '":k"'),
        (b"[" * 9 + b"]" * 9, BodyTooDeep, "8 levels"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, BodyTooDeep, "8 levels"),
        (b"[" * 10_000, BodyTooDeep, "8 levels"),
        (b'{"amount": NaN}', InvalidRequest, "1 field"),
        (b'{"amount": -Infinity}', InvalidRequest, "1 field"),
        (b'{"amount": 1e400}', InvalidRequest, "1 field"),
        (b'{"amount": ' + b"9" * 5000 + b"}", MalformedRequest, "out of range"),
        (b'{"amount": 1, "name": "\xff"}', MalformedRequest, "unicode"),
        (b'{"amount": 1, "name": "\\ud800"}', MalformedRequest, "escape"),
        (b'\xef\xbb\xbf{"amount": 1}', MalformedRequest, "expected value"),
        (b'{"amount": 1}\x00', MalformedRequest, "trailing"),
        (b"", MalformedRequest, "EOF"),
    ],
)
def test_a_body_that_is_not_to_be_read_is_a_problem_of_its_own(
    body: bytes, error: type[RequestError], said: str
) -> None:
    with pytest.raises(error, match=said):
        parse_body(body, Body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"amount": 1, "name": "[[[[[[[[[[[[{{{{{{{{"}',
        b'{"amount": 1, "name": "\\"amount\\": NaN"}',
        b'{"name": ", \\", ", "amount": 2}',
        '{"amount": 1, "name": "Infinity, ключ"}'.encode(),
    ],
)
def test_what_only_looks_like_one_is_read(body: bytes) -> None:
    assert parse_body(body, Body).amount > 0


def test_the_same_key_in_two_objects_is_no_duplicate() -> None:
    guard_body(b'{"a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 1}, {"x": "\\n"}]}', max_nesting=8)


def test_a_long_key_is_named_in_short() -> None:
    with pytest.raises(DuplicateKey) as caught:
        guard_body(b'{"%b": 1, "%b": 2}' % ((b"k" * 9000,) * 2), max_nesting=8)
    assert len(caught.value.detail) < 150


NAMES = st.sampled_from(["a", "b", ":", "a\\", '"', "é", " a", "{", ","])
TREES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab":{}[],\\ é', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(NAMES, inner), max_size=4).map(lambda pairs: ("object", pairs))
    ),
    max_leaves=12,
)


def _written(tree: Any, ascii_only: bool) -> str:
    if isinstance(tree, tuple):
        pairs = (f"{json.dumps(k, ensure_ascii=ascii_only)} : {_written(v, ascii_only)}" for k, v in tree[1])
        return "{" + ", ".join(pairs) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(_written(item, ascii_only) for item in tree) + "]"
    return json.dumps(tree, ensure_ascii=ascii_only)


def _expected(tree: Any) -> tuple[int, bool]:
    """Return depth and whether a name occurs twice in an object, seen from the tree itself."""
    if isinstance(tree, tuple):
        below = [_expected(value) for _, value in tree[1]]
        names = [name for name, _ in tree[1]]
        own = len(names) != len(set(names))
    elif isinstance(tree, list):
        below, own = [_expected(item) for item in tree], False
    else:
        return 0, False
    return 1 + max((depth for depth, _ in below), default=0), own or any(twice for _, twice in below)


@settings(max_examples=300, deadline=None)
@given(tree=TREES, ascii_only=st.booleans())
def test_depth_and_duplicates_are_found_exactly(tree: Any, ascii_only: bool) -> None:
    depth, twice = _expected(tree)
    body = _written(tree, ascii_only).encode()
    found: type[Exception] | None = None
    try:
        guard_body(body, max_nesting=3)
    except RequestError as error:
        found = type(error)
    assert found is (BodyTooDeep if depth > 3 else DuplicateKey if twice else None)
