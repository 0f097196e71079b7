"""Runs DAGs here and now, one after the other, as `airflow dags test` does, but starting Airflow only once.

    run_dag.py DAG_ID[=CONF] ... [--logical-date D] [--conf JSON] [--retries N] [--json PATH]

Each task shows as one line (name, state, seconds); Airflow's own log goes to a file. The first DAG that fails
ends the run. Exit code: 0 all succeeded, 1 a DAG failed, 2 wrong arguments or an unknown DAG.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from migrate_database import ensure_migrated

_TICK_SECONDS = 10.0
_KEPT_LOGS = 50


@dataclass(frozen=True)
class Request:
    """One DAG to run, and the parameters of its run."""

    dag_id: str
    conf: dict[str, Any]


@dataclass
class TaskResult:
    """How a task ended; `seconds` is 0 for one that never started."""

    task_id: str
    state: str
    seconds: float
    tries: int


@dataclass
class DagResult:
    """How a run ended."""

    dag_id: str
    run_id: str
    logical_date: str
    state: str
    seconds: float
    tasks: list[TaskResult] = field(default_factory=list)


class Console:
    """Prints a line when a task ends, and shows meanwhile how far it is."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._lock = threading.Lock()
        self._task: tuple[str, float] | None = None
        self._line = ""
        self.seconds: dict[str, float] = {}
        threading.Thread(target=self._tick, daemon=True).start()

    def say(self, text: str) -> None:
        """Print a line of its own."""
        with self._lock:
            self._write(text)

    def started(self, task_id: str) -> None:
        """Remember which task runs, since when."""
        with self._lock:
            self._task, self._line = (task_id, time.monotonic()), ""

    def watch(self, line: str) -> None:
        """Remember the last line of the running command."""
        self._line = line

    def ended(self, task_id: str, state: str, reason: str = "") -> None:
        """Print how a task ended, and why it failed."""
        with self._lock:
            # A task whose arguments can't be rendered fails before it starts.
            start = self._task[1] if self._task else time.monotonic()
            self._task = None
            self.seconds[task_id] = time.monotonic() - start
            self._write(f"  {task_id:<28} {state:<12} {self.seconds[task_id]:7.1f} s")
            for text in reason.splitlines():
                self._write(f"      {text}")

    def _tick(self) -> None:
        pause = 0.5 if self._live else _TICK_SECONDS
        while True:
            time.sleep(pause)
            with self._lock:
                if self._task is None:
                    continue
                task_id, start = self._task
                seconds = time.monotonic() - start
                text = f"  {task_id:<28} {'running':<12} {seconds:7.1f} s  {self._line}"
                if self._live:
                    width = os.get_terminal_size(self._out.fileno()).columns or 80
                    self._out.write(f"\r\033[K{text[: width - 1]}")
                    self._out.flush()
                elif seconds >= pause:
                    self._write(text[:160])

    def _write(self, text: str) -> None:
        self._out.write(f"{chr(13)}\033[K{text}\n" if self._live else f"{text}\n")
        self._out.flush()


def parse_requests(words: Sequence[str], common: Mapping[str, Any]) -> list[Request]:
    """Read `DAG_ID` or `DAG_ID={"param": value}`; a DAG's own values win over `common`.

    >>> parse_requests(['a', 'b={"x": 2}'], {"x": 1})
    [Request(dag_id='a', conf={'x': 1}), Request(dag_id='b', conf={'x': 2})]
    """
    requests = []
    for word in words:
        dag_id, _, conf = word.partition("=")
        requests.append(Request(dag_id, {**common, **parse_conf(conf or "{}")}))
    return requests


def parse_conf(text: str) -> dict[str, Any]:
    """Read a JSON object; raises ArgumentTypeError for anything else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def parse_moment(text: str) -> datetime:
    """Read an ISO 8601 date or date-time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date: write 2026-11-21") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def run_all(
    requests: Sequence[Request],
    moment: datetime,
    retries: int,
    console: Console,
    on_result: Callable[[DagResult], None],
) -> int:
    """Run each DAG to its end; stop at the first that fails. Airflow is imported here, once."""
    from airflow import settings  # noqa: PLC0415
    from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415
    from airflow.dag_processing.dagbag import BundleDagBag  # noqa: PLC0415

    settings.initialize()
    from operators.root_command_operator import RootCommandOperator  # noqa: PLC0415

    RootCommandOperator.watcher = console.watch
    dags, broken = {}, {}
    for bundle in DagBundlesManager().get_all_dag_bundles():
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        dags.update(bag.dags)
        broken.update(bag.import_errors)
    gc.freeze()
    gc.enable()
    for request in requests:
        if request.dag_id not in dags:
            console.say(f"there is no DAG {request.dag_id!r}; known: {', '.join(sorted(dags)) or 'none'}")
            for path, error in broken.items():
                console.say(f"  {path} does not import:\n{error}")
            return 2
    for request in requests:
        result = _run(dags[request.dag_id], request.conf, moment, retries, console)
        on_result(result)
        if result.state != "success":
            return 1
    return 0


