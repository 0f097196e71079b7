"""`python -m server_tools images build [NAME ...]`, `images list`: the images on a Docker Engine.

`build` makes what is missing of the base image and of the images of other projects (see local_engine), then
builds ours in order, each with the commit as a label, and leaves sizes and seconds in `images.json` under
REPORTS_DIR. The version is MLOPS_VERSION (default: dev).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from local_engine import base_images
from local_engine.engine import Engine, EngineError
from local_engine.stand_ins import build as stand_ins
from server_tools.places import REPOSITORY, ROOT

LIMITS = ROOT / "images" / "sizes.json"
COMMIT_LABEL = "org.opencontainers.image.revision"
VERSION_LABEL = "org.opencontainers.image.version"
SERVICE_BASE = "decision-service-base"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Image:
    """One of our images: `mlops/<name>`, from `dockerfile` in `context`, a folder of the repository.

    `base` is the image of ours that it stands on; `stands_on` names another's by its setting in versions.env.
    """

    name: str
    context: str
    dockerfile: str
    base: str = ""
    stands_on: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


def _service(name: str, folder: str) -> Image:
    return Image(name, "ml-model-services", f"services/{folder}/Dockerfile", base=SERVICE_BASE)


def _training(name: str, folder: str) -> Image:
    return Image(
        name,
        "ml-model-development",
        f"models/{folder}/Dockerfile.train",
        arguments={"GIT_COMMIT": "{commit}"},
    )


_ROOT = "mlops-platform-infrastructure"
_IMAGES = f"{_ROOT}/images"
OURS: tuple[Image, ...] = (
    Image("feast-cli", "feature-store-management", "Dockerfile.feast_cli"),
    Image(SERVICE_BASE, "ml-model-services", "Dockerfile.base_service"),
    _service("fraud-detection-api", "fraud_detection_api"),
    _service("customer-churn-api", "customer_churn_api"),
    _service("movie-recommendation-api", "movie_recommendation_api"),
    _service("decision-page", "decision_page"),
    Image("mlflow-server", _IMAGES, "mlflow_server/Dockerfile"),
    Image("airflow-worker", "mlops-orchestration-pipelines", "Dockerfile.airflow_custom_worker"),
    _training("fraud-training", "fraud_detection_xgboost"),
    _training("churn-training", "customer_churn_lightgbm"),
    _training("recommendation-training", "movie_recommendation_hybrid"),
    Image("reporting", "ml-reporting-and-monitoring-logic", "Dockerfile.reporting"),
    Image("spark", _IMAGES, "spark/Dockerfile"),
    Image("backup", _ROOT, "images/backup/Dockerfile", stands_on="POSTGRES_IMAGE"),
    Image("jenkins", _ROOT, "images/jenkins/Dockerfile", stands_on="JENKINS_IMAGE"),
)


class BuildError(Exception):
    """An image can't be built; the message holds the builder's last lines."""


@dataclass(frozen=True)
class Built:
    """An image that was built: its size on the engine and how long it took."""

    name: str
    size: int
    seconds: float


def version() -> str:
    """Return the tag of our images."""
    return os.environ.get("MLOPS_VERSION") or "dev"


def tag(name: str, version: str) -> str:
    """Return the full name of one of our images.

    >>> tag("feast-cli", "dev")
    'mlops/feast-cli:dev'
    """
    return f"mlops/{name}:{version}"


def chosen(names: Sequence[str]) -> list[Image]:
    """Return the images named (all of them by default) and what they stand on, in the order to build them.

    Raises BuildError for a name that is none of ours.

    >>> [image.name for image in chosen(["decision-page"])]
    ['decision-service-base', 'decision-page']
    """
    known = {image.name: image for image in OURS}
    if unknown := sorted(set(names) - set(known)):
        raise BuildError(f"no image is named {', '.join(unknown)}; known: {', '.join(known)}")
    wanted = {part for name in names or known for part in (name, known[name].base) if part}
    return [image for image in OURS if image.name in wanted]


def build_command(
    image: Image, version: str, commit: str, repository: Path, pins: Mapping[str, str]
) -> list[str]:
    """Return the engine's command line, after `docker`, that builds an image."""
    arguments = {name: value.format(commit=commit) for name, value in image.arguments.items()}
    if image.base:
        arguments["BASE_IMAGE"] = tag(image.base, version)
    if image.stands_on:
        arguments[image.stands_on] = pins[image.stands_on]
    context = repository / image.context
    words = ["build", "--tag", tag(image.name, version), "--file", str(context / image.dockerfile)]
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for name, value in ((COMMIT_LABEL, commit), (VERSION_LABEL, version)):
        words += ["--label", f"{name}={value}"]
    return [*words, str(context)]


