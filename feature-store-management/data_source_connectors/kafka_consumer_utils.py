"""Clients of the Kafka-protocol broker: settings, topics, consumers and producers that hold on, true lag.

Written for Apache Kafka and for the embedded stack's broker alike. The latter's end offsets and offsets by
time are not to be trusted, so nothing here asks for them: how far a log reaches is what a fetch says
(`highwater`).

BrokerUnavailableError is the one error of its own; others are `kafka.errors.KafkaError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, TopicAlreadyExistsError
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

BOOTSTRAP_TIMEOUT_MS = 10_000
DELIVERY_TIMEOUT_MS = 30_000
# A fetch takes one partition's share at most, so that partitions are read side by side.
PARTITION_FETCH_BYTES = 256 * 1024
# kafka-python takes checksums in Python where the package crc32c is missing: a third of a processor's time.
# Then they are left to the broker, which checks every batch it takes, and to TCP.
HAS_FAST_CHECKSUM = find_spec("crc32c") is not None


class BrokerUnavailableError(Exception):
    """No broker answers; the message names the addresses."""


class KafkaSettings(BaseSettings):
    """Where the broker is, from the environment variables `KAFKA_*`."""

    model_config = SettingsConfigDict(env_prefix="KAFKA_", frozen=True, hide_input_in_errors=True)

    bootstrap_servers: str = Field(min_length=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = None
    proxy_url: str | None = Field(default=None, pattern="^(socks5h?|http)://")
    # The embedded broker answers when half of this is over, and the sooner it must, the less it finds.
    fetch_max_wait_ms: int = Field(default=100, ge=1, le=10_000)
    linger_ms: int = Field(default=20, ge=0, le=1_000)
    session_timeout_ms: int = Field(default=6_000, ge=1_000)

    def client_options(self) -> dict[str, Any]:
        """Return what every client is told; unset options keep the library's defaults."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "security_protocol": self.security_protocol,
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "reconnect_backoff_ms": 100,
            "reconnect_backoff_max_ms": 2_000,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl_cafile": self.ssl_cafile,
            "proxy_url": self.proxy_url,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Topic:
    """A topic as it is created where it does not stand yet."""

    name: str
    partitions: int
    configs: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def _reachable(settings: KafkaSettings) -> Iterator[None]:
    try:
        yield
    except (KafkaConnectionError, KafkaTimeoutError, TimeoutError) as error:
        raise BrokerUnavailableError(f"no broker answers at {settings.bootstrap_servers}: {error}") from error


def ensure_topics(settings: KafkaSettings, topics: Iterable[Topic]) -> None:
    """Create the topics that do not stand yet, replicated as the broker does by default."""
    with _reachable(settings):
        admin = KafkaAdminClient(**settings.client_options())
        try:
            standing = set(admin.list_topics())
            for topic in topics:
                if topic.name in standing:
                    continue
                try:
                    admin.create_topics(
                        [NewTopic(topic.name, topic.partitions, topic_configs=dict(topic.configs))]
                    )
                except TopicAlreadyExistsError:
                    # Another process was faster.
                    continue
        finally:
            admin.close()


class Consumer(KafkaConsumer):
    """kafka-python's consumer, in which a partition that was paused half-read goes on when it is resumed.

    The library keeps what is left of such a partition aside, asks the broker for no more of it, and takes it
    up again only while no other partition's messages are in line. It counts a list that was read to its end
    as one in line, so that where nothing else comes, the partition stays silent for ever (seen in 3.0).
    """

    def poll(
        self, timeout_ms: int = 0, max_records: int | None = None, update_offsets: bool = True
    ) -> dict[TopicPartition, list[Any]]:
        """Return messages by partition, as the library does."""
        if not self._fetcher._next_partition_records:
            self._fetcher._next_partition_records = None
        return super().poll(timeout_ms, max_records, update_offsets)


def open_consumer(settings: KafkaSettings, *, group: str | None, **options: Any) -> Consumer:
    """Return a consumer that commits only what it is told to, and starts where the log does."""
    with _reachable(settings):
        return Consumer(
            **settings.client_options(),
            **{
                "group_id": group,
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                "fetch_max_wait_ms": settings.fetch_max_wait_ms,
                "max_partition_fetch_bytes": PARTITION_FETCH_BYTES,
                "check_crcs": HAS_FAST_CHECKSUM,
                "session_timeout_ms": settings.session_timeout_ms,
                "heartbeat_interval_ms": settings.session_timeout_ms // 3,
                # A group is joined while the broker is asked; an exception then ends the session.
                "max_poll_interval_ms": 300_000,
                **options,
            },
        )


def open_producer(settings: KafkaSettings, **options: Any) -> KafkaProducer:
    """Return a producer whose messages count as sent once every copy of the log has them."""
    with _reachable(settings):
        return KafkaProducer(
            **settings.client_options(),
            **{
                "acks": "all",
                "linger_ms": settings.linger_ms,
                "batch_size": 128 * 1024,
                "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
                "request_timeout_ms": 10_000,
                "max_block_ms": DELIVERY_TIMEOUT_MS,
                # A dead letter carries its headers beside the largest message that came.
                "max_request_size": 2 * 1024 * 1024,
                **options,
            },
        )


def behind(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return how many messages of a partition are not read, as of the last fetch; None before the first."""
    end = consumer.highwater(partition)
    return None if end is None else max(0, end - consumer.position(partition))
