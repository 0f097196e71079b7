"""How fast one fraud decision is, end to end, beside its floor and beside other servers.

    make bench-serving          with the settings of a running stack

The decision: key, validation, features of two entities and four views in one round trip to Redis, on-demand
features, a 300-tree model, the policy, metrics, log line, durable record. The floor: the same read by
redis-py and the same score, in one process, with nothing around them. The clients are a process of their own;
how much of a core they take stands in the report. Bodies are of 200 customers at 200 terminals.

Peers (`benchmarks/peers`) are measured by the same clients, one after the other; `--peers none` leaves them
out. Nothing else should run meanwhile: the targets are those of an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis
import yaml
from service_testkit import KEY, PROJECT, REPOSITORY, Hash, fraud_bundle, put_view, write_keys

from benchmarks.load_generator import percentile
from benchmarks.peers import catalogue
from common_service_libs.release_bundle import Bundle, load_bundle
from common_service_libs.xgboost_library import XgboostModel

ROOT = REPOSITORY / "ml-model-services"
SERVICE = ROOT / "services" / "fraud_detection_api"
TARGETS = Path(__file__).with_name("serving_targets.yaml")
MODEL = "fraud-detection-model"
TREES = 300
ENTITIES = 200
BODIES = 1000
CLIENTS = 16
START_SECONDS = 30
PEER_TITLES = {
    "usual": "the usual way",
    "mlflow_serve": "mlflow models serve behind the Feast SDK",
    "bentoml": "BentoML",
    "mlserver": "MLServer",
    "ray_serve": "Ray Serve",
}


# --- what is asked ------------------------------------------------------------------------------------


def store_of(now: float) -> dict[bytes, Hash]:
    """Return the hashes of all customers and terminals, as of `now`."""
    chance = random.Random(1)
    store: dict[bytes, Hash] = {}
    midnight, days = math.floor(now / 86400) * 86400.0, ("1d", "7d", "30d")
    for entity in range(ENTITIES):
        count = chance.randint(0, 9)
        put_view(store, "customer_id", entity, "customer_daily", {
            **{f"customer_tx_count_full_{d}": count * (i + 1) for i, d in enumerate(days)},
            **{f"customer_tx_amount_sum_full_{d}": 100 * chance.random() * i for i, d in enumerate(days, 1)},
        }, midnight)  # fmt: skip
        put_view(store, "customer_id", entity, "customer_today", {
            "customer_tx_count_today": count, "customer_tx_amount_sum_today": chance.uniform(0, 100),
            "customer_today_day": int(midnight // 86400),
        }, now - chance.randint(1, 600))  # fmt: skip
        put_view(store, "terminal_id", entity, "terminal_daily", {
            **{f"terminal_tx_count_full_{d}": count * (i + 2) for i, d in enumerate(days)},
            **{f"terminal_labelled_tx_count_{d}": count * (i + 1) for i, d in enumerate(days)},
            **{f"terminal_fraud_risk_{d}": chance.random() / (i + 1) for i, d in enumerate(days)},
        }, midnight)  # fmt: skip
        put_view(store, "terminal_id", entity, "terminal_today", {
            "terminal_tx_count_today": count, "terminal_today_day": int(midnight // 86400),
        }, now - chance.randint(1, 600))  # fmt: skip
    return store


def bodies() -> list[dict[str, Any]]:
    """Return the transactions that are sent, over and over."""
    chance = random.Random(2)
    return [
        {
            "customer_id": chance.randrange(ENTITIES),
            "terminal_id": chance.randrange(ENTITIES),
            "tx_amount": round(chance.uniform(1, 300), 2),
        }
        for _ in range(BODIES)
    ]


def online_store() -> redis.Redis:
    """Return a client of the stack's online store."""
    return redis.Redis(setting("REDIS_HOST"), int(setting("REDIS_PORT")), password=setting("REDIS_PASSWORD"))


def setting(name: str) -> str:
    """Return a setting of the running stack."""
    if (value := os.environ.get(name)) is None:
        sys.exit(f"{name} is not set: the benchmark runs with the settings of a running stack")
    return value


# --- the floor ----------------------------------------------------------------------------------------


