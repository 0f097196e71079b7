"""Tables behind an HTTP API: JSON pages, NDJSON or CSV, fetched with GET and read in record batches.

A body is taken whole into a temporary file before a row of it is yielded, so a broken or slow answer is asked
for again without a row lost or doubled, and memory stays bounded. Credentials go to the connection's own
origin only, also where a redirect leads elsewhere. Errors are SourceError.
"""

from __future__ import annotations

import base64
import email.utils
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Literal

import httpx
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from .batch_source import DEFAULT_BATCH_ROWS
from .errors import SourceDataError, SourceError, SourceRefusedError, SourceUnavailableError, masked
from .http_pages import Page, next_page
from .retry_policy import RetryPolicy
from .text_records import Format, csv_batches, json_batches, json_document, ndjson_batches, records_of

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REDIRECTS = 5
IN_MEMORY_BYTES = 2**20
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
MEDIA_TYPES: dict[str, Format] = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/x-jsonlines": "ndjson",
    "text/csv": "csv",
    "application/csv": "csv",
}
# What a file server says of any file: good where the connection states the format.
ANY_FILE = frozenset({"", "text/plain", "application/octet-stream"})


class HttpApiConnection(BaseModel):
    """Where an HTTP API is, how it knows us, and how it gives its tables."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str
    auth: Literal["none", "bearer", "basic", "api_key"] = "none"
    token: SecretStr | None = None
    username: str | None = None
    password: SecretStr | None = None
    api_key: SecretStr | None = None
    api_key_header: str = Field(default="X-API-Key", pattern=r"^[A-Za-z0-9-]+$")
    allow_unencrypted: bool = False
    ca_file: Path | None = None

    format: Literal["auto", "json", "ndjson", "csv"] = "auto"
    # Where the list of records stands in a JSON reply, e.g. data.items; empty: the reply is the list.
    records: str = ""
    pagination: Literal["none", "cursor", "page", "link"] = "none"
    cursor_path: str = "next_cursor"
    cursor_parameter: str = "cursor"
    page_parameter: str = "page"
    first_page: int = Field(default=1, ge=0)
    max_pages: int = Field(default=10_000, ge=1)

    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    # Of silence between two parts of an answer.
    read_timeout_seconds: float = Field(default=30.0, gt=0)
    # From the first byte asked for to the last one received.
    total_timeout_seconds: float = Field(default=600.0, gt=0)
    # A JSON page is decoded in memory, NDJSON and CSV stream from the temporary file.
    max_page_bytes: int = Field(default=32 * 2**20, ge=1)
    max_body_bytes: int = Field(default=4 * 2**30, ge=1)
    attempts: int = Field(default=4, ge=1, le=20)
    longest_wait_seconds: float = Field(default=30.0, ge=0)

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            url = httpx.URL(value)
        except httpx.InvalidURL:
            raise ValueError("is no URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("write http(s)://host/path")
        if url.userinfo or url.query:
            raise ValueError("a login or a query does not belong into the address; set auth and its keys")
        return value

    @field_validator("token", "password", "api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not (
            value.get_secret_value().isascii() and value.get_secret_value().isprintable()
        ):
            raise ValueError("has characters that no header may hold")
        return value

    @model_validator(mode="after")
    def _login_is_whole(self) -> HttpApiConnection:
        needed = {
            "none": (),
            "bearer": ("token",),
            "basic": ("username", "password"),
            "api_key": ("api_key",),
        }[self.auth]
        logins = ("token", "username", "password", "api_key")
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"{', '.join(missing)}: auth = {self.auth} needs it")
        if unused := [name for name in logins if getattr(self, name) is not None and name not in needed]:
            raise ValueError(f"{', '.join(unused)}: auth = {self.auth} has no use for it")
        url = httpx.URL(self.base_url)
        if (
            self.auth != "none"
            and url.scheme == "http"
            and url.host not in LOOPBACK
            and not self.allow_unencrypted
        ):
            raise ValueError(
                "base_url: a login over http can be read on the way; use https or allow_unencrypted"
            )
        return self

    def credentials(self) -> dict[str, str]:
        """Return the headers that say who asks; they hold the secret in clear."""
        match self.auth:
            case "bearer" if self.token:
                return {"Authorization": f"Bearer {self.token.get_secret_value()}"}
            case "basic" if self.password:
                login = f"{self.username}:{self.password.get_secret_value()}".encode()
                return {"Authorization": f"Basic {base64.b64encode(login).decode()}"}
            case "api_key" if self.api_key:
                return {self.api_key_header: self.api_key.get_secret_value()}
            case _:
                return {}

    def secrets(self) -> list[str]:
        """Return what no message may show: the secrets, and the forms in which they travel."""
        held = [secret.get_secret_value() for secret in (self.token, self.password, self.api_key) if secret]
        return [*held, *(value.rpartition(" ")[2] for value in self.credentials().values())]


@dataclass(frozen=True)
class Body:
    """A whole answer: where it came from, its media type, its link to the next page, and its bytes."""

    url: httpx.URL
    media_type: str
    next_link: str | None
    content: IO[bytes] = field(repr=False)


@dataclass(frozen=True)
class HttpApiSource:
    """An HTTP API whose tables are read as record batches."""

    connection: HttpApiConnection

    def read_batches(
        self,
        item: str,
        *,
        columns: Sequence[str] | None = None,
        batch_rows: int = DEFAULT_BATCH_ROWS,
        schema: pa.Schema | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows at a path below the base URL, or at a URL of the same origin (see BatchSource).

        Without a schema the first batch gives it; a later value or field that doesn't fit is refused, never
        converted or left out. Pages end with the source's own mark, and with `page` at the first empty one.
        """
        with self._client() as client:
            try:
                first = client.build_request("GET", item).url
            except httpx.InvalidURL as error:
                reason = masked(error, self.connection.secrets())
                raise SourceRefusedError(f"{item[:80]!r} is no path or URL: {reason}") from None
            # httpx would drop the host of `//host/path`.
            elsewhere = item.startswith("//") or _origin(first) != _origin(
                httpx.URL(self.connection.base_url)
            )
            if elsewhere:
                raise SourceRefusedError(
                    f"{self._place(first)}: not of the origin of {self.connection.base_url}"
                )
            try:
                yield from self._batches(client, first, columns, batch_rows, schema)
            except (pa.ArrowException, ValueError, httpx.InvalidURL) as error:
                raise SourceDataError(
                    f"{self._place(first)}: {masked(error, self.connection.secrets())}"
                ) from None

    def _batches(
        self,
        client: httpx.Client,
        url: httpx.URL,
        columns: Sequence[str] | None,
        batch_rows: int,
        schema: pa.Schema | None,
    ) -> Iterator[pa.RecordBatch]:
        body = self._fetch(client, url)
        match self._format(body):
            case "csv":
                with body.content:
                    yield from csv_batches(body.content, columns, batch_rows, schema)
            case "ndjson":
                with body.content:
                    yield from ndjson_batches(body.content, columns, batch_rows, schema)
            case _:
                records = (record for page in self._pages(client, body) for record in page)
                yield from json_batches(records, columns, batch_rows, schema)

    def _pages(self, client: httpx.Client, body: Body) -> Iterator[list[dict[str, Any]]]:
        """Yield the records of each page, one page in memory at a time."""
        stated = self.connection
        seen = {str(body.url)}
        for number in range(stated.max_pages):
            with body.content:
                document = json_document(body.content)
            records = records_of(document, stated.records)
            yield records
            page = Page(number, body.url, body.next_link, document, len(records))
            following = next_page(stated, page)
            if following is None:
                return
            if _origin(following) != _origin(body.url):
                raise SourceRefusedError(f"{self._place(body.url)}: its next page is on another host")
            if str(following) in seen:
                raise SourceDataError(f"{self._place(body.url)}: its pages lead in a circle")
            seen.add(str(following))
            if number + 1 < stated.max_pages:
                body = self._fetch(client, following)
                self._format(body)
        raise SourceDataError(f"{self._place(body.url)}: more than {stated.max_pages} pages (max_pages)")

    def _client(self) -> httpx.Client:
        stated = self.connection
        origin, credentials = _origin(httpx.URL(stated.base_url)), stated.credentials()

        def identify(request: httpx.Request) -> None:
            for name, value in credentials.items():
                request.headers.pop(name, None)
                if _origin(request.url) == origin:
                    request.headers[name] = value

        return httpx.Client(
            base_url=stated.base_url,
            timeout=httpx.Timeout(stated.read_timeout_seconds, connect=stated.connect_timeout_seconds),
            verify=self._trusted(),
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            headers={"User-Agent": "feature-store-management"},
            event_hooks={"request": [identify]},
        )

    def _trusted(self) -> ssl.SSLContext | bool:
        path = self.connection.ca_file
        try:
            return ssl.create_default_context(cafile=path) if path else True
        except OSError as error:  # an SSLError is one
            reason = error.strerror or "holds no certificate"
            raise SourceRefusedError(f"{self.connection.base_url}: ca_file {path}: {reason}") from None

    def _fetch(self, client: httpx.Client, url: httpx.URL) -> Body:
        policy = RetryPolicy(
            attempts=self.connection.attempts, longest_wait_seconds=self.connection.longest_wait_seconds
        )
        return policy.call(lambda: self._fetch_once(client, url), what=self._place(url))

    def _fetch_once(self, client: httpx.Client, url: httpx.URL) -> Body:
        content: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 (handed on)
        try:
            with client.stream("GET", url) as reply:
                self._refuse_status(reply)
                self._take(reply, content)
                media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
                return Body(reply.url, media_type, reply.links.get("next", {}).get("url"), content)
        except httpx.HTTPError as error:
            content.close()
            raise self._source_error(url, error) from None
        except BaseException:
            content.close()
            raise

    def _take(self, reply: httpx.Response, content: IO[bytes]) -> None:
        stated = self.connection
        deadline = time.monotonic() + stated.total_timeout_seconds
        size = 0
        for part in reply.iter_bytes():
            size += len(part)
            if size > stated.max_body_bytes:
                raise SourceDataError(
                    f"{self._place(reply.url)}: more than {stated.max_body_bytes} bytes (max_body_bytes)"
                )
            if time.monotonic() > deadline:
                raise SourceUnavailableError(
                    f"{self._place(reply.url)}: not whole after {stated.total_timeout_seconds:g} s"
                )
            content.write(part)
        content.seek(0)

    def _refuse_status(self, reply: httpx.Response) -> None:
        status = reply.status_code
        if status == HTTPStatus.OK:
            return
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "unknown status"
        message = f"{self._place(reply.url)}: HTTP {status} {phrase}"
        if status not in TRANSIENT:
            raise SourceRefusedError(message)
        after = retry_after_seconds(reply.headers.get("retry-after"))
        if after is not None:
            message += f", asks to come back after {after:.0f} s"
        raise SourceUnavailableError(message, retry_after_seconds=after)

    def _format(self, body: Body) -> Format:
        stated = self.connection.format
        media_type = body.media_type
        given = "json" if media_type.endswith("+json") else MEDIA_TYPES.get(media_type)
        if stated != "auto" and (given == stated or media_type in ANY_FILE):
            given = stated
        if given is None or stated not in ("auto", given):
            body.content.close()
            wanted = "JSON, NDJSON or CSV" if stated == "auto" else stated.upper()
            got = media_type or "of no stated type"
            raise SourceDataError(f"{self._place(body.url)}: {wanted} expected, the answer is {got}")
        size = body.content.seek(0, 2)
        body.content.seek(0)
        if given == "json" and size > self.connection.max_page_bytes:
            body.content.close()
            raise SourceDataError(
                f"{self._place(body.url)}: a page of {size} bytes, more than {self.connection.max_page_bytes}"
                " (max_page_bytes)"
            )
        return given

    def _place(self, url: httpx.URL) -> str:
        """Return the URL as shown to people: a query may hold what is nobody else's business."""
        return masked(
            url.copy_with(query=None, fragment=None, username="", password=""), self.connection.secrets()
        )

    def _source_error(self, url: httpx.URL, error: httpx.HTTPError) -> SourceError:
        reason = masked(error, self.connection.secrets()) or type(error).__name__
        message = f"{self._place(url)}: {reason}"
        if isinstance(error, httpx.TooManyRedirects):
            return SourceRefusedError(f"{self._place(url)}: more than {MAX_REDIRECTS} redirects")
        if isinstance(error, httpx.DecodingError):
            return SourceDataError(message)
        if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError) or _is_certificate_error(
            error
        ):
            return SourceRefusedError(message)
        return SourceUnavailableError(message)


def retry_after_seconds(header: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date; None where it says neither.

    >>> retry_after_seconds("120")
    120.0
    >>> retry_after_seconds("Wed, 21 Oct 2026 07:28:00 GMT", datetime(2026, 10, 21, 7, 27, tzinfo=UTC))
    60.0
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_certificate_error(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
