"""What the contract makes of values that are missing, stale, null or unreadable: one case and many alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_testkit import NOON, PROJECT, Hash, contract, known_store, put_view, replies_to

from common_service_libs.errors import OnlineStoreError
from common_service_libs.feast_layout import entity_key, field_name, timestamp_field
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.feature_status import STATUSES
from common_service_libs.feature_table import FeatureTable, TableBuilder, joined
from common_service_libs.feature_vector import FeatureVector, VectorBuilder
from common_service_libs.online_store import FeatureReader

TTL = 3600


def shop(key_type: str = "string", **policy: Any) -> FeatureContract:
    """A contract with text keys, one field of each type, and `policy` for all of them."""
    fields = [("rate", "float64"), ("price", "float64"), ("visits", "int64"), ("seen", "unix_timestamp"),
              ("town", "string")]  # fmt: skip
    defaults: dict[str, Any] = {"string": "nowhere", "int64": -1, "unix_timestamp": 0, "float64": 0.5}
    wanted = "default" in policy.values()
    return parse_contract(
        {
            "name": "shop_v1",
            "version": 1,
            "entities": [{"name": "shop", "join_key": "shop_id", "type": key_type}],
            "request": [{"name": "amount", "type": "float64"}],
            "views": [
                {"name": "shop_daily", "entity": "shop", "ttl_seconds": TTL,
                 "fields": [{"name": name, "type": kind} for name, kind in fields]},
            ],
            "on_demand": {
                "view": "computed",
                "features": [
                    {"name": "share", "type": "float64", "expression": "coalesce(visits, 0) + amount"},
                    {"name": "ratio", "type": "float64", "expression": "price / visits"},
                ],
            },
            "features": [
                {"name": name, "source": "shop_daily", "type": kind, **policy}
                | ({"default": defaults[kind]} if wanted else {})
                for name, kind in fields
            ]
            + [{"name": name, "source": "computed", "type": "float64"} for name in ("share", "ratio")],
        }
    )  # fmt: skip


VALUES = {"rate": 0.25, "price": 8.0, "visits": 4, "seen": 1700000000, "town": "Đà Nẵng"}


def one(contract: FeatureContract, store: dict[bytes, Hash], key: Any, as_of: float = NOON) -> FeatureVector:
    reader = FeatureReader(contract, PROJECT)
    online = reader.decode(replies_to(store, reader.command({"shop_id": key})[0]), as_of)
    return VectorBuilder(contract).build(online, {"amount": 2.0})


def many(
    contract: FeatureContract, store: dict[bytes, Hash], keys: list[Any], as_of: Any = NOON
) -> FeatureTable:
    reader = FeatureReader(contract, PROJECT)
    online = reader.decode_many(replies_to(store, reader.commands({"shop_id": keys})[0]), as_of)
    return TableBuilder(contract).build(online, {"amount": 2.0})


def stored(values: dict[str, Any], age: float = 60.0, key: Any = "phở-24") -> dict[bytes, Hash]:
    store: dict[bytes, Hash] = {}
    put_view(store, "shop_id", key, "shop_daily", values, NOON - age)
    return store


NULLS = dict.fromkeys(VALUES)


@pytest.mark.parametrize(
    ("policy", "age", "values", "value", "status"),
    [
        ({}, 60, VALUES, 0.25, "present"),
        ({}, 60, NULLS, None, "null"),
        ({"on_missing": "default"}, 60, NULLS, 0.5, "defaulted"),
        ({"on_missing": "fail"}, 60, NULLS, "failed", "null"),
        ({}, 60, None, None, "missing"),
        ({"on_missing": "default"}, 60, None, 0.5, "defaulted"),
        ({"on_missing": "fail"}, 60, None, "failed", "missing"),
        ({"on_stale": "use_stale", "on_missing": "fail"}, 60, None, "failed", "missing"),
        ({}, TTL + 1, VALUES, None, "stale"),
        ({"on_missing": "default"}, TTL + 1, VALUES, 0.5, "defaulted"),
        ({"on_missing": "fail"}, TTL + 1, VALUES, "failed", "stale"),
        ({"on_stale": "use_stale"}, TTL + 1, VALUES, 0.25, "stale"),
        ({"on_stale": "use_stale", "on_missing": "default"}, TTL + 1, NULLS, 0.5, "defaulted"),
        ({"on_stale": "use_stale", "on_missing": "fail"}, TTL + 1, NULLS, "failed", "stale"),
        ({"on_stale": "null", "on_missing": "default"}, TTL + 1, VALUES, None, "stale"),
        ({"on_stale": "default"}, TTL + 1, VALUES, 0.5, "defaulted"),
        ({"on_stale": "default"}, 60, NULLS, None, "null"),
        ({"on_stale": "fail", "on_missing": "default"}, TTL + 1, VALUES, "failed", "stale"),
    ],
)
def test_a_value_becomes_what_the_contract_says(
    policy: dict, age: float, values: dict | None, value: Any, status: str
) -> None:
    document = shop(**policy)
    store = stored(values, age) if values is not None else {}
    vector, table = one(document, store, "phở-24"), many(document, store, ["phở-24"])
    assert vector.status[0] == status
    assert table.status_names("rate") == [status]
    if value == "failed":
        assert vector.failed == document.feature_names[:5]
        assert table.failed.all()
        value = None
    else:
        assert vector.failed == ()
        assert not table.failed.any()
    assert vector.values[0] == value
    assert math.isnan(table.columns["rate"][0]) if value is None else table.columns["rate"][0] == value
    town = {None: None, 0.25: VALUES["town"], 0.5: "nowhere"}[value]
    assert vector.values[4] == table.columns["town"][0] == town


def test_expressions_see_null_where_a_value_is_stale_even_if_the_vector_serves_it() -> None:
    document, store = shop(on_stale="use_stale"), stored(VALUES, TTL + 1)
    vector = dict(zip(document.feature_names, one(document, store, "phở-24").values, strict=True))
    assert (vector["visits"], vector["share"], vector["ratio"]) == (4.0, 2.0, None)


def test_a_computed_value_has_the_worst_status_of_what_it_read() -> None:
    document, store = shop(), stored(VALUES | {"price": None})
    vector = one(document, store, "phở-24")
    status = dict(zip(document.feature_names, vector.status, strict=True))
    assert status == {
        "rate": "present", "price": "null", "visits": "present", "seen": "present", "town": "present",
        "share": "present", "ratio": "null",
    }  # fmt: skip
    assert vector.fallbacks == ("price", "ratio")


def test_a_text_key_is_not_the_number_it_spells() -> None:
    store = stored(VALUES, key="24") | stored(VALUES | {"rate": 0.75}, key=24)
    assert one(shop("string"), store, "24").values[0] == 0.25
    assert one(shop("int64"), store, 24).values[0] == 0.75
    for kind, key in (("string", 24), ("int64", "24"), ("int64", 2**63)):
        with pytest.raises((TypeError, ValueError), match="shop_id"):
            one(shop(kind), store, key)


micros = st.integers(1_600_000_000 * 10**6, 2_100_000_000 * 10**6)


@settings(max_examples=200, deadline=None)
@given(micros, st.integers(-2, 2))
def test_the_edge_of_the_time_to_live_is_exact_to_the_microsecond(event: int, beyond: int) -> None:
    """A row of time t is valid up to and including t + ttl, as Feast's join of the offline store has it."""
    store: dict[bytes, Hash] = {}
    put_view(store, "shop_id", "a", "shop_daily", VALUES, event / 1e6)
    as_of = (event + TTL * 10**6 + beyond) / 1e6
    wanted = "stale" if beyond > 0 else "present"
    assert one(shop(), store, "a", as_of).status[0] == wanted
    assert many(shop(), store, ["a"], as_of).status_names("rate") == [wanted]


