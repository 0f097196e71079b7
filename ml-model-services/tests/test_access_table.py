from __future__ import annotations

import copy

import pytest
import yaml
from faults.access_matrix import TABLE, expected, missing_entries

from common_service_libs.openapi_document import current, services


def test_every_route_of_every_service_stands_in_the_table_and_a_new_one_fails() -> None:
    table = yaml.safe_load(TABLE.read_text())
    known = {"GET /openapi.json"}
    for name in services():
        _, document = current(name)
        assert document is not None
        assert missing_entries(table, document) == [], name
        known |= {
            f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods
        }
        grown = copy.deepcopy(document)
        grown["paths"]["/new"] = {"delete": {}}
        assert missing_entries(table, grown) == ["DELETE /new"]
    assert set(table["routes"]) <= known, "the table names a route that no service has"


@pytest.mark.parametrize(
    ("route", "caller", "kind", "status"),
    [
        ("GET /livez", "no key", "own", 200),
        ("POST /predict", "no key", "own", 401),
        ("POST /predict", "token signed with the public key as a secret", "own", 401),
        ("POST /predict", "key for reading", "own", 403),
        ("POST /predict", "key of another service", "own", 403),
        ("POST /predict", "key for predictions", "own", 200),
        ("GET /decisions/{request_id}", "key for reading", "own", 200),
        ("GET /decisions/{request_id}", "key for reading", "of another service", 404),
        ("GET /decisions/{request_id}", "key for predictions", "missing", 403),
    ],
)
def test_the_table_denies_what_it_does_not_allow(route: str, caller: str, kind: str, status: int) -> None:
    assert expected(yaml.safe_load(TABLE.read_text()), route, caller, kind, "fraud") == status
