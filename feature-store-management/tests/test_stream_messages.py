"""Messages, definitions and the order of partitions: what the stream accepts, and what it refuses and why."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from common_test_utils import CONTRACTS_DIR
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry, generate_latest

from data_transformation_pipelines.python_scripts_feast.transaction_files import TransactionColumns
from data_transformation_pipelines.stream_jobs_feast.aggregation_contract import (
    DEFINITION,
    AggregationError,
    load_definition,
)
from data_transformation_pipelines.stream_jobs_feast.partition_alignment import (
    STARVED_SECONDS,
    Alignment,
    Silence,
)
from data_transformation_pipelines.stream_jobs_feast.process_transaction_stream import (
    LONGEST_WAIT_SECONDS,
    waiting_seconds,
)
from data_transformation_pipelines.stream_jobs_feast.replay_transactions import (
    due_seconds,
    messages,
    speed_factor,
)
from data_transformation_pipelines.stream_jobs_feast.stream_metrics import ManyAtOnceHistogram, StreamMetrics
from data_transformation_pipelines.stream_jobs_feast.stream_settings import StreamSettings
from data_transformation_pipelines.stream_jobs_feast.transaction_events import (
    MAX_MESSAGE_BYTES,
    RefusedMessageError,
    Transaction,
    check_key,
    decode,
)

SCHEMA = json.loads((CONTRACTS_DIR / "schemas" / "transactions.v1.schema.json").read_text())
GOOD = {
    "transaction_id": 1,
    "tx_datetime": "2026-11-20T10:00:00.000001Z",
    "customer_id": 2,
    "terminal_id": 3,
    "tx_amount": 4.5,
}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"tx_amount": 0},
    {"tx_amount": 7},
    {"tx_amount": 1_000_000},
    {"customer_id": 0},
    {"transaction_id": 2**63 - 1},
    {"tx_datetime": "2024-02-29T23:59:59.999999Z"},
]
REFUSED: list[dict[str, Any]] = [
    {"tx_amount": -0.01},
    {"tx_amount": 1_000_000.01},
    {"tx_amount": "4.5"},
    {"tx_amount": None},
    {"tx_amount": True},
    {"transaction_id": -1},
    {"transaction_id": 2**63},
    {"transaction_id": 1.5},
    {"customer_id": "2"},
    {"terminal_id": None},
    {"tx_datetime": "2026-11-20T10:00:00Z"},
    {"tx_datetime": "2026-11-20T10:00:00.000001+00:00"},
    {"tx_datetime": "2026-11-20 10:00:00.000001Z"},
    {"tx_datetime": 1_795_000_000},
    {"unknown": 1},
]


def text(change: dict[str, Any]) -> bytes:
    return json.dumps(GOOD | change).encode()


def reason(value: bytes | None) -> str:
    with pytest.raises(RefusedMessageError) as caught:
        decode(value)
    return caught.value.reason


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_what_the_schema_accepts_is_decoded(change: dict[str, Any]):
    assert Draft202012Validator(SCHEMA).is_valid(GOOD | change)
    event, _ = decode(text(change))
    assert {name: getattr(event, name) for name in GOOD} == GOOD | change


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_what_the_schema_refuses_is_refused(change: dict[str, Any]):
    assert not Draft202012Validator(SCHEMA).is_valid(GOOD | change)
    assert reason(text(change)) == "schema"


@pytest.mark.parametrize("name", GOOD)
def test_no_field_may_be_missing(name: str):
    without = {key: value for key, value in GOOD.items() if key != name}
    assert not Draft202012Validator(SCHEMA).is_valid(without)
    assert reason(json.dumps(without).encode()) == "schema"


def test_the_schema_has_the_fields_of_an_event():
    assert list(SCHEMA["properties"]) == list(Transaction.__struct_fields__) == SCHEMA["required"]
    assert SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (text({}).replace(b"4.5", b"NaN"), "not_json"),
        (text({}).replace(b"4.5", b"1e999"), "schema"),
        (b"[1]", "schema"),
        (text({"tx_datetime": "2026-02-30T10:00:00.000001Z"}), "schema"),
        (text({"tx_datetime": "2026-11-20T23:59:60.000001Z"}), "schema"),
        (text({}) + b" " * MAX_MESSAGE_BYTES, "oversized"),
    ],
)
def test_poison_is_refused_with_its_reason(value: bytes | None, why: str):
    assert reason(value) == why


@pytest.mark.parametrize("key", [None, b"", b"3", b"02", b" 2", b"2\n"])
def test_a_key_that_is_not_the_entity_is_refused(key: bytes | None):
    check_key(b"2", 2, "customer_id")
    with pytest.raises(RefusedMessageError, match="customer_id 2"):
        check_key(key, 2, "customer_id")


def changed(tmp_path: Path, edit: Any) -> Path:
    content = yaml.safe_load(DEFINITION.read_text())
    edit(content)
    path = tmp_path / "definition.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda it: it.update(surplus=1), "surplus"),
        (lambda it: it["views"][0]["fields"][1].pop("of"), "belongs to a sum"),
        (lambda it: it["views"][0]["fields"][0].update(of="tx_amount"), "belongs to a sum"),
        (lambda it: it["views"][0]["fields"][1].update(of="customer_id"), "no number customer_id"),
        (lambda it: it["views"][0].update(entity_key="merchant_id"), "no key merchant_id"),
        (lambda it: it["views"][1].update(view="customer_today"), "customer_today stands twice"),
        (lambda it: it["event"].update(id="terminal_id"), "identified by transaction_id"),
        (lambda it: it["window"].update(since="noon"), "midnight"),
        (lambda it: it["window"].update(utc_offset_hours="0"), "integer"),
    ],
)
def test_a_definition_that_is_not_right_is_refused(tmp_path: Path, edit: Any, message: str):
    with pytest.raises(AggregationError, match=message):
        load_definition(changed(tmp_path, edit))


def test_the_definition_names_the_fields_of_the_feature_service():
    service = yaml.safe_load((CONTRACTS_DIR / "feature_services" / "fraud_detection_v1.yaml").read_text())
    declared = {view["name"]: [field["name"] for field in view["fields"]] for view in service["views"]}
    for view in load_definition().views:
        assert [field.name for field in view.fields] == declared[view.view]


def test_topics_follow_prefix_and_definition():
    names = [topic.name for topic in StreamSettings(topic_prefix="t.").topics(load_definition())]
    assert names == ["t.transactions.v1", "t.transactions-by-terminal.v1", "t.transactions.dead-letter.v1"]


@dataclass
class Message:
    timestamp: int
    name: str


def aligned(partitions: int = 2) -> tuple[Alignment, list[float]]:
    clock = [0.0]
    alignment = Alignment(lambda: clock[0])
    alignment.reset(range(partitions))
    return alignment, clock


def names(taken: list[Message]) -> list[str]:
    return [message.name for message in taken]


def test_messages_of_several_partitions_come_in_order_of_arrival():
    alignment, _ = aligned()
    alignment.put(0, [Message(1, "a1"), Message(4, "a4")], lag=10)
    alignment.put(1, [Message(2, "b2"), Message(3, "b3")], lag=10)
    assert names(alignment.take()) == ["a1", "b2", "b3"]
    alignment.put(1, [Message(9, "b9")], lag=0)
    assert names(alignment.take()) == ["a4"]
    alignment.put(0, [], lag=0)
    assert names(alignment.take()) == ["b9"]
    assert len(alignment) == 0


def test_a_partition_that_is_read_to_its_end_holds_nobody_back():
    alignment, _ = aligned()
    alignment.put(0, [Message(5, "a5")], lag=0)
    assert alignment.take() == []
    alignment.put(1, [], lag=0)
    assert names(alignment.take()) == ["a5"]


def test_a_partition_that_gives_nothing_is_not_waited_for_forever():
    alignment, clock = aligned()
    alignment.put(0, [Message(5, "a5")], lag=0)
    alignment.put(1, [], lag=3)
    clock[0] = STARVED_SECONDS
    assert alignment.take() == []
    clock[0] += 0.1
    assert names(alignment.take()) == ["a5"]


def test_a_partitions_own_order_stands_whatever_its_times_say():
    alignment, _ = aligned(1)
    alignment.put(0, [Message(5, "first"), Message(3, "second"), Message(6, "third")], lag=0)
    assert names(alignment.take()) == ["first", "second", "third"]


def day_columns() -> TransactionColumns:
    return TransactionColumns(
        np.array([7, 8]),
        np.array(["2026-11-20T10:00:00", "2026-11-20T10:01:00.5"], dtype="datetime64[us]"),
        np.array([1, 2]),
        np.array([30, 40]),
        np.array([1.1, 250.0]),
    )


def test_replayed_transactions_are_messages_of_the_schema():
    sent = list(messages(day_columns()))
    assert [key for key, _ in sent] == [b"1", b"2"]
    for _, value in sent:
        Draft202012Validator(SCHEMA).validate(json.loads(value))
    assert json.loads(sent[1][1])["tx_datetime"] == "2026-11-20T10:01:00.500000Z"


def test_speed_says_when_an_event_is_due():
    assert due_seconds(day_columns(), speed_factor("60")).tolist() == [0.0, 60.5 / 60]
    assert due_seconds(day_columns(), speed_factor("max")).tolist() == [0.0, 0.0]


def test_waits_grow_and_end_at_some_seconds():
    assert all(0.2 <= waiting_seconds(attempt) <= LONGEST_WAIT_SECONDS for attempt in range(1, 60))
    assert max(waiting_seconds(1) for _ in range(50)) <= 1
    assert max(waiting_seconds(20) for _ in range(50)) > 2


def test_a_histogram_counts_whole_arrays_as_prometheus_reads_them():
    registry = CollectorRegistry()
    histogram = ManyAtOnceHistogram("fresh_seconds", "How fresh.", "view", registry)
    histogram.observe("customer_today", np.array([0.001, 0.0011, 0.02]))
    histogram.observe("customer_today", np.array([120.0]))
    page = generate_latest(registry).decode()
    assert 'fresh_seconds_bucket{le="0.001",view="customer_today"} 1.0' in page
    assert 'fresh_seconds_bucket{le="0.025",view="customer_today"} 3.0' in page
    assert 'fresh_seconds_bucket{le="+Inf",view="customer_today"} 4.0' in page
    assert 'fresh_seconds_count{view="customer_today"} 4.0' in page


def test_lag_is_told_of_the_partitions_that_are_owned():
    metrics = StreamMetrics()
    metrics.lag.values = {("transactions.v1", 0): 12}
    page = generate_latest(metrics.registry).decode()
    assert 'stream_lag{partition="0",topic="transactions.v1"} 12.0' in page
    metrics.lag.values = {}
    assert "stream_lag{" not in generate_latest(metrics.registry).decode()


def test_a_partition_that_has_more_and_gives_nothing_is_noticed_after_a_while() -> None:
    now = [0.0]
    silence = Silence(lambda: now[0], 20.0)
    assert not silence.too_long("a"), "it was never asked before"
    now[0] = 20.0
    assert not silence.too_long("a")
    now[0] = 20.1
    assert silence.too_long("a")
    silence.heard("a")
    assert not silence.too_long("a")
