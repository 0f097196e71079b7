from __future__ import annotations

import pytest
from app.business_logic.fraud_processing import to_case
from app.schemas import FraudRequest
from pydantic import ValidationError
from service_testkit import NOON

from common_service_libs.decision_record import asks_the_same

BODY = """{
    "customer_id": 596, "terminal_id": 3156, "tx_amount": 57.16, "tx_datetime": "2026-01-31T13:00:00+01:00"
}"""


def parse(text: str) -> FraudRequest:
    return FraudRequest.model_validate_json(text)


def test_a_case_holds_the_keys_and_values_that_the_contract_names() -> None:
    case = to_case(parse(BODY), requested_at=1.0)
    assert case.entity_ids == {"customer_id": 596, "terminal_id": 3156}
    assert case.request_values == {"tx_amount": 57.16, "tx_timestamp": NOON}
    assert case.as_of == NOON
    assert case.request["tx_datetime"] == "2026-01-31T12:00:00.000000Z"
    assert case.request["defaulted"] == []


def test_a_time_not_given_is_the_time_of_arrival_and_said_to_be() -> None:
    case = to_case(parse('{"customer_id": 1, "terminal_id": 2, "tx_amount": 3}'), requested_at=NOON + 0.25)
    assert case.as_of == case.request_values["tx_timestamp"] == NOON + 0.25
    assert case.request["defaulted"] == ["tx_datetime"]


def test_the_same_moment_in_another_zone_is_the_same_request() -> None:
    utc = BODY.replace("13:00:00+01:00", "12:00:00Z")
    assert asks_the_same(to_case(parse(BODY), 1.0).request, to_case(parse(utc), 2.0).request)


@pytest.mark.parametrize(
    ("time", "fine"),
    [
        ("2026-01-31T12:00:00Z", True),
        ("2026-01-31t12:00:00.123456z", True),
        ("2026-01-31T12:00:00.123456789-11:30", True),
        ("2026-01-31T12:00:00", False),
        ("2026-01-31 12:00:00Z", False),
        ("2026-01-31", False),
        ("1769860800", False),
        ("2026-02-30T12:00:00Z", False),
        ("2026-01-31T24:00:00Z", False),
        ("2026-01-31T12:00:00+99:00", False),
        ("0001-01-01T00:00:00+23:59", False),
        ("9999-12-31T23:59:59-23:59", False),
    ],
)
def test_only_an_rfc_3339_time_with_a_zone_is_a_time(time: str, fine: bool) -> None:
    text = BODY.replace("2026-01-31T13:00:00+01:00", time)
    if fine:
        assert to_case(parse(text), 0.0).as_of > 0
    else:
        with pytest.raises(ValidationError):
            parse(text)
