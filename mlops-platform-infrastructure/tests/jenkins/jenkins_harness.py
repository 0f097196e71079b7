"""Runs Jenkinsfiles and job definitions in Groovy, without a Jenkins, and tells what they did."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT.parent
CONFIG = ROOT / "jenkins_config"
HARNESS = Path(__file__).parent / "harness"
NAMES = (
    "feature_store",
    "ml_model_development",
    "ml_model_services",
    "mlops_orchestration",
    "platform_infra",
    "reporting_monitoring",
)
PLATFORM = "mlops-platform-infrastructure"


def missing() -> str:
    """Return why the harness can't run here, or an empty text."""
    lacking = [program for program in ("groovy", "java") if shutil.which(program) is None]
    return f"{' and '.join(lacking)} not installed (Debian: apt-get install groovy)" if lacking else ""


def jenkinsfile(name: str) -> Path:
    return CONFIG / f"Jenkinsfile_{name}"


def run(
    pipelines: Mapping[Path, Sequence[Mapping[str, Any]]],
    jobs: Mapping[Path, Mapping[str, str]] | None = None,
) -> dict[str, dict[Path, Any]]:
    """Return what each pipeline did for each request, and the jobs that each definition makes."""
    asked = {
        "pipelines": {str(path): list(requests) for path, requests in pipelines.items()},
        "jobs": {str(path): dict(environment) for path, environment in (jobs or {}).items()},
    }
    java = Path(str(shutil.which("java"))).resolve()
    ran = subprocess.run(
        ["groovy", "-cp", str(HARNESS), str(HARNESS / "run.groovy")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # Debian's start script asks for the folder of a default Java that need not be installed.
        env=os.environ
        | {"JAVA_HOME": str(java.parents[1]), "JAVA_OPTS": "-XX:TieredStopAtLevel=1 -Xshare:auto"},
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    answered = json.loads(ran.stdout)
    return {kind: {Path(path): value for path, value in answered[kind].items()} for kind in asked}


def commands(report: Mapping[str, Any], stage: str = "") -> list[str]:
    """Return the shell commands of a run, in order; of the stages whose path begins so."""
    assert "error" not in report, report["error"]
    return [
        step["command"]
        for step in report["steps"]
        if step["kind"] == "sh" and step["stage"].startswith(stage)
    ]


def images(command: str) -> set[str]:
    """Return the images that a command names."""
    found = re.search(r"\bIMAGES=(\S+)", command)
    return set(found[1].split(",")) if found else set()
