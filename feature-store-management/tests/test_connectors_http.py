"""The HTTP API connector against a real server of the test's own: pages, faults, limits, logins."""

import base64
import gzip
import json
import logging
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from data_source_connectors import preview
from data_source_connectors.errors import (
    SourceDataError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
)
from data_source_connectors.http_api_connector import HttpApiConnection, HttpApiSource, retry_after_seconds
from data_source_connectors.object_store_connector import ObjectStore, ObjectStoreConnection

SECRET = "t0ken-planted-by-the-test"
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each path as the test says, and keeps what was asked."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(path.query).items()}
        self.server.asked.append((path.path, dict(self.headers)))
        self.count = sum(1 for asked, _ in self.server.asked if asked == path.path)
        self.server.answers.get(path.path, lambda handler: handler.reply(status=404))(self)

    def reply(
        self,
        body: bytes | str | list[Any] | dict[str, Any] = b"",
        kind: str = "application/json",
        status: int = 200,
        length: int | None = None,
        **headers: str,
    ) -> None:
        content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else None
        content = json.dumps(body).encode() if content is None else content
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        if length is not None:
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        scheme = "http"
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *arguments: object) -> None:
        """A client that goes away, as the tests have it do, is no error."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def other_server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def source(server: Server, **settings: Any) -> HttpApiSource:
    quick = {"base_url": server.url, "longest_wait_seconds": 0.0, "attempts": 3}
    return HttpApiSource(HttpApiConnection(**{**quick, **settings}))


def rows(api: HttpApiSource, item: str = "/t", **options: Any) -> list[dict[str, Any]]:
    return [row for batch in api.read_batches(item, **options) for row in batch.to_pylist()]


# Formats.


def test_a_json_list_is_read_in_batches_of_one_schema(server: Server) -> None:
    records = [{"id": number, "name": None if number < 3 else "é"} for number in range(7)]
    server.answers["/v1/t"] = lambda handler: handler.reply(records)
    batches = list(source(server, base_url=f"{server.url}/v1").read_batches("t", batch_rows=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert {str(batch.schema) for batch in batches} == {"id: int64\nname: string"}
    assert [row for batch in batches for row in batch.to_pylist()] == records


def test_records_stand_where_the_connection_says(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply({"data": {"items": [{"a": 1}]}})
    assert rows(source(server, records="data.items")) == [{"a": 1}]
    with pytest.raises(SourceDataError, match=r"nothing at 'data\.rows'"):
        rows(source(server, records="data.rows"))
    with pytest.raises(SourceDataError, match="no list of objects"):
        rows(source(server))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-ndjson", '{"a": 1, "b": 0.5}\n\n{"a": 2, "b": 1.5}\n'),
        ("text/csv; charset=utf-8", "a,b\n1,0.5\n2,1.5\n"),
        ("application/vnd.api+json", '[{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]'),
    ],
)
def test_the_media_type_says_the_format(server: Server, kind: str, body: str) -> None:
    server.answers["/t"] = lambda handler: handler.reply(body, kind)
    assert rows(source(server)) == [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}]
    assert rows(source(server), columns=["b"]) == [{"b": 0.5}, {"b": 1.5}]


@pytest.mark.parametrize(
    ("kind", "body", "columns"),
    [
        ("text/csv", "a,b\n", ["a", "b"]),
        ("application/x-ndjson", "", []),
        ("application/json", "[]", []),
    ],
)
def test_a_table_without_rows_is_one_empty_batch(
    server: Server, kind: str, body: str, columns: list[str]
) -> None:
    server.answers["/t"] = lambda handler: handler.reply(body, kind)
    [batch] = source(server).read_batches("/t")
    assert (batch.num_rows, batch.schema.names) == (0, columns)


def test_a_schema_is_kept_to(server: Server) -> None:
    schema = pa.schema([("code", pa.string()), ("at", pa.timestamp("us", "UTC"))])
    expected = [{"code": "007", "at": datetime(2026, 11, 21, 8, 30, tzinfo=UTC)}]
    for kind, body in (
        ("text/csv", "code,at,more\n007,2026-11-21T08:30:00Z,1\n"),
        ("application/json", '[{"code": "007", "at": "2026-11-21T08:30:00Z", "more": 1}]'),
    ):
        server.answers["/t"] = lambda handler, body=body, kind=kind: handler.reply(body, kind)
        assert rows(source(server), schema=schema) == expected


@pytest.mark.parametrize(
    ("kind", "body", "complaint"),
    [
        ("application/x-ndjson", '{"a": 1}\n{"a": 2}\n{"a": 2.5}\n', "column a: "),
        ("application/x-ndjson", '{"a": 1}\n{"a": 2}\n{"a": "x"}\n', "column a: "),
        ("application/x-ndjson", '{"a": 1}\n{"a": 2}\n{"a": 3, "new": 1}\n', "new field new"),
        ("application/x-ndjson", '{"a": 1}\n{"a": 2}\n{"a": true}\n', "bool where int64 is expected"),
        ("application/x-ndjson", '{"a": "1"}\n{"a": "2"}\n{"a": 3}\n', "int64 where string is expected"),
        ("application/x-ndjson", '{"a": 0.5}\n{"a": 1}\n{"a": 9007199254740993}\n', "column a: "),
        ("application/x-ndjson", '{"a": 1}\n{"a"', "line 2 is no JSON object"),
        ("application/x-ndjson", "[1]\n", "line 1 is no JSON object"),
        ("application/json", '[{"a": 1}', "not JSON"),
        ("application/json", '[{"a": 1}, 2]', "no list of objects"),
        ("application/json", '[{"a": 99999999999999999999999999}]', "column a: "),
        ("text/csv", "a,b\n1\n", "Expected 2 columns, got 1"),
        ("text/csv", "", "Empty CSV file"),
    ],
)
def test_rows_that_do_not_fit_are_refused_not_lost(
    server: Server, kind: str, body: str, complaint: str
) -> None:
    server.answers["/t"] = lambda handler: handler.reply(body, kind)
    with pytest.raises(SourceDataError, match=complaint):
        rows(source(server), batch_rows=2)


def test_a_column_that_is_not_there_is_named(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply([{"a": 1}])
    with pytest.raises(SourceDataError, match=r"no column b \(there are: a\)"):
        rows(source(server), columns=["b"])


@pytest.mark.parametrize("kind", ["text/html", "image/png", ""])
def test_a_wrong_content_type_is_refused(server: Server, kind: str) -> None:
    server.answers["/t"] = lambda handler: handler.reply("<html>Please log in</html>", kind)
    with pytest.raises(SourceDataError, match=f"expected, the answer is {kind or 'of no stated type'}"):
        rows(source(server))


def test_a_stated_format_takes_a_plain_file_but_no_other_format(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply("a\n1\n", handler.query["kind"])
    assert rows(source(server, format="csv"), "/t?kind=application/octet-stream") == [{"a": 1}]
    with pytest.raises(SourceDataError, match="CSV expected, the answer is application/json"):
        rows(source(server, format="csv"), "/t?kind=application/json")


# Pages.


def test_a_cursor_leads_through_all_pages(server: Server) -> None:
    pages = {
        "": {"items": [{"a": 1}], "next": {"at": "p/2&x"}},
        "p/2&x": {"items": [], "next": {"at": 3}},
        "3": {"items": [{"a": 2}, {"a": 3}], "next": {"at": None}},
    }
    server.answers["/t"] = lambda handler: handler.reply(pages[handler.query.get("from", "")])
    api = source(server, records="items", pagination="cursor", cursor_path="next.at", cursor_parameter="from")
    assert rows(api, "/t?size=2") == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert len(server.asked) == 3


def test_numbered_pages_end_with_the_first_empty_one(server: Server) -> None:
    pages = {"0": [{"a": 1}], "1": [{"a": 2}], "2": []}
    server.answers["/t"] = lambda handler: handler.reply(pages[handler.query.get("p", "0")])
    assert rows(source(server, pagination="page", page_parameter="p", first_page=0)) == [{"a": 1}, {"a": 2}]


def test_links_lead_through_all_pages(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply(
        [{"a": 1}], Link='</u?n=2>; rel="next", </t>; rel="first"'
    )
    server.answers["/u"] = lambda handler: handler.reply([{"a": 2}])
    assert rows(source(server, pagination="link")) == [{"a": 1}, {"a": 2}]


def test_pages_that_lead_in_a_circle_end(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply([{"a": 1}], Link='</t>; rel="next"')
    with pytest.raises(SourceDataError, match="in a circle"):
        rows(source(server, pagination="link"))


def test_more_pages_than_allowed_are_an_error_not_a_short_table(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply([{"a": 1}])
    with pytest.raises(SourceDataError, match=r"more than 3 pages \(max_pages\)"):
        rows(source(server, pagination="page", max_pages=3))
    assert len(server.asked) == 3


def test_a_page_that_fails_is_asked_for_again_alone(server: Server) -> None:
    def answer(handler: Handler) -> None:
        if handler.count == 2:
            handler.reply(status=502)
        else:
            handler.reply({"1": [{"a": 1}], "2": [{"a": 2}], "3": []}[handler.query.get("page", "1")])

    server.answers["/t"] = answer
    assert rows(source(server, pagination="page")) == [{"a": 1}, {"a": 2}]
    assert len(server.asked) == 4


# Faults.


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_outlived(server: Server, status: int, caplog: pytest.LogCaptureFixture) -> None:
    server.answers["/t"] = lambda handler: (
        handler.reply(status=status) if handler.count < 3 else handler.reply([{"a": 1}])
    )
    with caplog.at_level(logging.WARNING, logger="data_source_connectors"):
        assert rows(source(server)) == [{"a": 1}]
    assert [f"attempt {n} of 3 failed" in caplog.messages[n - 1] for n in (1, 2)] == [True, True]


def test_a_lasting_fault_is_named_after_the_last_attempt(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply(status=503)
    with pytest.raises(SourceUnavailableError, match=r"/t: HTTP 503 Service Unavailable$"):
        rows(source(server), "/t?q=private")
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501, 204, 299])
def test_a_refusal_is_not_asked_again(server: Server, status: int) -> None:
    server.answers["/t"] = lambda handler: handler.reply(status=status)
    with pytest.raises(SourceRefusedError, match=f"HTTP {status} "):
        rows(source(server))
    assert len(server.asked) == 1


def test_a_source_that_asks_for_patience_gets_it_or_is_left(server: Server) -> None:
    server.answers["/t"] = lambda handler: (
        handler.reply(status=429, Retry_After="1") if handler.count == 1 else handler.reply([{"a": 1}])
    )
    start = time.monotonic()
    assert rows(source(server, longest_wait_seconds=1.0)) == [{"a": 1}]
    assert time.monotonic() - start >= 1.0
    server.answers["/u"] = lambda handler: handler.reply(status=503, Retry_After="3600")
    with pytest.raises(SourceUnavailableError, match="asks to come back after 3600 s"):
        rows(source(server, longest_wait_seconds=1.0), "/u")
    assert [path for path, _ in server.asked].count("/u") == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert retry_after_seconds("Sat, 21 Nov 2026 00:02:00 GMT", now) == 120.0
    assert retry_after_seconds("Fri, 20 Nov 2026 00:00:00 GMT", now) == 0.0
    assert [retry_after_seconds(text, now) for text in ("7", None, "soon", "-3")] == [7.0, None, None, None]


def test_a_truncated_body_is_fetched_again_whole(server: Server) -> None:
    whole = "".join(json.dumps({"a": number}) + "\n" for number in range(1000))
    server.answers["/t"] = lambda handler: (
        handler.reply(whole[:3000], "application/x-ndjson", length=len(whole))
        if handler.count == 1
        else handler.reply(whole, "application/x-ndjson")
    )
    assert [row["a"] for row in rows(source(server), batch_rows=10)] == list(range(1000))
    server.answers["/u"] = lambda handler: handler.reply(
        whole[:3000], "application/x-ndjson", length=len(whole)
    )
    with pytest.raises(SourceUnavailableError, match=r"without sending complete"):
        next(iter(source(server).read_batches("/u", batch_rows=10)))


def test_a_silent_server_is_left_after_the_timeout(server: Server) -> None:
    server.answers["/t"] = lambda handler: time.sleep(0.5)
    start = time.monotonic()
    with pytest.raises(SourceUnavailableError, match="timed out"):
        rows(source(server, read_timeout_seconds=0.1, attempts=2))
    assert time.monotonic() - start < 0.9


def test_a_body_that_drips_without_end_is_left_after_the_total_timeout(server: Server) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/csv")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"a")
            time.sleep(0.02)

    server.answers["/t"] = drip
    with pytest.raises(SourceUnavailableError, match=r"not whole after 0\.1 s"):
        rows(source(server, total_timeout_seconds=0.1, attempts=1))


def test_a_server_that_is_down_is_named(server: Server) -> None:
    api = source(server)
    server.stop()
    with pytest.raises(SourceUnavailableError, match=rf"{server.url}/t: .*refused"):
        rows(api)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server, packed: bool) -> None:
    body = b"a\n" + b"1\n" * 5_000_000

    def answer(handler: Handler) -> None:
        if packed:
            handler.reply(gzip.compress(body, 1), "text/csv", Content_Encoding="gzip")
        else:
            handler.reply(body, "text/csv")

    server.answers["/t"] = answer
    with pytest.raises(SourceDataError, match=r"more than 100000 bytes \(max_body_bytes\)"):
        rows(source(server, max_body_bytes=100_000))
    server.answers["/u"] = lambda handler: handler.reply([{"a": "x" * 2000}])
    with pytest.raises(SourceDataError, match=r"more than 1000 \(max_page_bytes\)"):
        rows(source(server, max_page_bytes=1000), "/u")


def test_a_large_stream_is_read_in_bounded_memory(server: Server) -> None:
    line = "2026-11-21T08:30:00Z," + "x" * 200 + "\n"
    body = ("at,text\n" + line * 150_000).encode()
    server.answers["/t"] = lambda handler: handler.reply(body, "text/csv")
    pool = pa.default_memory_pool()
    peak = count = 0
    before = pool.bytes_allocated()
    for batch in source(server).read_batches("/t", batch_rows=5000):
        count += batch.num_rows
        peak = max(peak, pool.bytes_allocated() - before)
        del batch
    assert count == 150_000
    assert len(body) > 30_000_000
    assert peak < len(body) / 3


def test_redirects_are_followed_but_not_without_end(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply(status=302, Location="/u")
    server.answers["/u"] = lambda handler: handler.reply([{"a": 1}])
    server.answers["/loop"] = lambda handler: handler.reply(status=307, Location="/loop")
    server.answers["/away"] = lambda handler: handler.reply(status=301, Location="ftp://127.0.0.1/x")
    assert rows(source(server)) == [{"a": 1}]
    with pytest.raises(SourceRefusedError, match="more than 5 redirects"):
        rows(source(server), "/loop")
    with pytest.raises(SourceRefusedError, match="unsupported protocol"):
        rows(source(server), "/away")


# Who gets the secret.


def basic(secret: str) -> str:
    return base64.b64encode(f"kim:{secret}".encode()).decode()


LOGINS: list[tuple[dict[str, str], str, str]] = [
    ({"auth": "bearer", "token": SECRET}, "authorization", f"Bearer {SECRET}"),
    ({"auth": "basic", "username": "kim", "password": SECRET}, "authorization", f"Basic {basic(SECRET)}"),
    ({"auth": "api_key", "api_key": SECRET, "api_key_header": "X-Key"}, "x-key", SECRET),
]


@pytest.mark.parametrize(("login", "header", "value"), LOGINS, ids=["bearer", "basic", "api key"])
def test_a_login_goes_to_its_own_origin_only(
    server: Server, other_server: Server, login: dict[str, str], header: str, value: str
) -> None:
    server.answers["/t"] = lambda handler: handler.reply(status=302, Location="/u")
    server.answers["/u"] = lambda handler: handler.reply(status=302, Location=f"{other_server.url}/v")
    other_server.answers["/v"] = lambda handler: handler.reply([{"a": 1}])
    assert rows(source(server, **login)) == [{"a": 1}]
    sent = [{name.lower(): text for name, text in headers.items()}.get(header) for _, headers in server.asked]
    assert sent == [value, value]
    assert len(other_server.asked) == 1
    assert SECRET not in str(other_server.asked)
    assert basic(SECRET) not in str(other_server.asked)


def test_neither_an_item_nor_a_next_page_leads_to_another_origin(
    server: Server, other_server: Server
) -> None:
    server.answers["/t"] = lambda handler: handler.reply(
        [{"a": 1}], Link=f'<{other_server.url}/t>; rel="next"'
    )
    with pytest.raises(SourceRefusedError, match="next page is on another host"):
        rows(source(server, pagination="link"))
    with pytest.raises(SourceRefusedError, match="not of the origin"):
        rows(source(server), f"{other_server.url}/t")
    assert other_server.asked == []
    assert rows(source(server), f"{server.url}/t") == [{"a": 1}]


def test_what_is_no_url_is_refused(server: Server) -> None:
    server.answers["/t"] = lambda handler: handler.reply([{"a": 1}], Link='<http://h:port/>; rel="next"')
    with pytest.raises(SourceDataError, match="Invalid port"):
        rows(source(server, pagination="link"))
    for item in ("http://h:port/t", "t\x00"):
        with pytest.raises(SourceRefusedError, match="is no path or URL"):
            rows(source(server), item)
    with pytest.raises(SourceRefusedError, match="not of the origin"):
        rows(source(server), "//elsewhere.example.org/t")


def test_a_file_of_certificates_that_cannot_be_used_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    for name, reason in (("none.pem", "No such file"), ("empty.pem", "certificate")):
        with pytest.raises(SourceRefusedError, match=f"ca_file .*{name}: .*{reason}"):
            rows(source(server, ca_file=tmp_path / name))


@pytest.mark.parametrize(("login", "_header", "_value"), LOGINS, ids=["bearer", "basic", "api key"])
def test_no_log_error_or_representation_shows_a_secret(
    server: Server,
    login: dict[str, str],
    _header: str,
    _value: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    echo = {"Location": f"http://{SECRET}:{SECRET}@127.0.0.1:1/?k={SECRET}", "X-Echo": SECRET}
    server.answers["/busy"] = lambda handler: handler.reply(SECRET, status=503)
    server.answers["/refused"] = lambda handler: handler.reply(SECRET, status=401, **echo)
    server.answers["/moved"] = lambda handler: handler.reply(status=302, **echo)
    server.answers["/wrong"] = lambda handler: handler.reply(f'[{{"a": 1}}, {{"a": "{SECRET}"}}]')
    server.answers["/text"] = lambda handler: handler.reply(f'{{"a": {SECRET}', "application/x-ndjson")
    api = source(server, **login, attempts=2)
    seen = [repr(api), str(api), repr(api.connection), str(api.connection), api.connection.model_dump_json()]
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.DEBUG, logger="data_source_connectors")
    for item in ("/busy", "/refused", "/moved", "/wrong", "/text", f"/refused?key={SECRET}", f"/{SECRET}"):
        with pytest.raises(SourceError) as error:
            rows(api, item)
        seen += [str(error.value), repr(error.value), *traceback.format_exception(error.value)]
    shown = "\n".join([*seen, *caplog.messages])
    assert "attempt 1 of 2 failed" in shown
    assert SECRET not in shown.replace(f"/{SECRET}", "")
    assert basic(SECRET) not in shown


@pytest.mark.parametrize(("login", "_header", "_value"), LOGINS, ids=["bearer", "basic", "api key"])
def test_no_library_logs_a_login_at_any_level(
    server: Server, login: dict[str, str], _header: str, _value: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/t"] = lambda handler: handler.reply(
        [{"a": 1}], status=200 if handler.count == 2 else 503
    )
    with caplog.at_level(logging.DEBUG):
        assert rows(source(server, **login)) == [{"a": 1}]
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    assert SECRET not in caplog.text
    assert basic(SECRET) not in caplog.text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"base_url": f"http://kim:{SECRET}@127.0.0.1"}, "base_url"),
        ({"base_url": f"https://api.example.org?key={SECRET}"}, "base_url"),
        ({"base_url": "api.example.org"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "http://api.example.org", "auth": "bearer", "token": SECRET}, "base_url"),
        ({"auth": "bearer"}, "token"),
        ({"auth": "basic", "password": SECRET}, "username"),
        ({"auth": "none", "api_key": SECRET}, "api_key"),
        ({"auth": "bearer", "token": f"{SECRET}\r\nX: 1"}, "token"),
        ({"auth": "bearer", "token": SECRET, "api_key_header": "bad header"}, "api_key_header"),
        ({"attempts": 0}, "attempts"),
        ({"retries": 1}, "retries"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_by_name(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as error:
        HttpApiConnection(**{"base_url": "https://api.example.org", **settings})
    assert key in str(error.value)
    assert SECRET not in str(error.value)


# Certificates.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the test")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    (folder / "cert.pem").write_bytes(built.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_only_a_trusted_certificate_is_spoken_to(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(context)
    server.answers["/t"] = lambda handler: handler.reply([{"a": 1}])
    login = {"auth": "bearer", "token": SECRET}
    try:
        with pytest.raises(SourceRefusedError, match="CERTIFICATE_VERIFY_FAILED") as error:
            rows(source(server, **login))
        assert server.asked == []
        assert SECRET not in str(error.value)
        assert rows(source(server, ca_file=certificate[0], **login)) == [{"a": 1}]
        store = {"endpoint_url": server.url, "access_key": "id", "secret_key": SECRET, "attempts": 1}
        with pytest.raises(SourceRefusedError, match="SSL peer certificate") as error:
            list(ObjectStore(ObjectStoreConnection(**store)).list("bucket"))
        assert SECRET not in str(error.value)
        assert len(server.asked) == 1
    finally:
        server.stop()


def test_an_api_is_previewed_by_the_name_of_its_connection(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["/v1/rates"] = lambda handler: handler.reply(
        {"data": [{"currency": "EUR", "rate": 1.0}, {"currency": "USD", "rate": 1.1}]}
    )
    (tmp_path / "connections.ini").write_text(
        f"[rates]\ntype = http\nbase_url = {server.url}/v1\nrecords = data\n"
        "auth = bearer\ntoken = ${RATES_TOKEN}\nattempts = 1\n"
    )
    monkeypatch.setenv("CONNECTIONS_FILE", str(tmp_path / "connections.ini"))
    monkeypatch.setenv("RATES_TOKEN", SECRET)
    assert preview.main(["rates", "rates", "--rows", "1"]) == 0
    assert capsys.readouterr().out.split() == [
        "currency", "string", "rate", "double", "currency", "rate", "EUR", "1.0",
    ]  # fmt: skip
    assert server.asked[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert preview.main(["rates", "https://elsewhere.example.org/rates"]) == 1
    assert "not of the origin" in capsys.readouterr().err
