"""How fast one fraud decision is, end to end, beside the floor: the bare read of features plus the model.

Run with the settings of a running stack: `make bench`. The service is a process of its own with a 300-tree
model, the online store and the database are the stack's. One client measures latency, sixteen throughput.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import redis
from service_testkit import (
    CUSTOMER,
    KEY,
    PROJECT,
    REPOSITORY,
    TERMINAL,
    fraud_bundle,
    known_store,
    write_keys,
)

from common_service_libs.release_bundle import load_bundle

SERVICE = REPOSITORY / "ml-model-services" / "services" / "fraud_detection_api"
REQUESTS = 4000
NOW = time.time()
BODY = json.dumps({"customer_id": CUSTOMER, "terminal_id": TERMINAL, "tx_amount": 57.16}).encode()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]


def online_store() -> redis.Redis:
    return redis.Redis(
        os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"]), password=os.environ.get("REDIS_PASSWORD")
    )


def floor_microseconds(bundle_folder: Path) -> float:
    """Return the p50 of one pipelined read by redis-py plus one score, in process."""
    bundle = load_bundle(
        bundle_folder, model_name="fraud-detection-model", feature_service="fraud_detection_v1"
    )
    vector = [1.0] * len(bundle.contract.features)
    keys = list(known_store(NOW))
    fields = {key: list(hash_) for key, hash_ in known_store(NOW).items()}
    client = online_store()
    times = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        with client.pipeline(transaction=False) as pipe:
            for key in keys[:2]:
                pipe.hmget(key, fields[key])
            pipe.execute()
        bundle.score(vector)
        times.append(time.perf_counter() - started)
    return percentile(times, 0.5) * 1e6


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Send one request on a kept connection and return the seconds until the whole reply is here."""
    head = (
        b"POST /predict HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nx-api-key: %b\r\n"
        b"content-length: %d\r\n\r\n" % (KEY.encode(), len(BODY))
    )
    started = time.perf_counter()
    writer.write(head + BODY)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
    return time.perf_counter() - started


async def client(port: int, requests: int) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = [await post(reader, writer) for _ in range(requests)]
    writer.close()
    return times


async def load(port: int, clients: int, requests: int) -> tuple[list[float], float]:
    started = time.perf_counter()
    results = await asyncio.gather(*(client(port, requests // clients) for _ in range(clients)))
    return [t for times in results for t in times], requests / (time.perf_counter() - started)


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> float:
    started = time.perf_counter()
    while time.perf_counter() - started < 30:
        try:
            if httpx.get(f"{url}/readyz", timeout=1).status_code == 200:
                return time.perf_counter() - started
        except httpx.TransportError:
            time.sleep(0.02)
        if process.poll() is not None:
            raise SystemExit("the service has ended; its log is above")
    raise SystemExit("the service is not ready after 30 s")


def run(folder: Path, bundle: Path, sha256: str, sync: str) -> list[dict[str, object]]:
    spool = folder / f"spool-{sync}"
    (spool / "bundles").mkdir(parents=True)
    (spool / "fraud_detection_api").mkdir()
    (spool / "bundles" / sha256).symlink_to(bundle, target_is_directory=True)
    note = {"name": "fraud-detection-model", "version": 1, "bundle_sha256": sha256}
    (spool / "fraud_detection_api" / "last_good.json").write_text(json.dumps(note))
    port = 18000 + os.getpid() % 1000
    environment = os.environ | {
        "SERVICE_PORT": str(port), "SPOOL_DIR": str(spool), "SPOOL_SYNC": sync, "LOG_LEVEL": "INFO",
        "API_KEYS_FILE": str(write_keys(folder / "keys.json")), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "FEAST_PROJECT": PROJECT,
        "PYTHONPATH": str(SERVICE.parents[1]),
    }  # fmt: skip
    log = (folder / f"{sync}.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "app.main"], cwd=SERVICE, env=environment, stdout=log)
    try:
        ready = wait_ready(f"http://127.0.0.1:{port}", process)
        asyncio.run(load(port, 1, 500))
        one, _ = asyncio.run(load(port, 1, REQUESTS))
        many, rate = asyncio.run(load(port, 16, 2 * REQUESTS))
        memory = int(Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
    finally:
        process.terminate()
        process.wait(20)
    figures = [
        ("p50, one client", percentile(one, 0.5) * 1e6, "us"),
        ("p99, one client", percentile(one, 0.99) * 1e6, "us"),
        ("p50, 16 clients", percentile(many, 0.5) * 1e6, "us"),
        ("p99, 16 clients", percentile(many, 0.99) * 1e6, "us"),
        ("throughput, 16 clients", rate, "requests/s"),
        ("start to ready", ready, "s"),
        ("memory", memory, "MiB"),
    ]
    return [{"name": f"{name}, spool_sync={sync}", "value": round(v, 2), "unit": u} for name, v, u in figures]


def main() -> None:
    client = online_store()
    for key, fields in known_store(NOW).items():
        client.hset(key, mapping=fields)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sha256 = fraud_bundle(folder / "bundle", trees=300)
        results = [
            {
                "name": "floor: HMGETs by redis-py + model",
                "value": round(floor_microseconds(folder / "bundle"), 2),
                "unit": "us",
            }
        ]
        for sync in ("interval", "always"):
            results += run(folder, folder / "bundle", sha256, sync)
    for key in known_store(NOW):
        client.delete(key)
    for result in results:
        print(f"{result['name']:<45} {result['value']:>10} {result['unit']}")
    report = {
        "command": "make bench",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "results": results,
    }
    target = Path(os.environ.get("REPORTS_DIR", folder))
    target.mkdir(parents=True, exist_ok=True)
    (target / "bench-predict.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