def git_commit(repository: Path) -> str:
    """Return the commit of the code, with `-dirty` where a Dockerfile's context may differ from it."""
    described = subprocess.run(
        ["git", "-C", str(repository), "describe", "--always", "--abbrev=40", "--dirty", "--match="],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or os.environ.get("GIT_COMMIT") or "unknown"


def build(host: str, images: Sequence[Image], version: str, commit: str) -> Iterator[Built]:
    """Build images in order, one line of progress each; raises BuildError at the first that fails."""
    pins = stand_ins.pins(stand_ins.VERSIONS.read_text())
    for number, image in enumerate(images, start=1):
        name = tag(image.name, version)
        print(f"[{number:2}/{len(images)}] {name:42}", end="", flush=True)
        if image.stands_on and inspected(host, pins[image.stands_on]) is None:
            print(f" left out: {pins[image.stands_on]} can't be pulled here", flush=True)
            continue
        began = time.monotonic()
        # Without buildx, which a plain installation lacks, only the classic builder is there.
        done = subprocess.run(
            ["docker", "--host", host, *build_command(image, version, commit, REPOSITORY, pins)],
            env={"DOCKER_BUILDKIT": "0"} | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print(" failed", flush=True)
            raise BuildError(f"{name} can't be built:\n{done.stdout[-3000:]}")
        built = Built(image.name, size(host, name), time.monotonic() - began)
        print(f" {built.size / MEGABYTE:6.0f} MB {built.seconds:6.1f} s", flush=True)
        yield built


def inspected(host: str, name: str) -> dict[str, str] | None:
    """Return size, commit and stand-in's label of an image, or None where the engine doesn't have it."""
    template = (
        '{"size": "{{.Size}}", "commit": {{json (index .Config.Labels "' + COMMIT_LABEL + '")}}, '
        '"stand_in": {{json (index .Config.Labels "' + stand_ins.LABEL + '")}}}'
    )
    done = subprocess.run(
        ["docker", "--host", host, "image", "inspect", "--format", template, name],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return None
    fields: dict[str, str] = json.loads(done.stdout)
    return fields


def size(host: str, name: str) -> int:
    """Return the bytes of an image on the engine, all layers counted; BuildError where it isn't there."""
    fields = inspected(host, name)
    if fields is None:
        raise BuildError(f"the engine does not have {name}")
    return int(fields["size"])


def report(
    built: Iterable[Built], limits: Mapping[str, int], command: str, now: datetime
) -> dict[str, object]:
    """Return what was measured, each size beside the most it may be (megabytes)."""
    results: list[dict[str, object]] = []
    for each in built:
        megabytes, most = each.size / MEGABYTE, limits.get(each.name)
        results.append(
            {
                "name": f"{each.name} size",
                "value": round(megabytes, 1),
                "unit": "MB",
                "target": most,
                "met": None if most is None else megabytes <= most,
            }
        )
        results.append({"name": f"{each.name} build", "value": round(each.seconds, 1), "unit": "s"})
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    return {
        "command": command,
        "date": now.isoformat(timespec="seconds"),
        "machine": machine,
        "results": results,
    }


def reports_dir() -> Path:
    """Return the folder of the reports."""
    local = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local")
    return Path(os.environ.get("REPORTS_DIR") or local / "reports")


def write_report(document: Mapping[str, object], path: Path) -> None:
    """Write a report; images that were not built this time keep the lines of the time they were."""
    results = {str(line["name"]): line for line in _results(document)}
    if path.exists():
        earlier = {str(line["name"]): line for line in _results(json.loads(path.read_text()))}
        results = earlier | results
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**document, "results": list(results.values())}, indent=1) + "\n")


def _results(document: Mapping[str, object]) -> list[dict[str, object]]:
    lines = document.get("results")
    return lines if isinstance(lines, list) else []


def show(host: str, version: str) -> None:
    """Print every image of the platform: ours, then those of other projects."""
    print(f"{'image':56} {'size':>8}  what it is")
    for image in OURS:
        _show_line(tag(image.name, version), inspected(host, tag(image.name, version)))
    for name in stand_ins.pins(stand_ins.VERSIONS.read_text()).values():
        _show_line(name, inspected(host, name))


def _show_line(name: str, fields: Mapping[str, str] | None) -> None:
    if fields is None:
        print(f"{name:56} {'-':>8}  not there")
        return
    print(f"{name:56} {int(fields['size']) / MEGABYTE:5.0f} MB  {what_it_is(fields)}")


def what_it_is(fields: Mapping[str, str]) -> str:
    """Say where an image comes from; ours carry the label of a stand-in where their base is one.

    >>> what_it_is({"commit": "c0ffee", "stand_in": "Debian bookworm"})
    'commit c0ffee, on a stand-in'
    >>> what_it_is({"commit": "", "stand_in": "redis"}), what_it_is({"commit": "", "stand_in": ""})
    ('stand-in', 'pulled')
    """
    stand_in = bool(fields["stand_in"])
    if fields["commit"]:
        return f"commit {fields['commit'][:12]}" + (", on a stand-in" if stand_in else "")
    return "stand-in" if stand_in else "pulled"


def main(arguments: list[str]) -> int:
    """Run `images build|list`."""
    parser = argparse.ArgumentParser(prog="server_tools images", description=__doc__)
    parser.add_argument("action", choices=["build", "list"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of our images; all of them by default")
    parser.add_argument("--no-others", action="store_true", help="leave the images of other projects alone")
    options = parser.parse_intermixed_args(arguments[1:])
    limits = json.loads(LIMITS.read_text())
    path = reports_dir() / "images.json"
    too_large = []
    try:
        images = chosen(options.names)
        host = Engine(Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local").resolve() / "engine").start()
        if options.action == "list":
            show(host, version())
            return 0
        print(f"{base_images.PYTHON}: {base_images.ensure(host)}", flush=True)
        if not options.no_others:
            stand_ins.ensure(host, on_outcome=lambda each: print(f"{each.name}: {each.state}", flush=True))
        command = "python -m server_tools " + " ".join(arguments)
        for built in build(host, images, version(), git_commit(REPOSITORY)):
            write_report(report([built], limits, command, datetime.now(UTC)), path)
            if built.size > limits[built.name] * MEGABYTE:
                too_large.append(f"mlops/{built.name}")
    except (BuildError, EngineError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print(f"sizes and seconds in {path}")
    if too_large:
        print(f"images: larger than {LIMITS.name} allows: {', '.join(too_large)}", file=sys.stderr)
    return 1 if too_large else 0