cells = {
    "rate": st.none() | st.floats(allow_nan=True, allow_infinity=True),
    "price": st.none() | st.floats() | st.integers(-5, 5),
    "visits": st.none() | st.integers(-(2**53), 2**53),
    "seen": st.none() | st.integers(0, 2**40),
    "town": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=100),
}
rows = st.fixed_dictionaries(cells) | st.none()
policies = st.fixed_dictionaries(
    {"on_missing": st.sampled_from(["null", "default", "fail"])},
    optional={"on_stale": st.sampled_from(["null", "default", "fail", "use_stale"])},
)
spoilt = st.sampled_from([None, b"\x29\x00", b"\xff", b"\x20\x80", b"\x0a\x01x"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(rows, st.floats(0, 3 * TTL), spoilt), min_size=1, max_size=6), policies)
def test_many_are_row_for_row_what_one_is(cases: list[tuple], policy: dict) -> None:
    document, store, keys = shop(**policy), {}, []
    for number, (values, age, spoil) in enumerate(cases):
        keys.append(f"ключ-{number}")
        if values is not None:
            put_view(store, "shop_id", keys[-1], "shop_daily", values, round(NOON - age, 6))
            if spoil:
                store[entity_key("shop_id", keys[-1], PROJECT)][field_name("shop_daily", "rate")] = spoil
    table = many(document, store, keys)
    for row, key in enumerate(keys):
        vector = one(document, store, key)
        assert [table.status_names(name)[row] for name in document.feature_names] == list(vector.status)
        got = [table.columns[name][row] for name in document.feature_names]
        expected = [math.nan if v is None and n != "town" else v
                    for n, v in zip(document.feature_names, vector.values, strict=True)]  # fmt: skip
        assert [repr(v) for v in got if isinstance(v, str | None)] == [repr(expected[4])]
        np.testing.assert_array_equal([v for v in got if not isinstance(v, str | None)],
                                      [*expected[:4], *expected[5:]])  # fmt: skip
        assert bool(table.failed[row]) == bool(vector.failed)


