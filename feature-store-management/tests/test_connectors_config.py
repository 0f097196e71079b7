"""Named connections, the retry policy and the preview, without a network."""

import logging
import random
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_source_connectors import preview
from data_source_connectors.connection_config import (
    KINDS,
    AnyConnection,
    ConnectionConfigError,
    open_source,
    read_connection,
)
from data_source_connectors.database_connector import DatabaseSettings, PostgresSource
from data_source_connectors.errors import SourceRefusedError, SourceUnavailableError
from data_source_connectors.http_api_connector import HttpApiSource
from data_source_connectors.kafka_consumer_utils import KafkaSettings
from data_source_connectors.object_store_connector import ObjectStore
from data_source_connectors.retry_policy import RetryPolicy

TEMPLATE = Path(preview.__file__).parent / "config" / "connections.ini.template"
SECRET = "s3cret-planted-by-the-test"
POSTGRES = "type = postgresql\nhost = h\nname = n\nuser = u\n"
S3 = "type = s3\nendpoint_url = https://s3.example.org\naccess_key = ${ID}\n"
HTTP = "type = http\nbase_url = https://api.example.org\nauth = bearer\n"
KAFKA = "type = kafka\nbootstrap_servers = b:9093\nsecurity_protocol = SASL_SSL\nsasl_username = u\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def file(text: str) -> Path:
        path = tmp_path / "connections.ini"
        path.write_text(text)
        return path

    return file


def refusal(path: Path, name: str = "c", **environment: str) -> str:
    with pytest.raises(ConnectionConfigError) as error:
        read_connection(name, path, environment)
    shown = "".join(traceback.format_exception(error.value))
    assert SECRET not in shown
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path)).strip()


@pytest.mark.parametrize(
    ("section", "key"),
    [(POSTGRES, "password"), (S3, "secret_key"), (HTTP, "token"), (KAFKA, "sasl_password")],
    ids=["postgresql", "s3", "http", "kafka"],
)
def test_secrets_come_by_reference_and_are_never_shown(
    write: Any, tmp_path: Path, section: str, key: str
) -> None:
    environment = {"KEY": SECRET, "ID": "id"}
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    for reference in ("${KEY}", f"file:{tmp_path}/secret"):
        connection = read_connection("c", write(f"[c]\n{section}{key} = {reference}\n"), environment)
        assert getattr(connection, key).get_secret_value() == SECRET
        shown = repr(connection) + str(connection) + connection.model_dump_json()
        assert SECRET not in shown
        if not isinstance(connection, KafkaSettings):
            assert SECRET not in repr(open_source(connection)) + str(open_source(connection))
    for literal in (SECRET, f"${SECRET}", f"file:{SECRET}", f"${{KEY}}{SECRET}"):
        complaint = refusal(write(f"[c]\n{section}{key} = {literal}\n"), **environment)
        assert complaint.startswith(f"[c] {key}: a secret does not stand in this file")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[d]\ntype = s3\n", "no connection [c] (there are: d)"),
        ("", "no connection [c] (there are: none)"),
        (f"[c]\nhost = {SECRET}\n", "[c] type: say one of postgresql, s3, http, kafka"),
        (f"[c]\ntype = {SECRET}\n", "[c] type: say one of postgresql, s3, http, kafka"),
        (
            f"[c]\n{POSTGRES}port = {SECRET}\npassword = ${{PW}}\n",
            "[c] port: Input should be a valid integer",
        ),
        (f"[c]\n{POSTGRES}pasword = {SECRET}\npassword = ${{PW}}\n", "[c] pasword: is no key of this type"),
        (f"[c]\n{POSTGRES}", "[c] password: not set"),
        (f"[c]\n{POSTGRES}password = ${{GONE}}\n", "[c] password: environment variable GONE is not set"),
        (f"[c]\n{POSTGRES}password = file:/no/file\n", "[c] password: the secret's file: No such file"),
        (f"[c]\n{HTTP}token = ${{PW}}\nbase_url = x\n", "[c] base_url: stands there twice"),
        (f"[c]\n{HTTP.replace('https', 'ftp')}token = ${{PW}}\n", "[c] base_url: "),
        (f"[c]\n{HTTP}", "[c] token: auth = bearer needs it"),
        (f"[c]\na = 1\n[c]\npassword = {SECRET}\n", "[c] stands there twice"),
        (f"[c]\ntype = s3\n{SECRET}\n", "line 3: write `key = value`"),
        (f"{SECRET}\n[c]\n", "line 1: stands before the first [section]"),
        ("[c\n", "line 1: stands before the first [section]"),
        (f"[DEFAULT]\npassword = {SECRET}\n[c]\n{POSTGRES}", "[c] password: not set"),
    ],
)
def test_what_is_wrong_is_named_without_its_value(write: Any, text: str, complaint: str) -> None:
    assert complaint in refusal(write(text), PW=SECRET)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.ini")
    (tmp_path / "bytes.ini").write_bytes(b"\xff")
    assert "not UTF-8" in refusal(tmp_path / "bytes.ini")


