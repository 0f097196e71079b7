"""What the tests of libraries and services share: tiny real bundles, fakes, an application on fakes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shutil
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hiredis
import httpx
import lightgbm
import msgspec
import numpy as np
import xgboost
import yaml
from fastapi import FastAPI

from common_service_libs.decision_record import DecisionRecord, decode
from common_service_libs.decision_store import RejectedRecords
from common_service_libs.errors import DecisionStoreUnavailable, DecisionTopicUnavailable, RegistryError
from common_service_libs.feast_layout import entity_key, field_name, timestamp_field
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.model_registry import ModelVersion
from common_service_libs.recent_decisions import Cursor, DecisionSummary

REPOSITORY = Path(__file__).resolve().parents[2]
CONTRACTS = REPOSITORY / "feature-store-management" / "contracts"
PROJECT = "service_tests"
SCOPES = (
    *(f"{name}:{right}" for name in ("fraud", "churn", "recommendation") for right in ("predict", "read")),
    "model:read",
)
KEY = "the-key-of-the-tests"
NARROW_KEY = "a-key-that-may-only-read-the-model"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


# --- contracts and bundles ------------------------------------------------------------------------


def contract_document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CONTRACTS / "feature_services" / f"{name}.yaml").read_text())
    return document


def contract(name: str) -> FeatureContract:
    return parse_contract(contract_document(name))


def _categories(name: str) -> list[str]:
    return {"subscriber_contract": ["Month-to-month", "One year", "Two year"]}.get(name, ["No", "Yes"])


def _preprocessing(document: Mapping[str, Any]) -> dict[str, Any]:
    features = [
        {"name": f["name"], "kind": "categorical", "categories": _categories(f["name"])}
        if f["type"] == "string"
        else {"name": f["name"], "kind": "numeric"}
        for f in document["features"]
    ]
    return {"format_version": 1, "features": features}


def _train(kind: str, matrix: np.ndarray, labels: np.ndarray, trees: int) -> tuple[bytes, np.ndarray]:
    """Return the model file and the scores of the matrix, computed by the library's ordinary batch path."""
    if kind == "xgboost":
        booster = xgboost.train(
            {
                "objective": "binary:logistic",
                "max_depth": 4,
                "eta": 0.3,
                "nthread": 1,
                "tree_method": "exact",
            },
            xgboost.DMatrix(matrix.astype(np.float32), labels),
            trees,
        )
        scores = booster.predict(xgboost.DMatrix(matrix.astype(np.float32)))
        return bytes(booster.save_raw("ubj")), np.asarray(scores, dtype=np.float64)
    model = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5},
        lightgbm.Dataset(matrix, labels),
        trees,
    )
    return model.model_to_string().encode(), np.asarray(model.predict(matrix), dtype=np.float64)


def build_bundle(
    folder: Path,
    feature_service: str,
    *,
    model_name: str,
    kind: str,
    thresholds: Mapping[str, float],
    seed: int = 0,
    trees: int = 5,
    tamper: Mapping[str, Any] | None = None,
) -> str:
    """Train a tiny model on synthetic data, write its bundle and return the bundle's identity.

    `tamper` replaces whole documents (`golden.json`, ...) before the manifest is written.
    """
    document = contract_document(feature_service)
    preprocessing = _preprocessing(document)
    rng = np.random.default_rng(seed)
    rows = 300
    columns, vectors = [], []
    for feature in preprocessing["features"]:
        if feature["kind"] == "categorical":
            codes = rng.integers(0, len(feature["categories"]), rows)
            columns.append(codes.astype(float))
            vectors.append([feature["categories"][code] for code in codes])
        else:
            values = np.round(np.abs(rng.normal(0, 100 if "amount" in feature["name"] else 1, rows)), 3)
            columns.append(values)
            vectors.append(values.tolist())
    matrix = np.column_stack(columns)
    strength = (matrix - matrix.mean(axis=0)) / (matrix.std(axis=0) + 1e-9)
    labels = (strength[:, 0] + 0.7 * strength[:, -1] + 0.3 * rng.normal(size=rows) > 0.8).astype(int)
    model, scores = _train(kind, matrix, labels, trees)
    names = [feature["name"] for feature in preprocessing["features"]]
    golden = [
        {"features": {name: vectors[i][row] for i, name in enumerate(names)}, "score": float(scores[row])}
        for row in range(20)
    ]
    model_file = {"xgboost": "model.ubj", "lightgbm": "model.txt"}[kind]
    documents: dict[str, Any] = {
        "preprocessing.json": preprocessing,
        "feature_service.json": document,
        "thresholds.json": dict(thresholds),
        "reference.json": {},
        "golden.json": golden,
    } | dict(tamper or {})
    contents = {name: json.dumps(value).encode() for name, value in documents.items()} | {model_file: model}
    return write_bundle(folder, contents, model_name, kind, model_file, feature_service)


