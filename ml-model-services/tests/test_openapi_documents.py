from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from common_service_libs.openapi_compare import compare
from common_service_libs.openapi_document import check, current, generate, services

REQUEST = {
    "type": "object",
    "additionalProperties": False,
    "required": ["id"],
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 100},
        "kind": {"enum": ["a", "b"], "type": "string"},
        "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "default": None},
        "amount": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}},
    },
}
REPLY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["decision", "score"],
    "properties": {
        "decision": {"enum": ["yes", "no"], "type": "string"},
        "score": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
        "notes": {"type": "array", "items": {"type": "string"}},
        "status": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
DOCUMENT: dict[str, Any] = {
    "paths": {
        "/predict": {
            "post": {
                "parameters": [
                    {"in": "header", "name": "X-Request-ID", "required": False, "schema": {"type": "string"}}
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
                },
                "responses": {
                    "200": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Reply"}}}
                    },
                    "422": {"description": "wrong"},
                },
                "security": [{"key": []}],
            }
        },
        "/model": {"get": {"responses": {"200": {"description": "the model"}}}},
    },
    "components": {"schemas": {"Request": REQUEST, "Reply": REPLY}},
}
Edit = Callable[[dict[str, Any]], object]


def edited(edit: Edit) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    edit(document)
    return document