def floors(bundle: Bundle, model: bytes, store: dict[bytes, Hash], rounds: int) -> dict[str, float]:
    """Return the p50 in microseconds of read and score, of the two alone, and with XGBoost's own call."""
    xgboost = XgboostModel(model, len(bundle.contract.features))
    keys = list(store)
    fields = {key: list(hash_) for key, hash_ in store.items()}
    vector = [float(value) for value in range(len(bundle.contract.features))]
    client, chance = online_store(), random.Random(3)
    pairs = [
        (keys[2 * chance.randrange(ENTITIES)], keys[2 * chance.randrange(ENTITIES) + 1]) for _ in range(500)
    ]

    def read(at: int) -> None:
        with client.pipeline(transaction=False) as pipe:
            for key in pairs[at % len(pairs)]:
                pipe.hmget(key, fields[key])
            pipe.execute()

    def both(at: int) -> None:
        read(at)
        bundle.score(vector)

    def both_by_xgboost(at: int) -> None:
        read(at)
        xgboost.score(vector)

    return {
        "both": median(both, rounds),
        "both, xgboost": median(both_by_xgboost, rounds),
        "read": median(read, rounds),
        "model": median(lambda at: bundle.score(vector), rounds),
    }


def median(work: Callable[[int], object], rounds: int) -> float:
    """Return the p50 of `work` in microseconds."""
    times = []
    for at in range(rounds):
        started = time.perf_counter()
        work(at)
        times.append(time.perf_counter() - started)
    return percentile(sorted(times), 0.5) * 1e6


# --- the service --------------------------------------------------------------------------------------