def _run(dag: Any, conf: dict[str, Any], moment: datetime, retries: int, console: Console) -> DagResult:
    shown = f" {json.dumps(conf)}" if conf else ""
    console.say(f"{dag.dag_id} ({moment.isoformat()}){shown}")
    for task in dag.tasks:
        task.retries = retries
        _report_to(console, task)
    console.seconds.clear()
    start = time.monotonic()
    run = dag.test(logical_date=moment, run_conf=conf)
    seconds = time.monotonic() - start
    tasks = sorted(run.get_task_instances(), key=lambda ti: (ti.start_date is None, ti.start_date or moment))
    results = [
        TaskResult(ti.task_id, str(ti.state), round(console.seconds.get(ti.task_id, 0.0), 3), ti.try_number)
        for ti in tasks
    ]
    for result in results:
        if result.state == "upstream_failed":
            console.say(f"  {result.task_id:<28} not started: a task before it failed")
    console.say(f"  {'':<28} {str(run.state).upper():<12} {seconds:7.1f} s")
    return DagResult(dag.dag_id, run.run_id, moment.isoformat(), str(run.state), round(seconds, 3), results)


def _report_to(console: Console, task: Any) -> None:
    def ended(state: str) -> list[Callable[[Any], None]]:
        return [lambda context: console.ended(task.task_id, state, str(context.get("exception") or ""))]

    task.on_execute_callback = [lambda _: console.started(task.task_id)]
    task.on_success_callback = ended("success")
    task.on_skipped_callback = ended("skipped")
    task.on_retry_callback = ended("retry")
    task.on_failure_callback = ended("failed")


def _write_json(path: Path, results: Sequence[DagResult], startup_seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    content = {"startup_seconds": round(startup_seconds, 3), "dags": [asdict(result) for result in results]}
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def _divert_output(log: Path) -> TextIO:
    """Send everything this process prints to `log`, and return the stream that was its standard output."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    console = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    return console


def main() -> int:
    """Read the arguments, run the DAGs, and leave the durations as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dags", nargs="+", metavar="DAG_ID[=CONF]")
    parser.add_argument(
        "--logical-date", type=parse_moment, metavar="D", help="UTC (default: midnight today)"
    )
    parser.add_argument(
        "--conf", type=parse_conf, default={}, metavar="JSON", help="parameters of every DAG named"
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="of a failed task (default: 0, so that a failure shows at once)",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write states and durations")
    arguments = parser.parse_args()
    try:
        requests = parse_requests(arguments.dags, arguments.conf)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = time.monotonic()
    results: list[DagResult] = []
    startup = 0.0

    def on_result(result: DagResult) -> None:
        nonlocal startup
        if not results:
            startup = time.monotonic() - begin - result.seconds
        results.append(result)
        if arguments.json:
            _write_json(arguments.json, results, startup)

    sys.dont_write_bytecode = False  # Airflow is 1,500 modules: compiling them anew takes half the start.
    gc.disable()  # Nothing of the few thousand classes imported now is garbage.
    ensure_migrated()
    folder = Path(os.environ["AIRFLOW_HOME"]) / "logs" / "run_dag"
    log = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    console = Console(_divert_output(log))
    for old in sorted(folder.glob("*.log"))[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    console.say("starting Airflow")
    try:
        return run_all(requests, arguments.logical_date or midnight, arguments.retries, console, on_result)
    except KeyboardInterrupt:
        console.say("interrupted")
        return 130
    except Exception:
        traceback.print_exc()
        console.say(f"Airflow failed:\n{traceback.format_exc()}")
        return 1
    finally:
        console.say(f"  (Airflow's log: {log})")


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Taking Airflow's objects down one by one takes another second or two.