def write_bundle(
    folder: Path,
    contents: Mapping[str, bytes],
    model_name: str,
    kind: str,
    model_file: str,
    feature_service: str,
) -> str:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    interval = {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-08T00:00:00+00:00", "rows": 300}
    manifest = {
        "format_version": 1,
        "model_name": model_name,
        "model_kind": kind,
        "model_file": model_file,
        "feature_service": feature_service,
        "label_policy_version": 1,
        "training": interval,
        "git_commit": "0" * 40,
        "data_version": "test",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def fraud_bundle(folder: Path, **options: Any) -> str:
    options = {
        "model_name": "fraud-detection-model",
        "thresholds": {"review": 0.35, "decline": 0.8},
    } | options
    return build_bundle(folder, "fraud_detection_v1", kind="xgboost", **options)


def churn_bundle(folder: Path, **options: Any) -> str:
    options = {"model_name": "churn-prediction-model", "thresholds": {"contact": 0.3, "offer": 0.6}} | options
    return build_bundle(folder, "customer_churn_v1", kind="lightgbm", **options)


# --- Feast's bytes --------------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    out = b""
    number &= (1 << 64) - 1
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def encoded_value(value: Any) -> bytes:
    """Return a value as Feast serializes it: int64, double, string, or the empty message for null."""
    if value is None:
        return b""
    if isinstance(value, int):
        return b"\x20" + _varint(value)
    if isinstance(value, float):
        return b"\x29" + struct.pack("<d", value)
    return b"\x12" + _varint(len(value.encode())) + value.encode()


def timestamp_message(seconds: int, nanos: int) -> bytes:
    """Return a protobuf Timestamp."""
    return (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(nanos) if nanos else b"")


def encoded_timestamp(seconds: float) -> bytes:
    """Return a time, of whole microseconds, as Feast serializes it."""
    whole, rest = divmod(round(seconds * 1e6), 10**6)
    return timestamp_message(whole, rest * 1000)


Hash = dict[bytes, bytes]


def put_view(
    store: dict[bytes, Hash],
    join_key: str,
    entity: int | str,
    view: str,
    values: Mapping[str, Any],
    time: float,
) -> None:
    """Write one view of one entity into a store as Feast does."""
    fields = store.setdefault(entity_key(join_key, entity, PROJECT), {})
    fields[timestamp_field(view)] = encoded_timestamp(time)
    for name, value in values.items():
        fields[field_name(view, name)] = encoded_value(value)


CUSTOMER, TERMINAL, SUBSCRIBER = 596, 3156, 1207


def known_store(now: float = NOON) -> dict[bytes, Hash]:
    """Return a store that knows CUSTOMER, TERMINAL and SUBSCRIBER as of `now`."""
    midnight = math.floor(now / 86400) * 86400.0
    today = int(midnight // 86400)
    store: dict[bytes, Hash] = {}
    days = ("1d", "7d", "30d")
    daily: dict[str, Any] = {f"customer_tx_count_full_{d}": 2 + i for i, d in enumerate(days)}
    daily |= {f"customer_tx_amount_sum_full_{d}": 100.25 * (i + 1) for i, d in enumerate(days)}
    put_view(store, "customer_id", CUSTOMER, "customer_daily", daily, midnight)
    running = {
        "customer_tx_count_today": 3,
        "customer_tx_amount_sum_today": 61.5,
        "customer_today_day": today,
    }
    put_view(store, "customer_id", CUSTOMER, "customer_today", running, now - 600)
    terminal: dict[str, Any] = {f"terminal_tx_count_full_{d}": 5 + i for i, d in enumerate(days)}
    terminal |= {f"terminal_labelled_tx_count_{d}": 4 + i for i, d in enumerate(days)}
    terminal |= {f"terminal_fraud_risk_{d}": 0.25 / (i + 1) for i, d in enumerate(days)}
    put_view(store, "terminal_id", TERMINAL, "terminal_daily", terminal, midnight)
    put_view(
        store, "terminal_id", TERMINAL, "terminal_today",
        {"terminal_tx_count_today": 1, "terminal_today_day": today - 1}, now - 80000,
    )  # fmt: skip
    profile: dict[str, Any] = {}
    for feature in contract("customer_churn_v1").features:
        text = _categories(feature.name)[0]
        profile[feature.name] = {"string": text, "float64": 70.35}.get(feature.type, 1)
    put_view(store, "subscriber_id", SUBSCRIBER, "subscriber_profile", profile, midnight - 86400 * 30)
    return store


def replies_to(store: Mapping[bytes, Hash], commands: bytes) -> list[list[bytes | None]]:
    """Return what a server with this store answers to pipelined HMGETs."""
    parser = hiredis.Reader()
    parser.feed(commands)
    replies = []
    while (command := parser.gets()) is not False:
        found = store.get(command[1], {})
        replies.append([found.get(field) for field in command[2:]])
    return replies


_MISTAKES = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "error": b"-LOADING Redis is loading the dataset in memory\r\n",
}


class FakeRedis:
    """A server on loopback that speaks enough of the Redis protocol, and misbehaves on demand."""

    def __init__(self, data: dict[bytes, Hash], password: str | None = None) -> None:
        self.data = data
        self.password = password
        self.mode = "answer"  # or: silent, drop, garbage, error
        self.reads = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        parser = hiredis.Reader()
        queued: list[bytes] | None = None
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if self.mode == "drop":
                        return
                    if self.mode == "silent":
                        continue
                    answer = self._answer(command)
                    if self.mode == "answer" and command[0] == b"MULTI":
                        queued, answer = [], b"+OK\r\n"
                    elif self.mode == "answer" and command[0] == b"EXEC" and queued is not None:
                        queued, answer = None, b"*%d\r\n" % len(queued) + b"".join(queued)
                    elif queued is not None:
                        queued.append(answer)
                        answer = b"+QUEUED\r\n"
                    writer.write(answer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, command: list[bytes]) -> bytes:
        if self.mode in _MISTAKES:
            return _MISTAKES[self.mode]
        match command[0]:
            case b"AUTH":
                right = command[1:] == [(self.password or "").encode()]
                return b"+OK\r\n" if right else b"-WRONGPASS invalid password\r\n"
            case b"PING":
                return b"$%d\r\n%b\r\n" % (len(command[1]), command[1]) if command[1:] else b"+PONG\r\n"
            case b"HMGET":
                self.reads += 1
                found = self.data.get(command[1], {})
                values = [found.get(field) for field in command[2:]]
                parts = [b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values]
                return b"*%d\r\n" % len(values) + b"".join(parts)
        return b"-ERR unknown command\r\n"


# --- the other fakes ------------------------------------------------------------------------------


class FakeRegistry:
    """A registry whose versions are folders; blocking and silent on demand, like the real one."""

    def __init__(self) -> None:
        self.versions: dict[int, tuple[Path, str | None]] = {}
        self.name = ""
        self.champion: int | None = None
        self.aliases: dict[str, int] = {}  # beside the champion's
        self.tags: dict[int, dict[str, str]] = {}
        self.silent = False
        self.downloads = 0

    def add(self, name: str, version: int, folder: Path, sha256: str | None) -> None:
        self.name = name
        self.versions[version] = (folder, sha256)
        self.champion = version

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        if self.silent:
            raise RegistryError("the registry does not answer")
        number = self.champion if alias == "champion" else self.aliases.get(alias)
        if number is None or name != self.name:
            return None
        return ModelVersion(name, number, self.versions[number][1], self.tags.get(number, {}))

    def download(self, version: ModelVersion, folder: Path) -> None:
        if self.silent:
            raise RegistryError("the registry does not answer")
        self.downloads += 1
        shutil.copytree(self.versions[version.version][0], folder / "artifacts" / "bundle")

    def close(self) -> None:
        return None


class FakeStore:
    """A decision store in memory; silent on demand, and it refuses records of the entity 666."""

    def __init__(self) -> None:
        self.rows: dict[str, DecisionRecord] = {}
        self.claims: dict[str, str] = {}
        self.silent = False
        self.inserts = 0

    async def insert(self, records: list[bytes]) -> int:
        if self.silent:
            raise DecisionStoreUnavailable("the decision database does not answer")
        self.inserts += 1
        decoded = [decode(record) for record in records]
        if any(666 in record.entity_ids.values() for record in decoded):
            raise RejectedRecords("the record is refused")
        new = {record.request_id: record for record in decoded if record.request_id not in self.rows}
        self.rows |= new
        return len(new)

    async def find(self, request_id: str, service: str) -> DecisionRecord | None:
        if self.silent:
            raise DecisionStoreUnavailable("the decision database does not answer")
        found = self.rows.get(request_id)
        return found if found is not None and found.service == service else None

    async def recent(self, service: str, cursor: Cursor, limit: int) -> list[dict[str, Any]]:
        if self.silent:
            raise DecisionStoreUnavailable("the decision database does not answer")
        before = (cursor.at.replace("+00:00", "Z"), cursor.request_id)  # text: `infinity` is after all times
        found = [
            {name: getattr(record, name) for name in DecisionSummary.model_fields}
            for record in self.rows.values()
            if record.service == service and (record.requested_at, record.request_id) < before
        ]
        return sorted(found, key=lambda row: (row["requested_at"], row["request_id"]), reverse=True)[:limit]

    async def claim(
        self, request_id: str, service: str, *, owner: str, place: str
    ) -> tuple[DecisionRecord | None, bool]:
        record = await self.find(request_id, service)
        if record is not None:
            return record, False
        before = self.claims.setdefault(request_id, owner)
        if before.startswith(place):
            self.claims[request_id] = owner
        return None, self.claims[request_id] == owner

    async def release(self, request_id: str, service: str, owner: str) -> None:
        await self.find(request_id, service)
        if self.claims.get(request_id) == owner:
            del self.claims[request_id]

    async def close(self) -> None:
        return None


class FakeTopic:
    """A topic of decisions in memory; silent on demand, and then half of a batch may have arrived."""

    def __init__(self) -> None:
        self.messages: list[DecisionRecord] = []
        self.silent = False

    async def insert(self, records: list[bytes]) -> int:
        if self.silent:
            self.messages += [decode(record) for record in records[: len(records) // 2]]
            raise DecisionTopicUnavailable("the broker does not answer")
        self.messages += [decode(record) for record in records]
        return len(records)

    async def close(self) -> None:
        return None


def write_keys(path: Path) -> Path:
    def entry(name: str, key: str, scopes: tuple[str, ...]) -> dict[str, Any]:
        return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": scopes}

    keys = [entry("tests", KEY, SCOPES), entry("narrow", NARROW_KEY, ("model:read",))]
    path.write_bytes(msgspec.json.encode(keys))
    return path


def settings_for(folder: Path, redis: FakeRedis | None = None, **changes: Any) -> dict[str, Any]:
    """Return settings for an application on fakes; `changes` replace single ones."""
    return {
        "decisions_db_password": "not-used-by-the-fakes",
        "mlflow_tracking_uri": "http://127.0.0.1:9",
        "spool_dir": folder / "spool",
        "api_keys_file": write_keys(folder / "keys.json"),
        "redis_port": redis.port if redis else 9,
        # Not those of a stack whose settings are loaded.
        "redis_password": redis.password if redis else None,
        "kafka_bootstrap_servers": None,
        "feast_project": PROJECT,
        "model_poll_seconds": 0.02,
        "rollout_check_seconds": 0.05,
        "bundle_trial_seconds": 0,  # a process more for each service; its own tests have one
        "shutdown_seconds": 0.5,
    } | changes


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application's lifespan and yield a client that calls it in process, with a key."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers={"X-API-Key": KEY}) as client,
    ):
        yield client


async def until(condition: Any, seconds: float = 3.0) -> None:
    """Wait until `condition()` is true; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