def await_answer(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server of a process answers; return whether it does."""
    started = time.perf_counter()
    while time.perf_counter() - started < START_SECONDS and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.01)
    return False


class Served:
    """The service as a process on a bundle that is on its disk already."""

    def __init__(self, folder: Path, bundle: Path, sha256: str, **settings: str) -> None:
        spool = folder / "spool"
        (spool / "bundles").mkdir(parents=True)
        (spool / "fraud_detection_api").mkdir()
        (spool / "bundles" / sha256).symlink_to(bundle, target_is_directory=True)
        note = {"name": MODEL, "version": 1, "bundle_sha256": sha256}
        (spool / "fraud_detection_api" / "last_good.json").write_text(json.dumps(note))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {
            "SERVICE_PORT": str(port), "SPOOL_DIR": str(spool), "LOG_LEVEL": "INFO", "FEAST_PROJECT": PROJECT,
            "API_KEYS_FILE": str(write_keys(folder / "keys.json")), "MODEL_NAME": MODEL,
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        } | settings  # fmt: skip
        self._log = (folder / "service.log").open("wb")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.main"],
            cwd=SERVICE,
            env=environment,
            stdout=self._log,
            stderr=self._log,
        )
        if not await_answer(self.url + "/readyz", self._process):
            raise SystemExit(f"the service is not ready: {Path(self._log.name).read_text()[-2000:]}")
        self.ready_seconds = time.perf_counter() - started

    def pids(self) -> list[int]:
        """Return the processes that answer: the workers, or the one there is."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        return found or [self._process.pid]

    def memory_mib(self) -> float:
        """Return the resident memory of the largest worker, what it shares with others included."""
        return max(
            int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
            for pid in self.pids()
        )

    def cpu_seconds(self) -> float:
        """Return the processor time of the workers so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids()]
        return sum((int(own[11]) + int(own[12])) / ticks for own in fields)

    def close(self) -> None:
        """End the service."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@contextmanager
def serving(folder: Path, bundle: Path, sha256: str, **settings: str) -> Iterator[Served]:
    """Run the service for a while."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        served = Served(Path(own), bundle, sha256, **settings)
        try:
            yield served
        finally:
            served.close()


def load(url: str, lines: Path, headers: dict[str, str], clients: int, requests: int) -> dict[str, float]:
    """Return what the clients, a process of their own, measured."""
    job = {"url": url, "bodies": str(lines), "headers": headers, "clients": clients, "requests": requests}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_generator", json.dumps(job)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"the clients gave up: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


# --- the report ---------------------------------------------------------------------------------------


def result(
    name: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None
) -> dict[str, Any]:
    """Return one figure; where there is a peer the ratio is `value / peer_value`, and the target is on it."""
    ratio = value / peer_value if peer_value else None
    target = yaml.safe_load(TARGETS.read_text()).get(name)
    met = None
    if target is not None:
        sign, bound = target.split()
        judged = value if ratio is None else ratio
        met = judged <= float(bound) if sign == "<=" else judged >= float(bound)
    return {
        "name": name, "value": round(value, 3), "unit": unit, "peer": peer,
        "peer_value": None if peer_value is None else round(peer_value, 3),
        "ratio": None if ratio is None else round(ratio, 3), "target": target, "met": met,
    }  # fmt: skip


class Benchmark:
    """One run: everything on the same data, in the same folder."""

    def __init__(self, folder: Path, requests: int) -> None:
        self.folder = folder
        self.requests = requests
        self.bundle = folder / "bundle"
        self.sha256 = fraud_bundle(self.bundle, trees=TREES)
        self.lines = folder / "bodies.jsonl"
        self.lines.write_text("".join(json.dumps(body) + "\n" for body in bodies()))
        self.headers = {"x-api-key": KEY}
        self.store = store_of(time.time())
        self.rows: list[dict[str, Any]] = []

    def fill(self) -> None:
        """Write what is read into the online store."""
        client = online_store()
        for key, fields in self.store.items():
            client.hset(key, mapping=fields)

    def empty(self) -> None:
        """Take it out of the online store again."""
        client = online_store()
        for key in self.store:
            client.delete(key)

    def add(self, *row: Any) -> None:
        """Add a figure and show it."""
        found = result(*row)
        self.rows.append(found)
        judgement = {True: "met", False: "MISSED", None: "-"}[found["met"]]
        beside = (
            f"  ({found['ratio']:.2f} x {found['peer']}: {found['peer_value']:.5g})" if found["peer"] else ""
        )
        print(f"{judgement:7} {found['name']}: {found['value']:.5g} {found['unit']}{beside}", flush=True)

    def floor(self) -> tuple[float, float]:
        """Measure the floor, and what it were if XGBoost's library walked the trees; return both."""
        bundle = load_bundle(self.bundle, model_name=MODEL, feature_service="fraud_detection_v1")
        model = (self.bundle / bundle.manifest.model_file).read_bytes()
        found = floors(bundle, model, self.store, self.requests)
        self.add("floor: HMGETs by redis-py and the model", found["both"], "us")
        self.add(
            "floor: HMGETs by redis-py and the model by XGBoost's own call", found["both, xgboost"], "us"
        )
        self.add("floor: HMGETs by redis-py alone", found["read"], "us")
        self.add("floor: the model alone", found["model"], "us")
        return found["both"], found["both, xgboost"]

    def empty_reply(self) -> None:
        """Measure what a request costs a client, and the server, before anything is decided."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["-m", "uvicorn", "benchmarks.empty_app:app", "--lifespan", "off", "--no-access-log"]
        process = subprocess.Popen(
            [sys.executable, *command, "--log-level", "error", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            if not await_answer(url, process):
                raise SystemExit("uvicorn does not answer")
            for clients, figure in ((1, "p50"), (CLIENTS, "rate")):
                found = load(url, self.lines, {}, clients, self.requests)
                name = "floor: an empty reply of uvicorn, " + ("p50" if clients == 1 else "16 clients")
                self.add(name, found[figure], "us" if clients == 1 else "requests/s")
        finally:
            process.terminate()
            process.wait(10)

    def alone(self, sync: str, floor: tuple[float, float]) -> float:
        """Measure one worker; returns its throughput."""
        suffix = f", spool_sync={sync}"
        with serving(self.folder, self.bundle, self.sha256, SPOOL_SYNC=sync) as served:
            one = self._load(served, 1)
            many = self._load(served, CLIENTS)
            if sync == "always":
                self.add("start to ready", served.ready_seconds, "s")
                self.add("memory of a worker", served.memory_mib(), "MiB")
        name = "HMGETs by redis-py and the model"
        self.add("one client, p50, times the floor" + suffix, one["p50"], "us", name, floor[0])
        name += " by XGBoost's own call"
        self.add(
            "one client, p50, times the floor with XGBoost's own call" + suffix,
            one["p50"],
            "us",
            name,
            floor[1],
        )
        self.add("one client, p99" + suffix, one["p99"], "us")
        for share in ("p50", "p99"):
            self.add(f"16 clients, {share}" + suffix, many[share], "us")
        self.add("16 clients, throughput" + suffix, many["rate"], "requests/s")
        self.add("16 clients, processor time a request" + suffix, many["service_cpu"], "us")
        self.add("16 clients, the clients' own share of a core" + suffix, many["own_cpu_share"], "cores")
        return many["rate"]

    def together(self, alone: float) -> None:
        """Measure two workers beside one."""
        settings = {"SPOOL_SYNC": "always", "SERVICE_WORKERS": "2"}
        with serving(self.folder, self.bundle, self.sha256, **settings) as served:
            many = self._load(served, CLIENTS)
            self.add("start to ready, two workers", served.ready_seconds, "s")
            self.add("memory of a worker, two workers", served.memory_mib(), "MiB")
        self.add("16 clients, p99, two workers", many["p99"], "us")
        self.add("throughput, two workers, times one", many["rate"], "requests/s", "one worker", alone)

    def _load(self, served: Served, clients: int) -> dict[str, float]:
        requests = self.requests if clients == 1 else 2 * self.requests
        before = served.cpu_seconds()
        found = load(served.url + "/predict", self.lines, self.headers, clients, requests)
        spent = served.cpu_seconds() - before
        return found | {"service_cpu": spent / (requests * 1.1) * 1e6}  # with the requests that warm up

    def beside(self, names: list[str], own: float) -> None:
        """Measure peers under the same clients: each a server at a URL that answers a body with JSON."""
        bundle = load_bundle(self.bundle, model_name=MODEL, feature_service="fraud_detection_v1")
        address = f"{setting('REDIS_HOST')}:{setting('REDIS_PORT')},password={setting('REDIS_PASSWORD')}"
        case = catalogue.Case(
            body=bodies()[0],
            vector=[1.0] * len(bundle.contract.features),
            environment={
                "MODEL_FILE": str(self.bundle / bundle.manifest.model_file),
                "THRESHOLDS_FILE": str(self.bundle / "thresholds.json"),
                "CONTRACT_FILE": str(self.bundle / "feature_service.json"),
                "REDIS_CONNECTION": address,
                "FEAST_PROJECT": PROJECT,
            },
            folder=self.folder / "peers",
        )
        for name in names:
            with catalogue.serving(name, case) as peer:
                lines = self.folder / f"{name}.jsonl"
                lines.write_bytes(peer.body + b"\n")
                requests = max(CLIENTS, self.requests // 8)
                found = load(peer.url, lines, {}, CLIENTS, requests)
            title = PEER_TITLES[name]
            self.add(f"{title}, 16 clients, p50", found["p50"], "us")
            self.add(f"throughput, times {title}", own, "requests/s", title, found["rate"])


def main() -> int:
    """Measure, write the report, return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="bench_serving", description="Speed of one decision, end to end.")
    parser.add_argument(
        "--requests", type=int, default=4000, help="of one client; 16 clients send twice as many"
    )
    parser.add_argument("--peers", default=",".join(catalogue.NAMES), help="comma-separated; none: no peers")
    options = parser.parse_args()
    peers = [name for name in options.peers.split(",") if name != "none"]
    with tempfile.TemporaryDirectory() as scratch:
        benchmark = Benchmark(Path(scratch), options.requests)
        benchmark.fill()
        try:
            floor = benchmark.floor()
            benchmark.empty_reply()
            benchmark.alone("interval", floor)
            durable = benchmark.alone("always", floor)
            benchmark.together(durable)
            benchmark.beside(peers, durable)
        finally:
            benchmark.empty()
    report = {
        "command": "make bench-serving",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "results": benchmark.rows,
    }
    target = Path(setting("REPORTS_DIR")) / "bench-serving.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1))
    print(f"report: {target}")
    return 1 if any(row["met"] is False for row in benchmark.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