def test_each_case_has_its_own_time_and_request() -> None:
    document, store = shop(), stored(VALUES, age=0)
    table = many(document, store, ["phở-24"] * 2, np.array([NOON + TTL, NOON + TTL + 0.5]))
    assert table.status_names("rate") == ["present", "stale"]
    assert table.views["shop_daily"].event_timestamps.tolist() == [NOON, NOON]


def test_tables_are_joined_in_order_and_numbers_make_a_matrix() -> None:
    document, store = shop(), stored(VALUES) | stored(VALUES | {"rate": 0.75}, key="b")
    parts = [many(document, store, ["b", "nobody"]), many(document, store, ["phở-24"])]
    table = joined(parts)
    assert table.rows == 3
    assert table.status_names("rate") == ["present", "missing", "present"]
    np.testing.assert_array_equal(table.columns["rate"], [0.75, math.nan, 0.25])
    assert [STATUSES[code] for code in table.views["shop_daily"].status] == ["present", "missing", "present"]
    with pytest.raises(ValueError, match="town"):
        table.matrix()


def test_the_published_contract_gives_the_same_vectors_one_by_one_and_together() -> None:
    fraud, store = contract("fraud_detection_v1"), known_store()
    reader = FeatureReader(fraud, PROJECT)
    ids = {"customer_id": [596, 1, 596, 2], "terminal_id": [3156, 3156, 9, 8]}
    amounts = [9.25, 0.0, 220.0, 1e6]
    online = reader.decode_many(replies_to(store, reader.commands(ids)[0]), NOON)
    table = TableBuilder(fraud).build(online, {"tx_amount": np.array(amounts), "tx_timestamp": NOON})
    for row, (customer, terminal, amount) in enumerate(zip(*ids.values(), amounts, strict=True)):
        payload, _ = reader.command({"customer_id": customer, "terminal_id": terminal})
        single = reader.decode(replies_to(store, payload), NOON)
        vector = VectorBuilder(fraud).build(single, {"tx_amount": amount, "tx_timestamp": NOON})
        assert table.matrix()[row].tolist() == list(vector.values)
        assert [table.status_names(name)[row] for name in fraud.feature_names] == list(vector.status)


def test_an_error_reply_among_many_is_an_error() -> None:
    reader = FeatureReader(shop(), PROJECT)
    with pytest.raises(OnlineStoreError, match="list"):
        reader.decode_many([[None]], NOON)
    with pytest.raises(OnlineStoreError, match="LOADING"):
        reader.decode_many([RuntimeError("LOADING Redis is loading the dataset in memory")], NOON)


def test_a_view_written_before_a_field_was_added_has_a_null() -> None:
    store = stored(VALUES)
    del store[entity_key("shop_id", "phở-24", PROJECT)][field_name("shop_daily", "rate")]
    vector = one(shop(), store, "phở-24")
    assert (vector.values[0], vector.status[0], vector.values[1]) == (None, "null", 8.0)
    assert many(shop(), store, ["phở-24"]).status_names("rate") == ["null"]


def test_an_unreadable_time_spoils_its_view() -> None:
    store = stored(VALUES)
    store[entity_key("shop_id", "phở-24", PROJECT)][timestamp_field("shop_daily")] = b"\xff"
    assert set(one(shop(), store, "phở-24").status) == {"invalid"}
    assert many(shop(), store, ["phở-24"]).status_names("town") == ["invalid"]
