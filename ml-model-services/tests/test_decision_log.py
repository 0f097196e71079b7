from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
from service_testkit import CONTRACTS, FakeStore, FakeTopic, until

from common_service_libs.decision_log import DecisionLog
from common_service_libs.decision_record import DecisionRecord, asks_the_same, decode, encode
from common_service_libs.errors import DecisionStoreUnavailable, SpoolUnavailable
from common_service_libs.metrics import ServiceMetrics
from common_service_libs.spool import Position, Spool

pytestmark = pytest.mark.anyio


def record(request_id: str, **changes: Any) -> DecisionRecord:
    values: dict[str, Any] = {
        "request_id": request_id,
        "service": "fraud_detection_api",
        "requested_at": "2026-01-31T12:00:00.000000Z",
        "entity_ids": {"customer_id": 1},
        "request": {"tx_amount": 1.0},
        "features": {"tx_amount": 1.0, "risk": None},
        "feature_status": {"customer_daily": {"status": "present", "event_timestamp": None}},
        "model_name": "fraud-detection-model",
        "model_version": 1,
        "bundle_sha256": "b" * 64,
        "policy_version": 1,
        "policy_sha256": "p" * 64,
        "score": 0.5,
        "decision": "approve",
        "reason_codes": ("LOW_RISK",),
        "rules_fired": (),
        "degraded": False,
        "latency_ms": 1.0,
    }
    return DecisionRecord(**(values | changes))


def log_on(
    folder: Path,
    store: FakeStore,
    *,
    sync: str = "interval",
    max_bytes: int = 1 << 20,
    topic: FakeTopic | None = None,
) -> DecisionLog:
    return DecisionLog(
        "fraud_detection_api",
        Spool(folder / "spool", max_bytes=max_bytes, segment_bytes=4096),
        sink=store,
        lookup=store,
        metrics=ServiceMetrics(),
        sync=sync,
        rejected_file=folder / "rejected.jsonl",
        topic=topic,
    )


@pytest.mark.parametrize("sync", ["interval", "always"])
async def test_an_appended_record_is_found_at_once_and_reaches_the_store_once(
    tmp_path: Path, sync: str
) -> None:
    store = FakeStore()
    log = log_on(tmp_path, store, sync=sync)
    await log.open()
    await asyncio.gather(*(log.append(record(str(i))) for i in range(200)))
    assert await log.find("7") == record("7")
    await until(lambda: len(store.rows) == 200)
    assert store.inserts < 20
    await until(lambda: log.pending == 0)
    assert await log.find("7") == record("7")
    await log.close(1)
    assert not list(tmp_path.rglob("*.wal"))


async def test_a_silent_store_holds_nothing_up_and_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    store = FakeStore()
    store.silent = True
    log = log_on(tmp_path, store)
    await log.open()
    for i in range(50):
        await log.append(record(str(i)))
    assert await log.find("49") == record("49")
    with pytest.raises(DecisionStoreUnavailable):
        await log.find("unknown")
    store.silent = False
    await until(lambda: len(store.rows) == 50)
    assert await log.find("unknown") is None
    await log.close(1)


async def test_a_decision_that_another_worker_just_made_is_found(tmp_path: Path) -> None:
    store = FakeStore()
    one, two = log_on(tmp_path, store), log_on(tmp_path, store)
    two.neighbours = True
    await one.open()
    await two.open()
    await one.append(record("1"))
    assert await two.find("1") == record("1")
    assert await two.find("unknown") is None
    await one.close(1)
    await two.close(1)


async def test_what_one_process_left_the_next_one_delivers_exactly_once(tmp_path: Path) -> None:
    store = FakeStore()
    store.silent = True
    log = log_on(tmp_path, store)
    await log.open()
    for i in range(30):
        await log.append(record(str(i)))
    await log.close(0.05)
    store.rows["3"] = record("3")  # written, but the answer was lost
    store.silent = False
    log = log_on(tmp_path, store)
    await log.open()
    assert await log.find("29") == record("29")
    await until(lambda: len(store.rows) == 30)
    await log.close(1)


