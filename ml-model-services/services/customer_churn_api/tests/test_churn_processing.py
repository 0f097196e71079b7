from __future__ import annotations

import pytest
from app.business_logic.churn_processing import to_case
from app.schemas import ChurnRequest
from pydantic import ValidationError


def test_a_case_holds_the_key_that_the_contract_names() -> None:
    case = to_case(ChurnRequest(subscriber_id=7), requested_at=5.0)
    assert case.entity_ids == case.request == {"subscriber_id": 7}
    assert case.as_of == case.requested_at == 5.0
    assert case.request_values == {}


@pytest.mark.parametrize(
    "body", ['{"subscriber_id": "7"}', '{"subscriber_id": 7.0}', '{"subscriber_id": -1}', "{}"]
)
def test_only_a_whole_number_is_a_subscriber(body: str) -> None:
    with pytest.raises(ValidationError):
        ChurnRequest.model_validate_json(body)
