"""Health checks: each returns when its server does real work, and raises NotReadyError until then.

The client libraries are imported where they are used: `exec` and `env` need none of them and must be quick.
"""

from __future__ import annotations

import json
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

SECONDS = 2.0


class NotReadyError(Exception):
    """The server does not answer, or not as it should: ask again later."""


class RefusedError(Exception):
    """The server refuses the stack's own credentials: waiting won't help."""


REFUSED = "its data was made with other secrets: put secrets.json back, or `reset` the instance"


def postgres(port: int, user: str, password: str, database: str) -> None:
    """Log in and run a query."""
    import psycopg

    try:
        with psycopg.connect(
            host="127.0.0.1", port=port, user=user, password=password, dbname=database, connect_timeout=2
        ) as connection:
            connection.execute("select 1")
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise RefusedError(REFUSED) from error
        raise NotReadyError(str(error).strip()) from error


def valkey(port: int, password: str) -> None:
    """Log in and ping; a server still loading its data is not ready."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    once = Retry(NoBackoff(), 0)
    try:
        with redis.Redis("127.0.0.1", port, password=password, socket_timeout=SECONDS, retry=once) as client:
            client.ping()
    except redis.AuthenticationError as error:
        raise RefusedError(str(error)) from error
    except redis.RedisError as error:
        raise NotReadyError(str(error)) from error


def s3_client(port: int, access_key: str, secret_key: str, region: str, seconds: float = SECONDS):  # type: ignore[no-untyped-def]
    """Return an S3 client of the object store without retries and with short timeouts."""
    import boto3
    import botocore.config

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        config=botocore.config.Config(
            connect_timeout=seconds,
            read_timeout=seconds,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def s3(port: int, access_key: str, secret_key: str, region: str) -> None:
    """List the buckets with the generated key."""
    import botocore.exceptions

    try:
        s3_client(port, access_key, secret_key, region).list_buckets()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise NotReadyError(str(error)) from error


def s3_writable(port: int, access_key: str, secret_key: str, region: str, buckets: Sequence[str]) -> None:
    """Create the buckets that are missing, then write, read and delete an object.

    The store answers before its volumes joined it; until then writes fail.
    """
    import botocore.exceptions

    client = s3_client(port, access_key, secret_key, region, seconds=10)
    try:
        present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for bucket in buckets:
            if bucket not in present:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=".stack/probe", Body=b"probe")
            if client.get_object(Bucket=bucket, Key=".stack/probe")["Body"].read() != b"probe":
                raise NotReadyError(f"bucket {bucket} does not give back what was put into it")
            client.delete_object(Bucket=bucket, Key=".stack/probe")
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise NotReadyError(str(error)) from error


def broker(port: int) -> None:
    """Ask a Kafka-protocol broker for its API versions (request 18, version 0)."""
    request = struct.pack(">hhih", 18, 0, 7, 5) + b"stack"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = connection.recv(10, socket.MSG_WAITALL)
    except OSError as error:
        raise NotReadyError(str(error)) from error
    if len(reply) < 10 or struct.unpack(">ih", reply[4:10]) != (7, 0):
        raise NotReadyError(f"no Kafka reply: {reply!r}")


def http_ok(url: str) -> None:
    """Expect status 200 from `url`, past any proxy settings."""
    status, body = http_status(url)
    if status != 200:
        raise NotReadyError(f"{url} answers {status}: {body[:200]}")


def http_status(url: str) -> tuple[int, str]:
    """Return status and body of a GET; raises NotReadyError when nothing answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=SECONDS) as reply:
            return reply.status, reply.read(65536).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(65536).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        raise NotReadyError(f"{url}: {error}") from error


def wait_http(url: str, seconds: float, failure: str) -> None:
    """Wait until `url` answers 200; after `seconds` raises TimeoutError with `failure` and why."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return http_ok(url)
        except NotReadyError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{failure}: {error}") from error
        time.sleep(0.2)


def readiness(url: str) -> str:
    """Return `ready`, or why a service is alive but not ready: the failed checks its /readyz names."""
    try:
        status, body = http_status(url)
    except NotReadyError as error:
        return str(error)
    if status == 200:
        return "ready"
    try:
        document = json.loads(body)
    except json.JSONDecodeError:
        return f"not ready ({status})"
    checks = document.get("checks") if isinstance(document, dict) else None
    failed = [name for name, passed in checks.items() if not passed] if isinstance(checks, dict) else []
    return f"not ready: {', '.join(failed)}" if failed else f"not ready ({status})"