def schemas(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = document["components"]["schemas"]
    return parts["Request"], parts["Reply"]


def request(document: dict[str, Any], field: str) -> dict[str, Any]:
    found: dict[str, Any] = schemas(document)[0]["properties"][field]
    return found


def reply(document: dict[str, Any], field: str) -> dict[str, Any]:
    found: dict[str, Any] = schemas(document)[1]["properties"][field]
    return found


def predict(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"]["/predict"]["post"]
    return found


BREAKS: list[tuple[str, Edit, str]] = [
    ("a route is gone", lambda d: d["paths"].pop("/model"), "GET /model is gone"),
    ("a method is gone", lambda d: d["paths"]["/predict"].clear(), "POST /predict is gone"),
    ("a response is gone", lambda d: predict(d)["responses"].pop("422"), "422 is gone"),
    (
        "another media type",
        lambda d: predict(d)["responses"]["200"].update(
            content={"text/plain": {"schema": {"type": "string"}}}
        ),
        "application/json is gone",
    ),
    ("a reply's field is gone", lambda d: schemas(d)[1]["properties"].pop("score"), "/score is gone"),
    ("a reply's field may be left out", lambda d: schemas(d)[1]["required"].remove("score"), "always there"),
    ("a reply's enum grows", lambda d: reply(d, "decision")["enum"].append("maybe"), "wider"),
    ("a reply's enum is lifted", lambda d: reply(d, "decision").pop("enum"), "wider"),
    ("a reply's type changes", lambda d: reply(d, "decision").update(type="integer"), "type"),
    (
        "a reply may be more kinds",
        lambda d: reply(d, "score")["anyOf"].append({"type": "string"}),
        "alternative",
    ),
    ("a reply's bound widens", lambda d: reply(d, "score")["anyOf"][0].pop("maximum"), "alternative"),
    ("a reply's items change", lambda d: reply(d, "notes")["items"].update(type="object"), "/notes/*"),
    (
        "a reply's map changes",
        lambda d: reply(d, "status")["additionalProperties"].update(type="integer"),
        "status/*",
    ),
    ("a request's field is gone", lambda d: schemas(d)[0]["properties"].pop("kind"), "/kind is gone"),
    ("a request's field is required", lambda d: schemas(d)[0]["required"].append("kind"), "now required"),
    (
        "a new required field",
        lambda d: (
            schemas(d)[0]["properties"].update(new={"type": "string"}),
            schemas(d)[0]["required"].append("new"),
        ),
        "/new is new and required",
    ),
    ("a request's enum shrinks", lambda d: request(d, "kind")["enum"].remove("b"), "narrower"),
    ("a request gets an enum", lambda d: request(d, "amount").update(enum=[1, 2]), "narrower"),
    ("a request's type narrows", lambda d: request(d, "amount").update(type="integer"), "narrower"),
    ("a request's maximum falls", lambda d: request(d, "id").update(maximum=10), "`maximum` is narrower"),
    ("a request gets a minimum", lambda d: request(d, "amount").update(minimum=0), "`minimum` is narrower"),
    ("a request gets a pattern", lambda d: request(d, "kind").update(pattern="^a$"), "`pattern`"),
    ("null is no longer taken", lambda d: request(d, "at")["anyOf"].pop(), "alternative 1"),
    ("shorter items", lambda d: request(d, "tags")["items"].update(maxLength=3), "/tags/*"),
    ("unknown fields are refused", lambda d: schemas(d)[0].update(additionalProperties=False), ""),
    ("a parameter is gone", lambda d: predict(d)["parameters"].clear(), "X-Request-ID is gone"),
    ("a parameter is required", lambda d: predict(d)["parameters"][0].update(required=True), "now required"),
    (
        "a new required parameter",
        lambda d: predict(d)["parameters"].append(
            {"in": "query", "name": "v", "required": True, "schema": {"type": "string"}}
        ),
        "is new and required",
    ),
    ("other credentials", lambda d: predict(d).update(security=[{"token": []}]), "credentials"),
    ("no body any more", lambda d: predict(d).pop("requestBody"), "body is gone"),
    (
        "a body is wanted",
        lambda d: d["paths"]["/model"]["get"].update(requestBody={"required": True}),
        "body",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "said"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS])
def test_each_kind_of_break_is_seen_and_its_reverse_is_judged_on_its_own(edit: Edit, said: str) -> None:
    old = DOCUMENT
    if not said:  # the one where the document before has to be the open one
        old = edited(lambda d: schemas(d)[0].pop("additionalProperties"))
    breaks = [change for change in compare(old, edited(edit)) if change.breaks]
    assert breaks
    assert any(said in f"{change.place} {change.what}" for change in breaks), breaks


ADDITIONS: list[tuple[str, Edit]] = [
    ("a new route", lambda d: d["paths"].update({"/new": {"get": {"responses": {}}}})),
    ("a new response", lambda d: predict(d)["responses"].update({"429": {"description": "slow down"}})),
    ("a new field in a reply", lambda d: schemas(d)[1]["properties"].update(new={"type": "string"})),
    ("a new field to leave out", lambda d: schemas(d)[0]["properties"].update(new={"type": "string"})),
    ("a field need not be sent", lambda d: schemas(d)[0]["required"].clear()),
    ("a field is always there", lambda d: schemas(d)[1]["required"].append("notes")),
    ("a request takes more", lambda d: request(d, "kind")["enum"].append("c")),
    ("a request takes larger numbers", lambda d: request(d, "id").update(maximum=1000)),
    ("a request takes another kind", lambda d: request(d, "at")["anyOf"].append({"type": "integer"})),
    ("a request takes null too", lambda d: request(d, "amount").update(type=["number", "null"])),
    ("a reply says less", lambda d: reply(d, "decision")["enum"].remove("no")),
    ("a reply is never null", lambda d: reply(d, "score")["anyOf"].pop()),
    ("another way to authenticate", lambda d: predict(d)["security"].append({"token": []})),
]


@pytest.mark.parametrize("edit", [case[1] for case in ADDITIONS], ids=[case[0] for case in ADDITIONS])
def test_an_addition_is_seen_and_breaks_nothing(edit: Edit) -> None:
    changes = compare(DOCUMENT, edited(edit))
    assert changes
    assert not [change for change in changes if change.breaks]


def test_words_for_people_may_change() -> None:
    def edit(document: dict[str, Any]) -> None:
        request(document, "id")["description"] = "another word"
        predict(document)["responses"]["422"]["description"] = "another"

    assert compare(DOCUMENT, edited(edit)) == []


def test_a_schema_that_holds_itself_ends() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#/components/schemas/Reply"}}}
    old = edited(lambda d: d["components"]["schemas"].update(Reply=tree))
    new = copy.deepcopy(old)
    new["components"]["schemas"]["Reply"]["properties"]["size"] = {"type": "integer"}
    assert not [change for change in compare(old, new) if change.breaks]
    assert [change for change in compare(new, old) if change.breaks]


def test_the_committed_documents_are_what_the_services_say_of_themselves() -> None:
    names = services()
    assert {"fraud_detection_api", "customer_churn_api"} <= set(names)
    for name, document in generate(names).items():
        assert check(name, document) == []
        version, committed = current(name)
        assert committed is not None
        without_a_route = copy.deepcopy(document)
        without_a_route["paths"].pop("/predict", None) or without_a_route["paths"].pop("/recommend")
        assert any("is gone" in line for line in check(name, without_a_route)), version