def test_a_section_takes_nothing_from_the_platforms_own_environment(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOST": "platform", "PASSWORD": SECRET, "SSLMODE": "require"}.items():
        monkeypatch.setenv(f"FEATURE_STORE_DB_{name}", value)
    assert refusal(write(f"[c]\n{POSTGRES}")) == "[c] password: not set"
    connection = read_connection("c", write(f"[c]\n{POSTGRES}password = ${{PW}}\n"), {"PW": "own"})
    assert isinstance(connection, DatabaseSettings)
    assert (connection.host, connection.port, connection.sslmode) == ("h", 5432, "prefer")
    assert connection.password.get_secret_value() == "own"


def test_every_section_of_the_template_can_be_used(tmp_path: Path) -> None:
    text = re.sub("file:/run/secrets/", f"file:{tmp_path}/", TEMPLATE.read_text())
    for name in re.findall(f"file:{tmp_path}/(.*)", text):
        (tmp_path / name).write_text(SECRET)
    environment = dict.fromkeys(re.findall(r"\$\{([A-Z0-9_]+)\}", text), SECRET)
    environment |= {"FEATURE_STORE_DB_PORT": "5432", "S3_ENDPOINT_URL": "http://127.0.0.1:9000"}
    (tmp_path / "connections.ini").write_text(text)
    names = re.findall(r"^\[(\w+)\]", text, re.MULTILINE)
    kinds = {type(read_connection(name, tmp_path / "connections.ini", environment)) for name in names}
    assert kinds == set(KINDS.values())


def test_each_kind_is_read_by_its_own_source() -> None:
    found: dict[type[AnyConnection], type] = {}
    for kind in KINDS.values():
        if kind is KafkaSettings:
            with pytest.raises(ConnectionConfigError, match="read by its consumers"):
                open_source(KafkaSettings(bootstrap_servers="b:9092"))
        else:
            found[kind] = type(open_source(kind.model_construct()))
    assert set(found.values()) == {PostgresSource, ObjectStore, HttpApiSource}


# The retry policy.


class Flaky:
    """Fails as often as errors are given, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def waits(policy: RetryPolicy, *errors: Exception) -> list[float]:
    slept: list[float] = []
    assert policy.call(Flaky(*errors), what="the test", sleep=slept.append) == "done"
    return slept


def test_waits_have_full_jitter_under_a_growing_and_bounded_ceiling() -> None:
    random.seed(1)
    policy = RetryPolicy(attempts=6, first_wait_seconds=1.0, longest_wait_seconds=5.0)
    samples = [waits(policy, *[SourceUnavailableError("gone")] * 5) for _ in range(300)]
    for number, ceiling in enumerate([1.0, 2.0, 4.0, 5.0, 5.0]):
        column = [sample[number] for sample in samples]
        assert max(column) <= ceiling
        assert max(column) > 0.9 * ceiling
        assert min(column) < 0.1 * ceiling
        assert 0.4 * ceiling < sum(column) / len(column) < 0.6 * ceiling


def test_the_source_may_ask_for_a_longer_wait_up_to_the_limit() -> None:
    policy = RetryPolicy(attempts=2, first_wait_seconds=1.0, longest_wait_seconds=10.0)
    [wait] = waits(policy, SourceUnavailableError("busy", retry_after_seconds=9.0))
    assert 9.0 <= wait <= 10.0
    impatient = Flaky(SourceUnavailableError("busy", retry_after_seconds=11.0))
    with pytest.raises(SourceUnavailableError, match="busy"):
        policy.call(impatient, what="the test", sleep=lambda _: None)
    assert impatient.calls == 1


@pytest.mark.parametrize(
    "error", [SourceRefusedError("no"), SourceUnavailableError("no", retryable=False), KeyError("bug")]
)
def test_what_asking_again_cannot_help_is_raised_at_once(error: Exception) -> None:
    action = Flaky(error)
    with pytest.raises(type(error)):
        RetryPolicy().call(action, what="the test", sleep=lambda _: None)
    assert action.calls == 1


def test_the_last_error_is_raised_as_it_is_and_each_wait_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors = [SourceUnavailableError(f"fault {number}") for number in range(3)]
    with caplog.at_level(logging.WARNING), pytest.raises(SourceUnavailableError, match="fault 2"):
        RetryPolicy(attempts=3).call(Flaky(*errors), what="the test", sleep=lambda _: None)
    assert [message.split("; ")[0] for message in caplog.messages] == [
        "the test: attempt 1 of 3 failed (fault 0)",
        "the test: attempt 2 of 3 failed (fault 1)",
    ]


# The preview.


def batches(read: list[int]) -> Iterator[pa.RecordBatch]:
    for number in range(100):
        read.append(number)
        yield pa.RecordBatch.from_pydict({"id": [number * 2, number * 2 + 1], "name": ["é\n" * 40, None]})


def test_a_preview_reads_no_more_than_it_shows() -> None:
    read: list[int] = []
    table = preview.first_rows(batches(read), 3)
    assert read == [0, 1]
    lines = preview.shown(table).splitlines()
    assert lines[:4] == ["id    int64", "name  string", "", f"id  {'name':>40}"]
    assert [line.split()[0] for line in lines[4:]] == ["0", "1", "2"]
    assert lines[4].endswith("é é…")
    assert {len(line) for line in lines[3:]} == {44}


def test_a_preview_of_an_empty_table_shows_its_columns() -> None:
    empty = pa.RecordBatch.from_pylist([], schema=pa.schema([("id", pa.int64())]))
    assert preview.shown(preview.first_rows(iter([empty]), 3)) == "id  int64\n\nno rows"


@pytest.mark.parametrize("arguments", [[], ["c"], ["c", "t", "--rows", "0"], ["c", "t", "--rows", "x"]])
def test_wrong_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        preview.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_settings_and_sources_are_one_line(
    monkeypatch: pytest.MonkeyPatch, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CONNECTIONS_FILE", raising=False)
    assert preview.main(["c", "t"]) == 2
    assert capsys.readouterr().err == "CONNECTIONS_FILE is not set\n"
    monkeypatch.setenv("CONNECTIONS_FILE", str(write(f"[c]\n{POSTGRES}port = 1\npassword = ${{PW}}\n")))
    assert preview.main(["c", "t"]) == 2
    assert "variable PW is not set" in capsys.readouterr().err
    monkeypatch.setenv("PW", SECRET)
    assert preview.main(["c", "a.b.c"]) == 1
    assert "no name of a table" in capsys.readouterr().err
