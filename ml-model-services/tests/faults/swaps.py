"""Bundles swapped under load, corrupt ones among them: no request fails, every record replays to its score.

Aliases of a registry of folders move while clients send one decision after the other; a canary moves beside
the champion. A swap counts once a reply comes from the new bundle, a corrupt bundle once the service has
refused it. Run: `PYTHONPATH=.:tests python -m faults.swaps --scale full`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from service_testkit import (
    CUSTOMER,
    KEY,
    TERMINAL,
    FakeRedis,
    FakeStore,
    contract_document,
    fraud_bundle,
    known_store,
    settings_for,
    write_bundle,
)

from common_service_libs.decision_record import DecisionRecord, decode
from common_service_libs.model_registry import ModelVersion
from common_service_libs.release_bundle import as_values, load_bundle
from faults.load import percentile
from faults.served_app import command_line, result

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "fraud_detection_api"
NAME = "fraud-detection-model"
FEATURE_SERVICE = "fraud_detection_v1"
MOVES = {"small": (12, 10), "full": (200, 20)}  # swaps, corrupt bundles among them
MODELS = {"small": 3, "full": 12}
CONNECTIONS = {"small": 4, "full": 8}
POLL_SECONDS = 0.05
BUNDLE_MAX_BYTES = 4 << 20
ROLLBACK_EVERY = 4
CANARY_EVERY = 3
TOLERANCE = 1e-9
PATIENCE_SECONDS = 30.0


# --- a registry of folders --------------------------------------------------------------------------


class FolderRegistry:
    """A registry on the disk: `versions/<n>/bundle` and its tags, `aliases.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "versions").mkdir(parents=True, exist_ok=True)

    def bundle(self, version: int) -> Path:
        return self.folder / "versions" / str(version) / "bundle"

    def tag(self, version: int, **tags: str) -> None:
        path = self.folder / "versions" / str(version) / "tags.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tags))

    def point(self, aliases: Mapping[str, int]) -> None:
        """Move all aliases at once."""
        scratch = self.folder / "aliases.tmp"
        scratch.write_text(json.dumps(aliases))
        scratch.replace(self.folder / "aliases.json")

    def by_alias(self, name: str, alias: str) -> ModelVersion | None:
        version = json.loads((self.folder / "aliases.json").read_bytes()).get(alias)
        if version is None:
            return None
        tags = json.loads((self.folder / "versions" / str(version) / "tags.json").read_bytes())
        return ModelVersion(name, version, tags.get("bundle_sha256"), tags)

    def download(self, version: ModelVersion, folder: Path) -> None:
        shutil.copytree(self.bundle(version.version), folder / "bundle", symlinks=True)

    def close(self) -> None:
        return None


class RecordsFile(FakeStore):
    """A decision store that writes every record it is given to a file, too."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("ab")

    async def insert(self, records: list[bytes]) -> int:
        self._file.write(b"".join(record + b"\n" for record in records))
        self._file.flush()
        return await super().insert(records)


# --- bundles, good and corrupt ----------------------------------------------------------------------


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


class Bundles:
    """Registers good and corrupt versions; the models behind them are few, the identities all different."""

    def __init__(self, registry: FolderRegistry, scratch: Path, models: int) -> None:
        self._registry = registry
        self._models = []
        for seed in range(models):
            fraud_bundle(scratch / f"model-{seed}", seed=seed + 1, trees=20 + seed)
            self._models.append(contents_of(scratch / f"model-{seed}"))
        self._next = 0
        self.valid: dict[str, int] = {}

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _write(
        self,
        version: int,
        contents: Mapping[str, bytes],
        kind: str = "xgboost",
        service: str = FEATURE_SERVICE,
    ) -> str:
        """Write a bundle whose manifest is right about its contents; the version makes it one of a kind."""
        folder = self._registry.bundle(version)
        thresholds = {"review": 0.35, "decline": 0.8, "of_version": version / 10_000}
        changed = {**contents, "thresholds.json": json.dumps(thresholds).encode()}
        return write_bundle(folder, changed, NAME, kind, "model.ubj", service)

    def good(self) -> int:
        version = self._number()
        sha256 = self._write(version, self._models[version % len(self._models)])
        self._registry.tag(version, bundle_sha256=sha256, canary_share="0.3")
        self.valid[sha256] = version
        return version

    def corrupt(self, kind: str) -> int:
        version = self._number()
        sha256 = CORRUPT[kind](self, version)
        self._registry.tag(version, bundle_sha256=sha256, canary_share="0.3")
        return version

    def _altered(self, version: int) -> str:
        sha256 = self._write(version, self._models[0])
        model = self._registry.bundle(version) / "model.ubj"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(bytes(content))
        return sha256

    def _missing(self, version: int) -> str:
        sha256 = self._write(version, self._models[0])
        (self._registry.bundle(version) / "preprocessing.json").unlink()
        return sha256

    def _wrong_tag(self, version: int) -> str:
        """The tag names a bundle that the service holds already: that of another version."""
        self._write(version, self._models[0])
        return next(iter(self.valid))

    def _golden(self, version: int) -> str:
        contents = dict(self._models[0])
        rows = json.loads(contents["golden.json"])
        rows[7]["score"] = round(1 - rows[7]["score"], 6)
        return self._write(version, contents | {"golden.json": json.dumps(rows).encode()})

    def _other_service(self, version: int) -> str:
        document = contract_document("customer_churn_v1")
        contents = self._models[0] | {"feature_service.json": json.dumps(document).encode()}
        return self._write(version, contents, service="customer_churn_v1")

    def _truncated(self, version: int) -> str:
        contents = dict(self._models[0])
        return self._write(version, contents | {"model.ubj": contents["model.ubj"][:-200]})

    def _huge(self, version: int) -> str:
        sha256 = self._write(version, self._models[0])
        with (self._registry.bundle(version) / "model.ubj").open("ab") as model:
            model.truncate(BUNDLE_MAX_BYTES + (1 << 20))
        return sha256

    def _other_kind(self, version: int) -> str:
        return self._write(version, self._models[0], kind="random_forest")

    def _link(self, version: int) -> str:
        sha256 = self._write(version, self._models[0])
        golden = self._registry.bundle(version) / "golden.json"
        golden.unlink()
        golden.symlink_to("/dev/zero")
        return sha256

    def _scrambled(self, version: int) -> str:
        """Bytes of the model changed before its hash was taken: what a native library may stumble over."""
        contents = dict(self._models[0])
        rng, model = random.Random(version), bytearray(contents["model.ubj"])
        for _ in range(40):
            model[rng.randrange(len(model))] = rng.randrange(256)
        return self._write(version, contents | {"model.ubj": bytes(model)})


CORRUPT: dict[str, Callable[[Bundles, int], str]] = {
    "altered byte": Bundles._altered,
    "missing file": Bundles._missing,
    "tag of another bundle": Bundles._wrong_tag,
    "golden mismatch": Bundles._golden,
    "other feature service": Bundles._other_service,
    "truncated model": Bundles._truncated,
    "huge file": Bundles._huge,
    "other kind": Bundles._other_kind,
    "link to a device": Bundles._link,
    "scrambled model": Bundles._scrambled,
}


# --- the service ------------------------------------------------------------------------------------


async def _serve(folder: Path, port: int, given: Mapping[str, Any]) -> None:
    sys.path.insert(0, str(ROOT / "services" / SERVICE))
    from app.core.config import FraudApiConfig  # noqa: PLC0415 - the service's own package
    from app.main import create_app  # noqa: PLC0415

    from common_service_libs.runtime import Runtime  # noqa: PLC0415

    redis = FakeRedis(known_store())
    await redis.start()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn raises it again at the end
    settings = FraudApiConfig(**settings_for(folder, redis) | dict(given))
    store = RecordsFile(folder / "records.jsonl")
    runtime = Runtime(settings, registry=FolderRegistry(folder / "registry"), sink=store, lookup=store)
    config = uvicorn.Config(
        create_app(settings, runtime), port=port, log_config=None, access_log=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    await uvicorn.Server(config).serve()
    await redis.stop()


@contextmanager
def service(folder: Path, **settings: Any) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the service as a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG"}}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults.swaps", "serve", str(folder), str(port), json.dumps(settings)]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield port, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


# --- the load ---------------------------------------------------------------------------------------


class Reply(msgspec.Struct):
    """What a client keeps of a reply."""

    request_id: str
    score: float
    variant: str
    model: dict[str, Any]


class Load:
    """Clients that send one decision after the other, and keep every reply."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._connections = connections
        self._decoder = msgspec.json.Decoder(Reply)
        self.replies: list[Reply] = []
        self.failures: list[str] = []
        self.seconds: list[float] = []
        self.newest: dict[str, int] = {}
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._connections)]

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stopped:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                while not self._stopped:
                    await self._post(reader, writer, rng)
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)

    async def _post(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: random.Random
    ) -> None:
        known = rng.random() < 0.5
        body = json.dumps(
            {
                "customer_id": CUSTOMER if known else rng.randrange(1000, 10_000),
                "terminal_id": TERMINAL,
                "tx_amount": round(rng.uniform(1, 400), 2),
                "tx_datetime": "2026-01-31T12:00:00Z",
            }
        ).encode()
        head = (
            b"POST /predict HTTP/1.1\r\nhost: swaps\r\ncontent-type: application/json\r\nx-api-key: %b\r\n"
            b"content-length: %d\r\n\r\n" % (KEY.encode(), len(body))
        )
        started = time.perf_counter()
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        content = await reader.readexactly(int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        self.seconds.append(time.perf_counter() - started)
        if not answer.startswith(b"HTTP/1.1 200"):
            self.failures.append(f"{answer[:20]!r} {content[:200]!r}")
            return
        reply = self._decoder.decode(content)
        self.replies.append(reply)
        self.newest[reply.variant] = reply.model["version"]


# --- the run ----------------------------------------------------------------------------------------


class Run:
    """One run: moves aliases under load and looks at what came of it."""

    def __init__(
        self, folder: Path, scale: str, port: int, bundles: Bundles, registry: FolderRegistry
    ) -> None:
        self._folder = folder
        self._scale = scale
        self._bundles = bundles
        self._registry = registry
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}, timeout=10
        )
        self.load = Load(port, CONNECTIONS[scale])
        self._aliases: dict[str, int] = {}
        self.swap_seconds: list[float] = []
        self.rollback_seconds: list[float] = []
        self.not_refused: list[str] = []
        self.refused_kinds: list[str] = []
        self.explained = 0
        self.not_explained: list[str] = []

    async def _until(self, what: str, condition: Callable[[], bool]) -> float:
        started = time.perf_counter()
        while not condition():
            if time.perf_counter() - started > PATIENCE_SECONDS:
                log = (self._folder / "service.log").read_text()[-2000:]
                raise AssertionError(f"not within {PATIENCE_SECONDS:.0f} s: {what}\n{log}")
            await asyncio.sleep(0.002)
        return time.perf_counter() - started

    async def _refusals(self) -> float:
        text = (await self._http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith('model_swaps_total{outcome="refused"')]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def _swap(self, alias: str, version: int, variant: str) -> float:
        self._aliases[alias] = version
        self._registry.point(self._aliases)
        return await self._until(
            f"a reply of version {version}", lambda: self.load.newest.get(variant) == version
        )

    async def _corrupt(self, alias: str, kind: str) -> None:
        before, served = await self._refusals(), self._aliases.get(alias)
        version = self._bundles.corrupt(kind)
        self._registry.point(self._aliases | {alias: version})
        started = time.perf_counter()
        while await self._refusals() == before:
            if time.perf_counter() - started > PATIENCE_SECONDS:
                self.not_refused.append(kind)
                break
            await asyncio.sleep(0.02)
        self.refused_kinds.append(kind)
        if served is not None:
            self._registry.point(self._aliases)

    async def _explain(self) -> None:
        """Explain the newest decision, with the bundle that made it."""
        reply = self.load.replies[-1]
        answer = (await self._http.post(f"/decisions/{reply.request_id}/explain")).json()
        self.explained += 1
        if not answer.get("reproduced") or answer["replayed_score"] != reply.score:
            self.not_explained.append(f"{reply.request_id}: {answer}")

    async def moves(self) -> None:
        """Swap, roll back, move the canary, and offer corrupt bundles in between."""
        swaps, corrupt = MOVES[self._scale]
        kinds = [list(CORRUPT)[number % len(CORRUPT)] for number in range(corrupt)]
        self.load.start()
        await self._swap("champion", self._bundles.good(), "champion")
        history = [self._aliases["champion"]]
        for number in range(1, swaps + 1):
            while kinds and len(kinds) > corrupt * (swaps - number) / swaps:
                await self._corrupt("canary" if len(kinds) % 4 == 1 else "champion", kinds.pop())
            if number % ROLLBACK_EVERY == 0:
                took = await self._swap("champion", history[-2], "champion")
                self.rollback_seconds.append(took)
            else:
                self.swap_seconds.append(await self._swap("champion", self._bundles.good(), "champion"))
            history.append(self._aliases["champion"])
            if number % CANARY_EVERY == 0:
                await self._swap("canary", self._bundles.good(), "canary")
                await self._explain()
        await self.load.stop()
        await self._http.aclose()


def replayed(folder: Path, bundles: Bundles, registry: FolderRegistry, load: Load) -> dict[str, int]:
    """Compare every reply with its record, and every record with what its bundle says of its features."""
    records: dict[str, list[DecisionRecord]] = {}
    for line in (folder / "records.jsonl").read_bytes().splitlines():
        record = decode(line)
        records.setdefault(record.request_id, []).append(record)
    found = {"foreign": 0, "unrecorded": 0, "different": 0, "not replayed": 0}
    loaded = {}
    for reply in load.replies:
        sha256 = reply.model["bundle_sha256"]
        if bundles.valid.get(sha256) != reply.model["version"]:
            found["foreign"] += 1
            continue
        own = records.get(reply.request_id, [])
        if len(own) != 1:
            found["unrecorded"] += 1
            continue
        record = own[0]
        said = (reply.score, reply.variant, sha256)
        found["different"] += (record.score, record.variant, record.bundle_sha256) != said
        if sha256 not in loaded:
            loaded[sha256] = load_bundle(
                registry.bundle(bundles.valid[sha256]), model_name=NAME, feature_service=FEATURE_SERVICE,
                expected_sha256=sha256,
            )  # fmt: skip
        bundle = loaded[sha256]
        score = bundle.score(as_values(bundle.feature_names, record.features))
        found["not replayed"] += abs(score - reply.score) > TOLERANCE
    return found | {"bundles": len(loaded), "records": len(records)}


def run(scale: str) -> dict[str, Any]:
    """Return the results of the run at that scale."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        registry = FolderRegistry(folder / "registry")
        registry.point({})
        bundles = Bundles(registry, folder, MODELS[scale])
        settings = {
            "model_poll_seconds": POLL_SECONDS,
            "bundle_trial_seconds": 20,
            "bundle_max_bytes": BUNDLE_MAX_BYTES,
            "rollout_minimum_requests": 1_000_000,  # these canaries are told apart by chance only
            "max_nesting": 8,
        }
        first = bundles.good()
        registry.point({"champion": first})
        with service(folder, **settings) as (port, process):
            _wait_ready(port, process, folder)
            one = Run(folder, scale, port, bundles, registry)
            asyncio.run(one.moves())
            process.send_signal(signal.SIGTERM)
            ended = process.wait(30)
        found = replayed(folder, bundles, registry, one.load)
        return {"results": _results(one, found, ended), "failures": one.load.failures[:5]}


def _wait_ready(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the service does not start: {(folder / 'service.log').read_text()[-3000:]}")


def _results(one: Run, found: Mapping[str, int], ended: int) -> list[dict[str, Any]]:
    load = one.load
    swaps, corrupt = MOVES[one._scale]

    def none_of(name: str, value: float, unit: str = "requests") -> dict[str, Any]:
        return result(name, value, unit, 0, met=value == 0)

    done = len(one.swap_seconds) + len(one.rollback_seconds)
    return [
        result("swaps that a reply came from", done, "swaps", swaps, met=done == swaps),
        result("corrupt bundles offered", len(one.refused_kinds), "bundles", corrupt,
               met=len(one.refused_kinds) == corrupt),
        none_of("corrupt bundles not refused", len(one.not_refused), "bundles"),
        result("replies during the swaps", len(load.replies), "requests", None, met=bool(load.replies)),
        none_of("failed requests", len(load.failures)),
        none_of("replies of a bundle or version that is not valid", found["foreign"]),
        none_of("replies without exactly one record", found["unrecorded"]),
        none_of("replies that differ from their record", found["different"]),
        none_of("records that do not replay to the same score", found["not replayed"]),
        none_of("explanations that do not reproduce the score", len(one.not_explained), "explanations"),
        result("bundles that decided", found["bundles"], "bundles", None, met=found["bundles"] > 1),
        result("rollback, worst, from the alias's move to a reply", max(one.rollback_seconds), "s", None,
               met=True),
        result("rollback, median", percentile(one.rollback_seconds, 0.5), "s", None, met=True),
        result("swap, median, with its trial", percentile(one.swap_seconds, 0.5), "s", None, met=True),
        result("latency p99 while swapping", percentile(load.seconds, 0.99) * 1000, "ms", None, met=True),
        result("latency, worst", max(load.seconds) * 1000, "ms", None, met=True),
        none_of("exit code after SIGTERM", ended, "code"),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        from common_service_libs.json_logs import configure_logging

        configure_logging(SERVICE, "WARNING")
        asyncio.run(_serve(Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])))
    else:
        command_line(__doc__ or "", run)
