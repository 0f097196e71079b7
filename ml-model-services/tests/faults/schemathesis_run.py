"""Schemathesis, all phases, at a real server: no 5xx, and every reply is as the service's document says.

Run: `PYTHONPATH=.:tests python -m faults.schemathesis_run --scale full`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from service_testkit import KEY

from faults.served_app import BODIES, ServedApp, command_line, result

SERVICES = {"small": ("customer_churn_api",), "full": tuple(BODIES)}
CASES = {"small": 100, "full": 10_000}
EXAMPLES = {"small": 1, "full": 400}  # of one operation in one phase; a round, until there are cases enough
ROUNDS = 12
PHASES = ("examples", "coverage", "fuzzing", "stateful")
# 422 is also the documented answer to a request that has the right form: the entity is unknown, a time lies
# too far ahead. 503 is documented wherever it can come.
CONFIGURATION = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429", "503"]
[[operations]]
# Each case of a batch has an answer of its own: a wrong one is a 422 among the results of a 200.
include-name = "POST /predict/batch"
[operations.checks.negative_data_rejection]
expected-statuses = ["200", "400", "401", "403", "404", "409", "413", "415", "422", "429", "503"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


def explore(app: ServedApp, folder: Path, examples: int, seed: int) -> dict[str, Any]:
    """Run all phases once and return Schemathesis' own report."""
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    report = folder / f"report-{seed}.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{app.url}/openapi.json", "--no-color",
            "--header", f"X-API-Key: {KEY}", "--phases", ",".join(PHASES), "--max-examples", str(examples),
            "--seed", str(seed), "--generation-database", "none", "--continue-on-failure",
            "--request-timeout", "5", "--report-json-path", str(report),
        ],
        cwd=folder, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    if done.returncode != 0 or not report.exists():
        print(done.stdout[-6000:], done.stderr[-2000:])
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def run(scale: str) -> dict[str, Any]:
    """Return what was measured, service by service."""
    results = []
    for service in SERVICES[scale]:
        cases = failures = errors = 0
        untested, phases = 0, set()
        with tempfile.TemporaryDirectory() as name, ServedApp(service, Path(name) / "app") as app:
            for seed in range(1, ROUNDS + 1):
                report = explore(app, Path(name), EXAMPLES[scale], seed)
                counts, operations = report["test_cases"], report["operations"]
                cases += counts["generated"]
                failures += counts["unique_failures"]
                errors += counts["errored"] + len(report["errors"])
                untested = max(untested, operations["total"] - operations["tested"])
                phases |= {phase for phase, state in report["phases"].items() if state["status"] == "success"}
                if cases >= CASES[scale] or failures or errors:
                    break
        wanted = CASES[scale]
        results += [
            result(f"{service}: generated cases", cases, "cases", wanted, met=cases >= wanted),
            result(f"{service}: failed checks", failures, "failures", 0, met=failures == 0),
            result(f"{service}: errors", errors, "errors", 0, met=errors == 0),
            result(f"{service}: operations left out", untested, "operations", 0, met=untested == 0),
            result(
                f"{service}: phases passed", len(phases), "phases", len(PHASES), met=set(PHASES) <= phases
            ),
        ]
    return {"results": results}


if __name__ == "__main__":
    command_line(__doc__ or "", run)
