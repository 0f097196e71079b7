"""Parquet files in any S3-compatible object store: listed, read in batches, written whole or not at all.

Errors are SourceError. Timeouts and retries act on each request, also in the middle of a file (AWS's standard
strategy: exponential backoff with jitter).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from .batch_source import DEFAULT_BATCH_ROWS, sliced
from .errors import SourceDataError, SourceError, SourceRefusedError, SourceUnavailableError, masked

# Readers of a folder pass over names that begin so (Arrow, Spark and DuckDB alike).
DRAFT_PREFIX = "_draft-"
# What the store's answer says where asking again won't help; the rest may pass.
REFUSALS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "NO_SUCH_BUCKET",
    "NO_SUCH_KEY",
    "RESOURCE_NOT_FOUND",
    "SSL",
    "certificate",
)


class ObjectStoreConnection(BaseModel):
    """Where an S3-compatible object store is, and with which keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_url: str
    region: str = "us-east-1"
    access_key: SecretStr
    secret_key: SecretStr
    ca_file: Path | None = None
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    # Of silence: a large object may take longer.
    request_timeout_seconds: float = Field(default=30.0, gt=0)
    attempts: int = Field(default=4, ge=1, le=20)

    @field_validator("endpoint_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("write http(s)://host:port, without a login")
        return value


@dataclass(frozen=True)
class StoredObject:
    """One object: `bucket/key`, bytes, and the time of its last change in UTC."""

    path: str
    size: int
    modified_at: datetime


@dataclass(frozen=True)
class ObjectStore:
    """An object store whose Parquet files are read and written; a path is `bucket/key`."""

    connection: ObjectStoreConnection

    @cached_property
    def filesystem(self) -> fs.S3FileSystem:
        """The Arrow file system behind it."""
        stated = self.connection
        endpoint = urlsplit(stated.endpoint_url)
        return fs.S3FileSystem(
            access_key=stated.access_key.get_secret_value(),
            secret_key=stated.secret_key.get_secret_value(),
            region=stated.region,
            scheme=endpoint.scheme,
            endpoint_override=endpoint.netloc,
            connect_timeout=stated.connect_timeout_seconds,
            request_timeout=stated.request_timeout_seconds,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=stated.attempts),
            tls_ca_file_path=str(stated.ca_file) if stated.ca_file else None,
        )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects under a folder, in order of path; drafts of unfinished writes are left out."""
        with self._named_errors(prefix):
            found = self.filesystem.get_file_info(fs.FileSelector(prefix.rstrip("/"), recursive=True))
            for info in sorted(found, key=lambda info: info.path):
                if info.type == fs.FileType.File and not info.base_name.startswith(DRAFT_PREFIX):
                    yield StoredObject(info.path, info.size, info.mtime)

    def read_batches(
        self,
        item: str,
        *,
        columns: Sequence[str] | None = None,
        batch_rows: int = DEFAULT_BATCH_ROWS,
        where: pc.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a Parquet file, or of all under a folder in order of path (see BatchSource).

        Only the columns wanted are fetched, and only row groups whose statistics leave room for `where`; one
        row group is held at a time. The first file gives the schema.
        """
        with self._named_errors(item):
            table = ds.dataset(item.rstrip("/"), format="parquet", filesystem=self.filesystem)
            if not table.files:
                raise SourceRefusedError(f"{self._place(item)}: no Parquet file there")
            wanted = list(columns) if columns else None
            empty = True
            # One row group after the other: a scan of the whole reads ahead without a bound.
            for file in table.get_fragments(filter=where):
                for group in file.split_by_row_group(filter=where, schema=table.schema):
                    scanner = group.scanner(
                        schema=table.schema, columns=wanted, filter=where, batch_size=batch_rows
                    )
                    for batch in filter(len, scanner.to_batches()):
                        empty = False
                        yield from sliced(batch, batch_rows)
            if empty:
                shown = table.scanner(columns=wanted).projected_schema
                yield pa.RecordBatch.from_pylist([], schema=shown)

    def write_batches(self, path: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
        """Write batches as one Parquet file, replacing the former one in one step; return the rows written.

        Where anything fails on the way, the former file stays and nothing new is seen. The object is written
        beside its place, then copied there by the store, so it may be at most 5 GiB.
        """
        folder, _, name = path.rpartition("/")
        draft = f"{folder}/{DRAFT_PREFIX}{uuid4().hex}-{name}"
        rows = 0
        with self._named_errors(path):
            try:
                with pq.ParquetWriter(draft, schema, filesystem=self.filesystem) as writer:
                    for batch in batches:
                        if not batch.schema.equals(schema):
                            raise SourceDataError(f"{self._place(path)}: a batch is of another schema")
                        writer.write_batch(batch)
                        rows += batch.num_rows
                self.filesystem.copy_file(draft, path)
            finally:
                self._remove_draft(draft)
        return rows

    def _remove_draft(self, draft: str) -> None:
        if self.filesystem.get_file_info(draft).type == fs.FileType.File:
            self.filesystem.delete_file(draft)

    def _place(self, path: str) -> str:
        return f"object store {self.connection.endpoint_url}, {path}"

    @contextmanager
    def _named_errors(self, path: str) -> Iterator[None]:
        """Turn Arrow's errors into SourceError, without secrets."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise self._source_error(path, error) from None

    def _source_error(self, path: str, error: Exception) -> SourceError:
        stated = self.connection
        secrets = [stated.access_key.get_secret_value(), stated.secret_key.get_secret_value()]
        message = f"{self._place(path)}: {masked(error, secrets)}"
        if isinstance(error, pa.ArrowException):
            return SourceDataError(message)
        if isinstance(error, FileNotFoundError) or any(sign in str(error) for sign in REFUSALS):
            return SourceRefusedError(message)
        return SourceUnavailableError(message, retryable=False)
