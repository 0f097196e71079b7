"""The embedded registry as clients of Confluent's see it, over PostgreSQL, in tables of the test's own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest
from common_test_utils import ROOT_DIR, require_stack
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from psycopg import sql

from schema_registry import register
from schema_registry.contracts import SCHEMAS_DIR, read_contracts
from schema_registry.tables import columns_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CONTRACT = (SCHEMAS_DIR / "transactions.v1.schema.json").read_text()
TRANSACTION = {
    "transaction_id": 7,
    "tx_datetime": "2026-11-20T23:59:59.000001Z",
    "customer_id": 1,
    "terminal_id": 2,
    "tx_amount": 12.34,
}


def database() -> psycopg.Connection[tuple[Any, ...]]:
    require_stack()
    names = {"host": "HOST", "port": "PORT", "dbname": "NAME", "user": "USER", "password": "PASSWORD"}
    values = {key: os.environ[f"FEATURE_STORE_DB_{name}"] for key, name in names.items()}
    return psycopg.connect(**values, connect_timeout=10, autocommit=True)  # type: ignore[arg-type]


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    start: Callable[[], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with database() as connection:
        schema = f"test_{uuid4().hex[:8]}_registry"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "SCHEMA_REGISTRY_PORT": str(port),
            "SCHEMA_REGISTRY_SCHEMA_NAME": schema,
        }

        def start() -> None:
            made.process = subprocess.Popen(
                [sys.executable, "-m", "schema_registry.server"], cwd=ROOT_DIR, env=environment
            )
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert httpx.get(f"{made.url}/subjects").status_code == 200
                    return
                except httpx.TransportError:
                    assert made.process.poll() is None, "the registry ended at start"
                    assert time.monotonic() < deadline, "the registry does not answer"
                    time.sleep(0.05)

        made = Server(f"http://127.0.0.1:{port}", None, start)  # type: ignore[arg-type]
        try:
            start()
            yield made
        finally:
            if made.process:
                made.process.terminate()
                made.process.wait(20)
            connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema)))


@pytest.fixture
def client(server: Server) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": server.url})


@pytest.fixture
def subject() -> str:
    return f"topic/ü {uuid4().hex[:8]}-value"


def schema(**properties: Any) -> Schema:
    return Schema(
        json.dumps({"type": "object", "additionalProperties": False, "properties": properties}), "JSON"
    )


def refused(code: int, call: Callable[..., Any], *arguments: Any) -> SchemaRegistryError:
    with pytest.raises(SchemaRegistryError) as caught:
        call(*arguments)
    assert caught.value.error_code == code
    return caught.value


NUMBER, TEXT = {"type": "number"}, {"type": "string"}


def test_a_message_travels_with_the_id_and_a_broken_one_is_refused(server: Server, subject: str):
    topic = subject.removesuffix("-value")
    context = SerializationContext(topic, MessageField.VALUE)
    producer = SchemaRegistryClient({"url": server.url})
    message = JSONSerializer(CONTRACT, producer)(TRANSACTION, context)
    [schema_id] = {producer.get_latest_version(subject).schema_id}
    assert message[:5] == b"\0" + schema_id.to_bytes(4, "big")
    # Another process: knows the address and learns the schema from the id.
    reader = JSONDeserializer(None, schema_registry_client=SchemaRegistryClient({"url": server.url}))
    assert reader(message, context) == TRANSACTION
    with pytest.raises(Exception, match="-1 is less than the minimum"):
        JSONSerializer(CONTRACT, producer)({**TRANSACTION, "tx_amount": -1}, context)


def test_the_same_schema_keeps_its_id_whatever_its_spelling_and_subject(
    client: SchemaRegistryClient, server: Server, subject: str
):
    first = client.register_schema(subject, schema(a=NUMBER, b=TEXT))
    respelt = Schema(
        json.dumps(json.loads(schema(b=TEXT, a=NUMBER).schema_str), indent=3),  # type: ignore[arg-type]
        "JSON",
    )
    other = SchemaRegistryClient({"url": server.url})
    assert other.register_schema(subject, respelt) == first
    assert other.register_schema(f"{subject}-two", respelt) == first
    assert other.get_versions(subject) == [1]
    assert other.lookup_schema(subject, respelt).version == 1
    assert set(other.get_subjects_by_schema_id(first)) == {subject, f"{subject}-two"}
    assert [v.version for v in other.get_schema_versions(first)] == [1, 1]
    assert other.get_schema(first).schema_type == "JSON"


def test_an_incompatible_schema_is_refused_with_the_field_named(client: SchemaRegistryClient, subject: str):
    client.register_schema(subject, schema(amount=NUMBER, place=TEXT))
    error = refused(409, client.register_schema, subject, schema(amount={"type": "integer"}, place=TEXT))
    assert "amount: type narrowed from number to integer" in error.error_message
    error = refused(409, client.register_schema, subject, schema(amount=NUMBER))
    assert "place: removed from a closed object" in error.error_message
    assert client.test_compatibility(subject, schema(amount=NUMBER)) is False
    assert client.test_compatibility(subject, schema(amount=NUMBER, place=TEXT, new=TEXT)) is True
    assert client.get_versions(subject) == [1]
    client.register_schema(subject, schema(amount=NUMBER, place=TEXT, new=TEXT))
    assert client.get_versions(subject) == [1, 2]
    assert client.get_version(subject, 1).schema.schema_str == schema(amount=NUMBER, place=TEXT).schema_str


def test_rules_count_for_a_subject_and_fall_back_to_the_registrys(
    client: SchemaRegistryClient, server: Server, subject: str
):
    assert client.get_compatibility() == "BACKWARD"
    refused(40408, client.get_compatibility, subject)
    client.register_schema(subject, schema(a=NUMBER))
    client.set_compatibility(subject, "FORWARD")
    assert client.get_compatibility(subject) == "FORWARD"
    error = refused(409, client.register_schema, subject, schema(a=NUMBER, b=TEXT))
    assert "b: added to a closed object" in error.error_message
    client.set_compatibility(subject, "NONE")
    client.register_schema(subject, schema(z=TEXT))
    refused(42203, client.set_compatibility, subject, "SOMETIMES")
    reply = httpx.put(f"{server.url}/config", json={})
    assert (reply.status_code, reply.json()["error_code"]) == (422, 42203)
    httpx.delete(f"{server.url}/config/{httpx.URL(f'http://x/{subject}').raw_path.decode()[1:]}")


def test_what_is_not_there_has_confluents_error_codes(client: SchemaRegistryClient, subject: str):
    refused(40401, client.get_versions, subject)
    refused(40401, client.get_latest_version, subject)
    refused(40401, client.lookup_schema, subject, schema(a=NUMBER))
    refused(40403, client.get_schema, 2_000_000_000)
    client.register_schema(subject, schema(a=NUMBER))
    refused(40402, client.get_version, subject, 9)
    refused(42202, client.get_version, subject, 0)
    refused(40403, client.lookup_schema, subject, schema(b=NUMBER))


@pytest.mark.parametrize(
    "broken",
    [
        Schema('{"type": "record", "name": "r", "fields": []}', "AVRO"),
        Schema("{", "JSON"),
        Schema('{"type": "money"}', "JSON"),
    ],
    ids=["avro", "no json", "no schema"],
)
def test_what_is_no_json_schema_is_refused(client: SchemaRegistryClient, subject: str, broken: Schema):
    refused(42201, client.register_schema, subject, broken)
    refused(40401, client.get_versions, subject)


def test_a_read_only_subject_takes_nothing_new(client: SchemaRegistryClient, subject: str):
    client.register_schema(subject, schema(a=NUMBER))
    assert client.update_mode(subject, "READONLY") == "READONLY"
    refused(42205, client.register_schema, subject, schema(a=NUMBER, b=TEXT))
    client.update_mode(subject, "READWRITE")
    client.register_schema(subject, schema(a=NUMBER, b=TEXT))
    assert client.get_global_mode() == "READWRITE"
    refused(42204, client.update_mode, subject, "SIDEWAYS")


def test_deleted_versions_are_out_of_sight_and_then_gone(client: SchemaRegistryClient, subject: str):
    first = client.register_schema(subject, schema(a=NUMBER))
    client.register_schema(subject, schema(a=NUMBER, b=TEXT))
    refused(40407, client.delete_version, subject, 1, True)
    assert client.delete_version(subject, 1) == 1
    assert client.get_versions(subject) == [2]
    assert client.get_versions(subject, deleted=True) == [1, 2]
    assert json.loads(client.get_schema(first).schema_str) == json.loads(schema(a=NUMBER).schema_str)  # type: ignore[arg-type]
    assert client.delete_subject(subject) == [2]
    assert subject not in client.get_subjects()
    assert subject in client.get_subjects(deleted=True)
    assert client.delete_subject(subject, permanent=True) == [1, 2]
    refused(40401, client.get_versions, subject)


def test_many_at_once_get_one_id_and_one_row_of_versions(server: Server, subject: str):
    """Eight writers race: the same schema, then each a version of its own."""
    SchemaRegistryClient({"url": server.url}).set_compatibility(subject, "NONE")
    ids: list[int] = []

    def write(number: int) -> None:
        own = SchemaRegistryClient({"url": server.url})
        ids.append(own.register_schema(subject, schema(a=NUMBER)))
        own.register_schema(subject, schema(**{f"field_{number}": TEXT}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert SchemaRegistryClient({"url": server.url}).get_versions(subject) == list(range(1, 10))


def test_the_contracts_are_registered_and_a_second_run_changes_nothing(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", server.url)
    assert register.main([]) == 0
    first = capsys.readouterr().out
    assert register.main([]) == 0
    assert capsys.readouterr().out == first
    client = SchemaRegistryClient({"url": server.url})
    for contract in read_contracts():
        for subject in contract.subjects:
            assert json.loads(client.get_latest_version(subject).schema.schema_str) == contract.schema  # type: ignore[arg-type]
            assert client.get_compatibility(subject) == contract.rule

    # Without the repository's history the registry itself must refuse; the rest is registered all the same.
    changed = json.loads(CONTRACT)
    changed["properties"]["tx_amount"]["maximum"] = 10
    (tmp_path / "transactions.v1.schema.json").write_text(json.dumps(changed))
    other = {**changed, "x-subjects": [f"other-{uuid4().hex[:8]}"]}
    (tmp_path / "zebra.v1.schema.json").write_text(json.dumps(other))
    assert register.main(["--folder", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "tx_amount: maximum narrowed from 1000000 to 10" in told.err
    assert other["x-subjects"][0] in told.out


def test_a_registry_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://user:secret@127.0.0.1:9")
    assert register.main([]) == 1
    error = capsys.readouterr().err
    assert "no registry at 127.0.0.1:9" in error
    assert "secret" not in error


def test_it_is_light_and_what_it_knows_outlives_it(server: Server, subject: str):
    schema_id = SchemaRegistryClient({"url": server.url}).register_schema(subject, schema(a=NUMBER))
    assert psutil.Process(server.process.pid).memory_info().rss < 80e6
    server.process.kill()
    server.process.wait(10)
    server.start()
    assert SchemaRegistryClient({"url": server.url}).get_latest_version(subject).schema_id == schema_id


def test_the_loaded_tables_are_what_their_contracts_say():
    with database() as connection:
        for contract in read_contracts():
            if contract.table is None:
                continue
            schema_name, _, table = contract.table.partition(".")
            rows = connection.execute(
                "select column_name, data_type, is_nullable = 'YES' from information_schema.columns"
                " where table_schema = %s and table_name = %s order by ordinal_position",
                (os.environ.get("FEATURE_STORE_RAW_SCHEMA", schema_name), table),
            ).fetchall()
            names = {"timestamp with time zone": "timestamptz"}
            found = [(name, names.get(type_, type_), nullable) for name, type_, nullable in rows]
            assert found == columns_of(contract.schema), contract.table
