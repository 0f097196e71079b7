"""What the stream's commands read from the environment: `STREAM_*`, Redis and Feast's project."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from data_source_connectors.kafka_consumer_utils import Topic

from .aggregation_contract import StreamDefinition
from .running_totals import Limits

DEAD_LETTERS = ".dead-letter.v1"
DAY_MS = 86_400_000


class RedisSettings(BaseSettings):
    """The online store, from `REDIS_*`."""

    model_config = SettingsConfigDict(env_prefix="REDIS_", frozen=True, hide_input_in_errors=True)

    host: str = Field(min_length=1)
    port: int = Field(default=6379, ge=1, le=65535)
    password: SecretStr | None = None
    timeout_seconds: float = Field(default=5, gt=0)


class FeastSettings(BaseSettings):
    """Whose keys and tables are written: `FEAST_PROJECT`, `FEATURE_STORE_SCHEMA_PREFIX`."""

    model_config = SettingsConfigDict(frozen=True)

    feast_project: str = Field(default="mlops_platform", min_length=1)
    feature_store_schema_prefix: str = Field(default="", pattern="^([a-z][a-z0-9_]{0,40})?$")


class StreamSettings(BaseSettings):
    """The stream itself. `topic_prefix` and `consumer_group` let a rehearsal stand beside the real one."""

    model_config = SettingsConfigDict(env_prefix="STREAM_", frozen=True)

    topic_prefix: str = Field(default="", pattern="^[a-z0-9._-]{0,60}$")
    consumer_group: str = Field(default="transactions-today", min_length=1)
    topic_partitions: int = Field(default=2, ge=1, le=1024)
    late_days: int = Field(default=2, ge=0, le=31)
    ahead_seconds: int = Field(default=300, ge=0, le=86_400)
    commit_interval_ms: int = Field(default=250, ge=1)
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)

    @property
    def limits(self) -> Limits:
        """How late and how early an event may be."""
        return Limits(self.late_days, self.ahead_seconds * 1_000_000)

    def topic(self, name: str) -> str:
        """Return the topic's name on the broker."""
        return self.topic_prefix + name

    def dead_letter_topic(self, definition: StreamDefinition) -> str:
        """Return where refused messages go: `transactions.v1` -> `transactions.dead-letter.v1`."""
        return self.topic(definition.views[0].topic.rpartition(".v")[0] + DEAD_LETTERS)

    def topics(self, definition: StreamDefinition) -> list[Topic]:
        """Return the stream's topics as they are created.

        The log must reach back further than the days that are kept. Where events arrive, a broker that can
        sets the time of arrival itself; a forwarded message keeps it.
        """
        retention = {"retention.ms": str(max(7, 2 * (self.late_days + 1)) * DAY_MS)}
        times = ["LogAppendTime"] + ["CreateTime"] * (len(definition.views) - 1)
        topics = [
            Topic(
                self.topic(view.topic), self.topic_partitions, {**retention, "message.timestamp.type": time}
            )
            for view, time in zip(definition.views, times, strict=True)
        ]
        large = {"max.message.bytes": str(2 * 1024 * 1024)}
        return [*topics, Topic(self.dead_letter_topic(definition), 1, large)]
