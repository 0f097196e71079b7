"""The repository's contracts: what was published stays readable; tables are as they say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from common_test_utils import CONTRACTS_DIR, ROOT_DIR
from jsonschema import Draft202012Validator, FormatChecker

from schema_registry.check import main as check
from schema_registry.contracts import SCHEMAS_DIR, ContractError, check_all, read_contracts, read_published
from schema_registry.store import RegistryError, parse, version_number
from schema_registry.tables import columns_of

DDL = ROOT_DIR / "data_transformation_pipelines" / "python_scripts_feast" / "raw_schema.sql"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SCHEMAS_DIR, tmp_path / "schemas"))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"{name}.schema.json"
    schema = json.loads(path.read_text())
    change(schema)
    path.write_text(json.dumps(schema))


def test_the_contracts_are_what_was_published():
    assert check([]) == 0
    assert not [verdict for verdict in check_all() if verdict.is_new]


def test_a_removed_field_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]):
    def remove(schema: dict[str, Any]) -> None:
        del schema["properties"]["terminal_id"]
        schema["required"].remove("terminal_id")

    rewrite(folder, "transactions.v1", remove)
    assert check(["--folder", str(folder), "--publish"]) == 1
    error = capsys.readouterr().err
    assert "transactions.v1 changed incompatibly" in error
    assert "terminal_id: removed from a closed object (since version 1)" in error
    assert "transactions.v2" in error
    assert len(read_published("transactions.v1", folder)) == 1


def test_a_compatible_change_waits_for_its_version_and_is_published(folder: Path):
    rewrite(
        folder,
        "transactions.v1",
        lambda s: s["properties"].update(channel={"type": "string", "description": "Where."}),
    )
    assert check(["--folder", str(folder)]) == 1, "the history must hold what readers meet"
    assert check(["--folder", str(folder), "--publish"]) == 0
    assert check(["--folder", str(folder)]) == 0
    assert len(read_published("transactions.v1", folder)) == 2

    def take_back(schema: dict[str, Any]) -> None:
        del schema["properties"]["channel"]

    rewrite(folder, "transactions.v1", take_back)
    [refused] = [verdict for verdict in check_all(folder) if verdict.reasons]
    assert refused.reasons == ("channel: removed from a closed object (since version 2)",)


def test_an_incompatible_change_passes_as_a_new_contract_beside_the_old(folder: Path):
    schema = json.loads((folder / "transactions.v1.schema.json").read_text())
    schema["properties"]["tx_amount"]["type"] = "string"
    schema["x-subjects"] = ["transactions.v2-value"]
    (folder / "transactions.v2.schema.json").write_text(json.dumps(schema))
    assert check(["--folder", str(folder), "--publish"]) == 0


def test_the_rule_itself_cannot_be_weakened_to_let_a_change_through(folder: Path):
    def weaken(schema: dict[str, Any]) -> None:
        schema["x-compatibility"] = "NONE"
        schema["properties"]["tx_amount"]["maximum"] = 10

    rewrite(folder, "transactions.v1", weaken)
    [refused] = [verdict for verdict in check_all(folder) if verdict.reasons]
    assert refused.reasons == (
        "x-compatibility: weakened from BACKWARD_TRANSITIVE to NONE",
        "tx_amount: maximum narrowed from 1000000 to 10 (since version 1)",
    )


def test_a_published_contract_cannot_vanish(folder: Path):
    (folder / "raw.transactions.v1.schema.json").unlink()
    with pytest.raises(ContractError, match=r"raw\.transactions\.v1: readers may still exist"):
        check_all(folder)
    assert check(["--folder", str(folder)]) == 1


def test_a_hole_in_the_history_is_an_error(folder: Path):
    (folder / "published" / "transactions.v1" / "1.json").rename(
        folder / "published" / "transactions.v1" / "2.json"
    )
    with pytest.raises(ContractError, match="instead of versions 1 to 1"):
        check_all(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.update(additionalProperties=True), "closed object"),
        (lambda s: s.update({"x-compatibility": "SOMETIMES"}), "x-compatibility 'SOMETIMES'"),
        (lambda s: s.update({"x-owner": ""}), "x-owner"),
        (lambda s: s.update({"x-subjects": []}), "x-subjects"),
        (lambda s: s["properties"]["tx_amount"].pop("description"), "tx_amount has no description"),
        (lambda s: s["properties"]["tx_amount"].update(type="money"), "no JSON Schema"),
        (lambda s: s.update({"$schema": "http://json-schema.org/draft-07/schema#"}), "2020-12"),
        (lambda s: s.update({"x-subjects": ["raw.subscribers.v1"]}), "subjects of more than one"),
    ],
)
def test_a_contract_that_says_too_little_is_refused(folder: Path, change: Any, complaint: str):
    rewrite(folder, "transactions.v1", change)
    with pytest.raises(ContractError, match=complaint):
        check_all(folder)


def test_every_topic_of_a_stream_has_a_contract():
    declared = yaml.safe_load((CONTRACTS_DIR / "stream_aggregations" / "transactions_today.yaml").read_text())
    topics = {view["topic"] for view in declared["views"]}
    subjects = {subject for contract in read_contracts() for subject in contract.subjects}
    assert {f"{topic}-value" for topic in topics} <= subjects


def tables_of_the_ddl() -> dict[str, list[tuple[str, str, bool]]]:
    """Return column, type and whether it is nullable, of each table that raw_schema.sql creates."""
    tables = {}
    text = re.sub(r"--.*", "", DDL.read_text())
    for name, body in re.findall(r"create table if not exists (\w+) \((.*?)\n\);", text, re.DOTALL):
        columns = []
        for line in re.split(r",\s*\n", body.strip()):
            if line.strip().startswith("primary key"):
                continue  # its columns are "not null" beside their types
            found = re.match(r"(\w+) (double precision|\w+)(.*)", line.strip(), re.DOTALL)
            assert found, line
            nullable = "not null" not in found[3] and "primary key" not in found[3]
            columns.append((found[1], found[2], nullable))
        tables[f"raw.{name}"] = columns
    return tables


# What the loaders keep for themselves.
WITHOUT_CONTRACT = {"raw.dataset", "raw.loaded_file", "raw.loaded_snapshot"}


def test_the_raw_tables_are_created_as_their_contracts_say():
    contracts = {contract.table: contract for contract in read_contracts() if contract.table}
    tables = tables_of_the_ddl()
    assert set(tables) - WITHOUT_CONTRACT == set(contracts)
    assert len(contracts) >= 6
    for table, contract in contracts.items():
        assert tables[table] == columns_of(contract.schema), table


def test_a_changed_column_is_noticed():
    [contract] = [c for c in read_contracts() if c.table == "raw.transaction_labels"]
    changed = json.loads(contract.text)
    changed["properties"]["is_fraud"] = {"type": "boolean"}
    assert columns_of(changed) != tables_of_the_ddl()["raw.transaction_labels"]
    changed["properties"].pop("is_fraud")
    assert columns_of(changed) != tables_of_the_ddl()["raw.transaction_labels"]


GOOD = {
    "transaction_id": 7,
    "tx_datetime": "2026-11-20T23:59:59.000001Z",
    "customer_id": 1,
    "terminal_id": 2,
    "tx_amount": 12.34,
}


@pytest.mark.parametrize(
    "change",
    [
        {"tx_amount": -0.01},
        {"tx_amount": "12"},
        {"tx_datetime": "2026-11-20T23:59:59Z"},
        {"tx_datetime": "2026-11-20T23:59:59.000001+01:00"},
        {"customer_id": 1.5},
        {"surplus": 1},
        {"terminal_id": None},
    ],
)
def test_the_topic_contract_refuses_a_broken_transaction(change: dict[str, Any]):
    [contract] = [c for c in read_contracts() if c.name == "transactions.v1"]
    judge = Draft202012Validator(contract.schema, format_checker=FormatChecker())
    assert judge.is_valid(GOOD)
    assert not judge.is_valid(GOOD | change)


@pytest.mark.parametrize("text", ["0", "-2", "one", "", "²", str(2**31)])
def test_what_is_no_version_is_refused(text: str):
    with pytest.raises(RegistryError, match="not a valid version id") as caught:
        version_number(text)
    assert (caught.value.status, caught.value.code) == (422, 42202)
    assert version_number("12") == 12
    assert version_number("latest") is None


def test_equal_schemas_have_one_fingerprint_and_keep_their_spelling():
    first = parse({"schemaType": "JSON", "schema": '{"type": "object", "title": "a"}'})
    second = parse({"schemaType": "JSON", "schema": '{"title":"a","type":"object"}'})
    assert first.fingerprint == second.fingerprint
    assert first.text != second.text
    with pytest.raises(RegistryError, match="AVRO") as caught:
        parse({"schema": '"string"'})
    assert caught.value.code == 42201
