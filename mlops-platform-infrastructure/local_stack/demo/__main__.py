"""`python -m local_stack.demo`: the whole loop on one machine, ending in a summary and `demo.json`.

Exit code: 0 the loop ran to its end, 1 a part failed (named, with its last lines), 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from local_stack import __main__ as stack
from local_stack import health, settings
from local_stack.demo import freshness, requests, summary
from local_stack.instance import DEFAULT_INSTANCE, REPO_DIR, Instance, open_instance
from local_stack.measure import PeakMemory, StageTimer
from local_stack.supervisor import ServiceFailedError
from local_stack.transactions import read_day

CHURN_DELAY_DAYS = 30
READY_SECONDS = 60.0
MATERIALIZE = "materialize_feast_online_store"
# Once the features are there each model goes its own way, two at a time: hardly a task uses both cores.
LANES = {
    "fraud": (
        "train_fraud_detection_xgboost",
        "score_daily_transactions_fraud",
        "check_fraud_model_drift",
    ),
    "churn": ("train_customer_churn_lightgbm", "score_daily_subscribers_churn"),
    "movies": ("train_movie_recommendation_hybrid", "recommend_daily_movies"),
}
LANES_AT_A_TIME = 2
STREAM_DAG = "stream_market_data_to_feast"


@dataclass(frozen=True)
class Scale:
    """How much is simulated; every scale covers the same 183 days, so that the Handbook's split exists."""

    customers: int
    terminals: int
    days: int = 183


SCALES = {"full": Scale(5000, 10000), "small": Scale(500, 1000)}


class DemoError(Exception):
    """A part of the loop failed; the message says which and why."""


