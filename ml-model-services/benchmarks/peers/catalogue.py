"""The peers of the serving benchmark: how each is installed, started and asked.

`usual` and `mlflow_serve` answer the same body as the service, with features by the Feast SDK from the same
online store. The other three hold the model alone and get the features in the request, which spares them the
larger part of the work. Each runs one worker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOCAL_DIR = Path(os.environ.get("LOCAL_DIR") or HERE.parents[2] / ".local").resolve()
START_SECONDS = 180
STOP_SECONDS = 20


class PeerError(Exception):
    """A peer can't be installed or does not answer; the message says which and why."""


@dataclass(frozen=True)
class Case:
    """What every peer is asked: the same decision.

    `body` is the service's own request, `vector` the features of it, `environment` names the files and
    servers that peers read: MODEL_FILE, THRESHOLDS_FILE, CONTRACT_FILE, REDIS_CONNECTION, FEAST_PROJECT.
    """

    body: Mapping[str, Any]
    vector: Sequence[float]
    environment: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Running:
    """A peer that answers: where, and with which body."""

    name: str
    url: str
    body: bytes


NAMES = ("usual", "mlflow_serve", "bentoml", "mlserver", "ray_serve")


def install(name: str) -> Path:
    """Return the Python of a peer's environment, made from its list of versions where it is not there yet."""
    folder = LOCAL_DIR / "venvs" / f"bench-{name}"
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = (HERE / name / "versions.txt").read_bytes()
    if done.is_file() and done.read_bytes() == wanted:
        return python
    uv = str(LOCAL_DIR / "tools" / "bin" / "uv")
    command = [uv, "pip", "install", "--quiet", "--python", str(python), "-r", "versions.txt"]
    if (HERE / name / "overrides.txt").is_file():
        command += ["--overrides", "overrides.txt"]
    for step in ([uv, "venv", "--quiet", "--allow-existing", str(folder)], command):
        made = subprocess.run(step, cwd=HERE / name, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise PeerError(f"{name} can't be installed: {made.stderr.strip()[-500:]}")
    done.write_bytes(wanted)
    return python


@contextmanager
def serving(name: str, case: Case) -> Iterator[Running]:
    """Install and start a peer, yield it once it answers with a score, and end it and its children."""
    python = install(name)
    folder = case.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        running = _STARTERS[name](stack, python, case, folder)
        _await(running)
        yield running


def _usual(stack: ExitStack, python: Path, case: Case, folder: Path) -> Running:
    port = free_port()
    _start(
        stack, [python, "server.py"], "usual", case, folder, PORT=port, RECORD_FILE=folder / "records.jsonl"
    )
    return Running("usual", f"http://127.0.0.1:{port}/predict", json.dumps(case.body).encode())


def _mlflow(stack: ExitStack, python: Path, case: Case, folder: Path) -> Running:
    model, port, server = folder / "model", free_port(), free_port()
    shutil.rmtree(model, ignore_errors=True)
    saved = subprocess.run(
        [str(python), "save_model.py", case.environment["MODEL_FILE"], str(model)],
        cwd=HERE / "mlflow_serve",
        capture_output=True,
        text=True,
        check=False,
    )
    if saved.returncode != 0:
        raise PeerError(f"mlflow can't save the model: {saved.stderr.strip()[-500:]}")
    command = [
        python.parent / "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "-p",
        server,
        "--env-manager",
        "local",
    ]
    _start(stack, [*command, "--env-manager", "local"], "mlflow_serve", case, folder)
    _start(
        stack,
        [install("usual"), "gateway.py"],
        "usual",
        case,
        folder,
        PORT=port,
        RECORD_FILE=folder / "records.jsonl",
        MODEL_SERVER=f"http://127.0.0.1:{server}",
    )
    return Running("mlflow_serve", f"http://127.0.0.1:{port}/predict", json.dumps(case.body).encode())


def _bentoml(stack: ExitStack, python: Path, case: Case, folder: Path) -> Running:
    port = free_port()
    command = [
        python.parent / "bentoml",
        "serve",
        "service:FraudModel",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    command += ["--port", port]
    _start(stack, command, "bentoml", case, folder, BENTOML_HOME=folder, BENTOML_DO_NOT_TRACK="True")
    return Running("bentoml", f"http://127.0.0.1:{port}/predict", _rows(case))


def _mlserver(stack: ExitStack, python: Path, case: Case, folder: Path) -> Running:
    port, grpc, metrics = free_port(), free_port(), free_port()
    shutil.copy(case.environment["MODEL_FILE"], folder / "model.ubj")
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                "http_port": port,
                "grpc_port": grpc,
                "metrics_port": metrics,
                "parallel_workers": 0,
                "debug": False,
            }
        )
    )
    (folder / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "fraud",
                "implementation": "mlserver_xgboost.XGBoostModel",
                "parameters": {"uri": "./model.ubj"},
            }
        )
    )
    _start(stack, [python.parent / "mlserver", "start", folder], "mlserver", case, folder)
    tensor = {"name": "rows", "shape": [1, len(case.vector)], "datatype": "FP32", "data": list(case.vector)}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Running("mlserver", f"http://127.0.0.1:{port}/v2/models/fraud/infer", body)


def _ray(stack: ExitStack, python: Path, case: Case, folder: Path) -> Running:
    port = free_port()
    _start(stack, [python, "serve_model.py"], "ray_serve", case, folder, PORT=port, RAY_USAGE_STATS_ENABLED=0)
    return Running("ray_serve", f"http://127.0.0.1:{port}/predict", _rows(case))


_STARTERS = {
    "usual": _usual,
    "mlflow_serve": _mlflow,
    "bentoml": _bentoml,
    "mlserver": _mlserver,
    "ray_serve": _ray,
}


def _rows(case: Case) -> bytes:
    return json.dumps({"rows": [list(case.vector)]}).encode()


def _start(
    stack: ExitStack, command: Sequence[Any], name: str, case: Case, folder: Path, **settings: Any
) -> None:
    environment = os.environ | dict(case.environment) | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {key: str(value) for key, value in settings.items()}
    environment["PATH"] = f"{Path(str(command[0])).parent}:{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    log = stack.enter_context((folder / "server.log").open("ab"))
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=HERE / name,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with every process of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _await(running: Running) -> None:
    began = time.monotonic()
    request = urllib.request.Request(
        running.url, running.body, {"Content-Type": "application/json"}, method="POST"
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
                return
        except (OSError, ValueError) as error:
            if time.monotonic() - began > START_SECONDS:
                raise PeerError(f"{running.name} does not answer: {error}") from None
            time.sleep(0.5)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
