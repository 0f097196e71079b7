"""A trial of a bundle in a process of its own, before the service loads it for the first time.

The model libraries are written in C++: a model file that was damaged before its hash was taken can end the
process that reads it, or fill its memory. Here that process is not the service.

The helper process (`python -m common_service_libs.rollout.trial`) reads one JSON document a line and answers
with one; it ends by itself after a while without work.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from common_service_libs.errors import ArtifactError, BundleError
from common_service_libs.model_registry import ModelVersion

_ROOT = Path(__file__).resolve().parents[2]
IDLE_SECONDS = 10.0
MEMORY_BYTES = 4 << 30
# Plain arrays, read by their service's own loader: no native library parses them.
UNTRIED_KINDS = frozenset({"recommender"})


class BundleTrial:
    """Loads bundles in a helper process; belongs to one thread, except for `give_up`."""

    def __init__(self, feature_service: str, *, deadline: float) -> None:
        self._feature_service = feature_service
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = threading.Event()

    def run(self, folder: Path, version: ModelVersion) -> None:
        """Load the bundle; raises BundleError for one that cannot be loaded, or that kills its process.

        Raises OSError if the trial was given up.
        """
        process = self._running()
        question = {
            "folder": str(folder),
            "model_name": version.name,
            "feature_service": self._feature_service,
            "sha256": version.bundle_sha256,
        }
        try:
            answer = self._ask(process, json.dumps(question).encode() + b"\n")
        except OSError:  # it went idle at this very moment, or died
            answer = None
        if self._given_up.is_set():
            raise InterruptedError("the trial of the bundle was given up")
        if answer is None:
            raise BundleError(self._ended(process))
        if problem := answer["problem"]:
            raise BundleError(str(problem))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common_service_libs.rollout.trial"],
            env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
            cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if self._read_line(self._process, time.monotonic() + self._deadline) is None:
            raise BundleError(self._ended(self._process))
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], question: bytes) -> dict[str, Any] | None:
        assert process.stdin is not None
        process.stdin.write(question)
        process.stdin.flush()
        line = self._read_line(process, time.monotonic() + self._deadline)
        return None if line is None else dict(json.loads(line))

    def _read_line(self, process: subprocess.Popen[bytes], until: float) -> bytes | None:
        """Return one line, or None if the process ends or says nothing until then."""
        assert process.stdout is not None
        said = b""
        while not said.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or self._given_up.is_set():
                return None
            if select.select([process.stdout], [], [], min(left, 0.2))[0]:
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    return None
                said += part
        return said

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """Say how a process ended that gave no answer; it is killed if it still runs."""
        try:
            code = process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"the trial of the bundle gave no answer within {self._deadline:.0f} s"
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the trial of the bundle ended its process: {ending}"

    def give_up(self) -> None:
        """End a trial that is under way, from any thread; there will be no other."""
        self._given_up.set()

    def close(self) -> None:
        """End the helper process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _try(question: dict[str, str]) -> str | None:
    from common_service_libs.release_bundle import load_bundle, verify  # noqa: PLC0415 - after the limits

    folder = Path(question["folder"])
    try:
        if verify(folder)[0].model_kind in UNTRIED_KINDS:
            return None
        bundle = load_bundle(
            folder,
            model_name=question["model_name"],
            feature_service=question["feature_service"],
            expected_sha256=question["sha256"],
        )
        bundle.contributions([None] * len(bundle.feature_names))  # what an explanation will ask for
    except ArtifactError as error:
        return str(error)
    except Exception as error:  # whatever it is, the bundle cannot be loaded
        return f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    """Answer questions until there are no more, or none comes for a while."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library's prints are no answers
    out.write(b"{}\n")
    while select.select([0], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            break
        out.write(json.dumps({"problem": _try(json.loads(line))}).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