async def test_a_full_spool_refuses_until_the_store_is_back(tmp_path: Path) -> None:
    store = FakeStore()
    store.silent = True
    log = log_on(tmp_path, store, max_bytes=3000)
    await log.open()
    acknowledged = 0
    while not log.full:
        await log.append(record(str(acknowledged)))
        acknowledged += 1
    with pytest.raises(SpoolUnavailable):
        await log.append(record("refused"))
    store.silent = False
    await until(lambda: not log.full)
    await log.append(record("after"))
    await until(lambda: "after" in store.rows)
    assert len(store.rows) == acknowledged + 1
    await log.close(1)


async def test_a_full_disk_is_relieved_of_what_every_sink_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, topic = FakeStore(), FakeTopic()
    log = log_on(tmp_path, store, topic=topic)
    await log.open()
    for i in range(3):
        await log.append(record(str(i)))
    await until(lambda: log.pending == 0)
    real, room = os.write, 2000

    def write(descriptor: int, content: bytes) -> int:
        if os.fstat(descriptor).st_size + len(content) > room:
            raise OSError(28, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    store.silent = topic.silent = True
    await log.append(record("3"))
    with pytest.raises(SpoolUnavailable, match="No space left"):
        await asyncio.gather(*(log.append(record(str(i))) for i in range(4, 9)))
    topic.silent = store.silent = False
    await until(lambda: log.pending == 0)
    await log.append(record("after"))
    await until(lambda: "after" in store.rows)
    monkeypatch.undo()
    await log.close(1)


async def test_a_record_that_the_store_refuses_is_set_aside_and_holds_up_nothing(tmp_path: Path) -> None:
    store = FakeStore()
    log = log_on(tmp_path, store)
    await log.open()
    for i in range(5):
        await log.append(record(str(i), entity_ids={"customer_id": 666 if i == 2 else i}))
    await until(lambda: log.pending == 0)
    assert sorted(store.rows) == ["0", "1", "3", "4"]
    assert decode((tmp_path / "rejected.jsonl").read_bytes()).request_id == "2"
    await log.close(1)


@pytest.mark.parametrize("alone", [False, True])
async def test_with_sync_always_a_reply_waits_for_the_disk_and_a_broken_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    log = log_on(tmp_path, FakeStore(), sync="always")
    await log.open()
    synced: list[int] = []

    def broken(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fdatasync", broken)
    with pytest.raises(SpoolUnavailable):
        await log.append(record("1"), alone=alone)
    assert synced
    monkeypatch.undo()
    await log.append(record("2"), alone=alone)
    await log.close(1)


async def test_records_of_one_turn_are_written_at_once_and_those_that_fit_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_on(tmp_path, store := FakeStore())
    await log.open()
    spool, appended = log._spool, []

    def append(*payloads: bytes) -> list[Position]:
        appended.append(len(payloads))
        if any(b'"2"' in payload for payload in payloads):
            raise SpoolUnavailable("the disk is full")
        return Spool.append(spool, *payloads)

    monkeypatch.setattr(spool, "append", append)
    await asyncio.gather(*(log.append(record(f"first-{i}")) for i in range(5)))
    assert appended == [5]
    appended.clear()
    await log.append(record("lone"), alone=True)
    assert appended == [1]
    outcomes = await asyncio.gather(*(log.append(record(str(i))) for i in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 2 + [SpoolUnavailable] + [type(None)] * 2
    gone = asyncio.create_task(log.append(record("gave up")))
    stays = asyncio.create_task(log.append(record("stays")))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    await log.close(1)
    assert set(store.rows) == {f"first-{i}" for i in range(5)} | {
        "lone",
        "0",
        "1",
        "3",
        "4",
        "gave up",
        "stays",
    }


async def test_a_slow_disk_is_waited_for_in_a_thread_until_it_is_fast_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_on(tmp_path, FakeStore(), sync="always")
    await log.open()
    here, now, seconds = threading.get_ident(), 0.0, 0.0
    in_turn: list[bool] = []

    def disk() -> None:
        nonlocal now
        in_turn.append(threading.get_ident() == here)
        now += seconds

    async def append(count: int) -> list[bool]:
        in_turn.clear()
        for _ in range(count):
            await log.append(record(str(uuid.uuid4())), alone=True)
        return list(in_turn)

    monkeypatch.setattr(Spool, "syncer", lambda spool: disk)
    monkeypatch.setattr("common_service_libs.decision_log.time", SimpleNamespace(perf_counter=lambda: now))
    assert await append(9) == [True] * 9, "a lone record is not handed over while the disk is fast"
    in_turn.clear()
    await asyncio.gather(*(log.append(record(f"beside-{i}")) for i in range(3)))
    assert in_turn == [False], "several share one sync, and the loop goes on meanwhile"
    seconds = 0.002
    assert await append(2) == [True] * 2
    seconds = 0.0
    assert await append(5) == [True] * 5, "twice is no slow disk"
    seconds = 0.002
    assert await append(9) == [True] * 3 + [False] * 6
    now += 2
    assert await append(3) == [True] + [False] * 2, "it is tried now and then"
    seconds, now = 0.0, now + 2
    assert await append(3) == [True] * 3
    monkeypatch.undo()
    await log.close(1)


@pytest.mark.parametrize("silent", ["store", "topic"])
async def test_a_sink_that_is_silent_holds_up_neither_decisions_nor_the_other_sink(
    tmp_path: Path, silent: str
) -> None:
    sinks = {"store": FakeStore(), "topic": FakeTopic()}
    store, topic = sinks["store"], sinks["topic"]
    sinks[silent].silent = True
    log = log_on(tmp_path, store, topic=topic)
    await log.open()
    for i in range(40):
        await log.append(record(str(i)))
    other = (lambda: len(topic.messages) >= 40) if silent == "store" else (lambda: len(store.rows) == 40)
    await until(other)
    assert log.pending == 40, "a record stays in the spool until both have it"
    sinks[silent].silent = False
    await until(lambda: log.pending == 0)
    assert len(store.rows) == 40
    assert {message.request_id for message in topic.messages} == set(store.rows)
    await log.close(1)
    assert not list(tmp_path.rglob("*.wal"))


async def test_what_the_topic_did_not_get_before_the_end_the_next_process_sends(tmp_path: Path) -> None:
    store, topic = FakeStore(), FakeTopic()
    topic.silent = True
    log = log_on(tmp_path, store, topic=topic)
    await log.open()
    for i in range(10):
        await log.append(record(str(i)))
    await until(lambda: len(store.rows) == 10)
    await log.close(0.05)
    topic.silent = False
    log = log_on(tmp_path, store, topic=topic)
    await log.open()
    await until(lambda: log.pending == 0)
    assert {message.request_id for message in topic.messages} == {str(i) for i in range(10)}
    assert len(store.rows) == 10
    await log.close(1)


def test_the_contract_of_the_topic_names_every_field_of_a_record() -> None:
    schema = json.loads((CONTRACTS / "schemas" / "decisions.v1.schema.json").read_text())
    assert list(schema["properties"]) == list(DecisionRecord.__struct_fields__)
    jsonschema.validate(json.loads(encode(record("1"))), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(encode(record("1"))) | {"unknown": 1}, schema)


def test_nan_is_recorded_as_null() -> None:
    assert decode(encode(record("1", features={"risk": float("nan")}))).features == {"risk": None}


def test_a_record_round_trips_exactly() -> None:
    original = record("1", score=0.1 + 0.2, features={"x": 5e-324, "y": 1.7976931348623157e308})
    assert decode(encode(original)) == original
    with pytest.raises(msgspec.DecodeError):
        decode(b'{"request_id": 1}')


def test_requests_are_the_same_when_what_was_sent_is() -> None:
    sent = {"amount": 1.0, "at": "noon", "defaulted": []}
    filled_in = {"amount": 1.0, "at": "noon", "defaulted": ["at"]}
    later = {"amount": 1.0, "at": "one", "defaulted": ["at"]}
    assert asks_the_same(sent, dict(sent))
    assert asks_the_same(filled_in, later)
    assert not asks_the_same(sent, filled_in)
    assert not asks_the_same(sent, sent | {"amount": 2.0})