class Demo:
    """One run of the loop against one instance of the stack, as of the last midnight (UTC)."""

    def __init__(self, instance: Instance, scale: str, now: datetime) -> None:
        self.instance = instance
        self.scale = scale
        self.today = now.date()
        self.last_day = self.today - timedelta(days=1)
        self.env = settings.read(instance.env_file)
        self.landing = Path(self.env["DATA_DIR"]) / "landing" / "transactions"
        self.reports = Path(self.env["REPORTS_DIR"])

    def simulate(self) -> None:
        """Simulate the card transactions up to yesterday into the landing folder, or reuse them."""
        size = SCALES[self.scale]
        options = {
            "--customers": size.customers,
            "--terminals": size.terminals,
            "--days": size.days,
            "--end-date": self.last_day,
            "--out": self.landing,
        }
        words = [str(word) for option in options.items() for word in option]
        self._run(
            "feature-store-management",
            ["-m", "data_transformation_pipelines.python_scripts_feast.simulate_transactions", *words],
        )

    def run_dags(self, *dags: str, lane: str = "") -> list[dict[str, Any]]:
        """Run DAGs through Airflow as of today's midnight; returns states and durations of their tasks.

        What a lane prints begins with its name.
        """
        report = self.reports / f"demo-dags{lane and '-'}{lane}.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        words = ["scripts/run_dag.py", *dags, "--logical-date", str(self.today), "--json", str(report)]
        self._run("mlops-orchestration-pipelines", words, lane)
        result: list[dict[str, Any]] = json.loads(report.read_text())["dags"]
        return result

    def build_to_monitor(self) -> list[dict[str, Any]]:
        """Load, transform, materialize, train, promote, score the last day, watch drift: the production DAGs.

        A data set other than the loaded one replaces it. The subscribers' snapshot is old enough for their
        labels to be known.
        """
        snapshot = self.today - timedelta(days=CHURN_DELAY_DAYS + 1)
        conf = {"replace_dataset": self._other_dataset(), "snapshot_date": str(snapshot)}
        done = self.run_dags(f"run_dbt_feast_models={json.dumps(conf)}", MATERIALIZE)
        with ThreadPoolExecutor(LANES_AT_A_TIME) as lanes:
            running = [lanes.submit(self.run_dags, *dags, lane=name) for name, dags in LANES.items()]
            try:
                for lane in running:
                    done += lane.result()
            except BaseException:
                lanes.shutdown(wait=False, cancel_futures=True)
                raise
        return done

    def start_apis(self) -> None:
        """Start the services and wait until each has loaded the champion and reached the online store."""
        stack.up(self.instance, apis=True)
        for name, address in self._addresses().items():
            health.wait_http(f"{address}/readyz", READY_SECONDS, f"{name} API is not ready")

    def ask(self) -> list[dict[str, Any]]:
        """Send real requests to all services; returns them with their decisions."""
        chosen = requests.pick_transactions(self.landing, self.last_day, self.today, frauds=2, good=6)
        chosen += requests.pick_subscribers(6, subscribers=7043)
        chosen.append(requests.pick_viewer(42, movies=5))
        addresses = self._addresses()
        return [requests.send(one, addresses[one.service], self.env["DEMO_API_KEY"]) for one in chosen]

    def stream(self, decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Let a customer pay, process the stream, and show that the next decision knows it."""
        asked = [one["request"] for one in decisions if one["service"] == "fraud"]
        taken = {request[key] for request in asked for key in ("customer_id", "terminal_id")}
        like = freshness.pick(read_day(self.landing, self.last_day), taken)
        return freshness.show(like, self.env, lambda: self.run_dags(STREAM_DAG))

    def _addresses(self) -> dict[str, str]:
        return {name: self.env[f"{name.upper()}_API_URL"] for name in ("fraud", "churn", "recommendation")}

    def _other_dataset(self) -> bool:
        landed = json.loads((self.landing / "dataset.json").read_text())["dataset_id"]
        return summary.loaded_dataset(self.env) not in (None, landed)

    def _run(self, root: str, arguments: Sequence[str], lane: str = "") -> None:
        python = self.instance.local_dir / "venvs" / root / "bin" / "python"
        with subprocess.Popen(
            [str(python), *arguments],
            cwd=REPO_DIR / root,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE if lane else None,
            text=True,
        ) as process:
            for line in process.stdout or ():
                stack.say(f"{lane:<7}|{line.rstrip()}")
        if process.returncode != 0:
            raise DemoError(f"{root}: {' '.join(arguments[:3])} failed with exit code {process.returncode}")


def run_loop(instance: Instance, scale: str, now: datetime) -> dict[str, Any]:
    """Run the loop and return the report that `demo.json` holds."""
    timer = StageTimer(stack.say)
    with PeakMemory(instance) as memory:
        with timer.stage("start the stack"):
            stack.up(instance, apis=False)
        demo = Demo(instance, scale, now)
        with timer.stage("simulate transactions"):
            demo.simulate()
        with timer.stage("run the DAGs"):
            dags = demo.build_to_monitor()
        with timer.stage("start the services"):
            demo.start_apis()
        with timer.stage("decide"):
            decisions = demo.ask()
        with timer.stage("stream"):
            stream = demo.stream(decisions)
    run = summary.Run(
        scale, demo.today, demo.last_day, decisions, stream, dags, timer.seconds, memory.peak_mb
    )
    return summary.collect(demo.env, run)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo, print the summary, write `demo.json`."""
    parser = argparse.ArgumentParser(prog="python -m local_stack.demo", description=__doc__)
    parser.add_argument("--instance", default=DEFAULT_INSTANCE)
    parser.add_argument("--scale", choices=sorted(SCALES), default="full")
    options = parser.parse_args(arguments)
    instance = open_instance(options.instance)
    began = datetime.now(UTC)
    try:
        report = run_loop(instance, options.scale, began)
    except (
        DemoError,
        requests.ApiError,
        summary.MissingReportError,
        ServiceFailedError,
        TimeoutError,
    ) as error:
        print(f"\nThe demo stopped: {error}\nLogs: make logs, and {instance.logs_dir}", file=sys.stderr)
        return 1
    path = instance.reports_dir / "demo.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(summary.render(report))
    print(f"\nThe same as JSON: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
