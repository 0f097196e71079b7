"""A fraud service as a process on the real stack, its sinks behind proxies, and the count of its records."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psycopg
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from service_testkit import fraud_bundle
from stack_testkit import ServiceProcess, conninfo, setting, unique

from faults.acknowledged import AcknowledgedLoad
from faults.served_app import result
from faults.tcp_proxy import TcpProxy

SERVICE = "fraud_detection_api"
DRAIN_SECONDS = 120.0


class RecordedService:
    """The service, on a bundle of its own in its own spool: no registry is asked."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.name = unique("faults")
        self.folder = folder
        self.topic = self.name
        self.database = TcpProxy(setting("DECISIONS_DB_HOST"), int(setting("DECISIONS_DB_PORT")))
        broker = setting("KAFKA_BOOTSTRAP_SERVERS").split(":")
        self.broker = TcpProxy(broker[0], int(broker[1]), advertised=True)
        self.store = TcpProxy(setting("REDIS_HOST"), int(setting("REDIS_PORT")))
        self.spool = Path(settings.pop("spool_dir", folder / "spool"))
        self._put_model("fraud-detection-model")
        self.process = ServiceProcess(
            SERVICE, folder,
            **{
                "spool_dir": self.spool, "mlflow_tracking_uri": "http://127.0.0.1:9",
                "decisions_db_host": "127.0.0.1", "decisions_db_port": self.database.port,
                "kafka_bootstrap_servers": f"127.0.0.1:{self.broker.port}", "decisions_topic": self.topic,
                "redis_host": "127.0.0.1", "redis_port": self.store.port,
                "feast_project": self.name, "log_level": "WARNING", "model_poll_seconds": 60,
            } | settings,
        )  # fmt: skip

    def _put_model(self, name: str) -> None:
        """Leave what a service that ran before would have left: a bundle, and the note that it was good."""
        bundles = self.spool / "bundles"
        sha256 = fraud_bundle(self.folder / "bundle", model_name=name)
        bundles.mkdir(parents=True)
        shutil.move(self.folder / "bundle", bundles / sha256)
        own = self.spool / SERVICE
        own.mkdir(parents=True)
        note = {"name": name, "version": 1, "bundle_sha256": sha256}
        (own / "last_good.json").write_text(json.dumps(note))

    def load(self, **options: Any) -> AcknowledgedLoad:
        """Begin to send transactions."""
        return AcknowledgedLoad(self.process.port, self.name, **options)

    def drained(self, seconds: float = DRAIN_SECONDS, *, but: int = 0) -> float:
        """Wait until no more than `but` records are left in the spool; return how long that took.

        Under load some always are: what came since the last batch.
        """
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            text = self.process.http.get("/metrics").text
            waiting = [line.split()[1] for line in text.splitlines() if line.startswith("spool_records ")]
            if waiting and float(waiting[0]) <= but:
                return time.monotonic() - started
            time.sleep(0.1)
        raise AssertionError(f"records are left in the spool after {seconds} s:\n{self.process.log()}")

    def verify(self, load: AcknowledgedLoad) -> list[dict[str, Any]]:
        """Return what became of the acknowledged decisions, as lines of a report."""
        rows = self._rows()
        counts = Counter(row[0] for row in rows)
        stored = {row[0]: (row[1], row[2]) for row in rows}
        missing = [one for one in load.acknowledged if one not in stored]
        twice = [one for one, count in counts.items() if count > 1]
        different = [one for one, given in load.acknowledged.items() if stored.get(one, given) != given]
        keys = self._keys(set(load.acknowledged))
        return [
            result("acknowledged decisions", len(load.acknowledged), "decisions", None,
                   met=len(load.acknowledged) > 0),
            result("of them not in PostgreSQL", len(missing), "decisions", 0, met=not missing),
            result("recorded more than once in PostgreSQL", len(twice), "decisions", 0, met=not twice),
            result("recorded otherwise than acknowledged", len(different), "decisions", 0, met=not different),
            result("repeats answered otherwise", len(load.contradictions), "replies", 0,
                   met=not load.contradictions),
            result("of them not in Kafka", len(load.acknowledged.keys() - keys), "decisions", 0,
                   met=load.acknowledged.keys() <= keys.keys()),
            result("messages in Kafka", keys.total(), "messages", None, met=keys.total() > 0),
        ]  # fmt: skip

    def _rows(self) -> list[tuple[str, str, float | None]]:
        with psycopg.connect(conninfo()) as connection:
            return connection.execute(
                "select request_id, decision, score from decisions.decision_records "
                "where service = %s and request ->> 'transaction_id' = %s",
                (SERVICE, self.name),
            ).fetchall()

    def _keys(self, wanted: set[str], quiet_seconds: float = 20) -> Counter[str]:
        """Return how often each key is in the topic, once all wanted ones are or none comes any more."""
        consumer = KafkaConsumer(
            self.topic, bootstrap_servers=setting("KAFKA_BOOTSTRAP_SERVERS"), auto_offset_reset="earliest"
        )
        keys: Counter[str] = Counter()
        last = time.monotonic()
        try:
            while time.monotonic() - last < quiet_seconds:
                batch = consumer.poll(1000)
                keys.update(m.key.decode() for part in batch.values() for m in part)
                if batch:
                    last = time.monotonic()
                elif wanted <= keys.keys():
                    break
        finally:
            consumer.close()
        return keys

    def close(self) -> None:
        """End everything and take the records away."""
        self.process.close()
        for proxy in (self.database, self.broker, self.store):
            proxy.close()
        with psycopg.connect(conninfo()) as connection:
            mine = "service = %s and request ->> 'transaction_id' = %s"
            for query in (
                "delete from decisions.decision_ids where (service, request_id) in "
                f"(select service, request_id from decisions.decision_records where {mine})",
                f"delete from decisions.decision_records where {mine}",
            ):
                connection.execute(query, (SERVICE, self.name))
        admin = KafkaAdminClient(bootstrap_servers=setting("KAFKA_BOOTSTRAP_SERVERS"))
        try:
            with suppress(KafkaError):  # a topic more is no reason to lose what was measured
                admin.delete_topics([self.topic])
        finally:
            admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
