"""What every Dockerfile of the repository keeps to, read from the files; no engine takes part."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local_engine.stand_ins.build import HERE as STAND_INS_FOLDER
from server_tools.images import OURS
from server_tools.places import REPOSITORY, ROOT

HADOLINT = Path(sys.executable).with_name("hadolint")
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
CONFIGURATION = ROOT / ".hadolint.yaml"
ENTRYPOINT = ROOT / "images" / "entrypoint" / "mlops-entrypoint.sh"
TEMPLATE = REPOSITORY / "ml-model-services" / "service_template" / "files" / "Dockerfile.template"
DOCKERFILES = sorted(
    path
    for root in REPOSITORY.iterdir()
    if root.is_dir() and not root.name.startswith(".")
    for path in root.rglob("Dockerfile*")
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
)
OF_OURS = [REPOSITORY / image.context / image.dockerfile for image in OURS]


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def findings(path: Path) -> str:
    done = subprocess.run(
        [str(HADOLINT), "--no-color", "--config", str(CONFIGURATION), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert (done.returncode == 0) == (done.stdout == "")
    return done.stdout


def code(path: Path) -> str:
    """Return a Dockerfile's text without comments, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_hadolint_finds_nothing(path: Path):
    assert findings(path) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("USER 10001\n", "USER root\n", "DL3002"),
        ("COPY . /app", "ADD . /app", "DL3020"),
        ("python:3.11-slim-bookworm", "python:latest", "DL3007"),
        ('CMD ["feast", "version"]', "CMD feast version", "DL3025"),
    ],
)
def test_hadolint_finds_a_spoiled_dockerfile(old: str, new: str, rule: str, tmp_path: Path):
    text = (REPOSITORY / "feature-store-management" / "Dockerfile.feast_cli").read_text()
    assert old in text
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(
        text.replace(old, new).replace("FROM ${PYTHON_IMAGE}", f"FROM {new}", 1 * ("python" in new))
    )
    assert rule in findings(spoiled)


def test_every_rule_that_is_ignored_has_its_reason():
    lines = CONFIGURATION.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+- DL", line):
            assert lines[number - 1].lstrip().startswith("#"), line


def test_every_dockerfile_is_built_by_the_command():
    known = {*OF_OURS, TEMPLATE, *STAND_INS_FOLDER.glob("*/Dockerfile")}
    assert {name(path) for path in DOCKERFILES} == {name(path) for path in known}


@pytest.mark.parametrize("path", DOCKERFILES, ids=name)
def test_what_is_installed_is_locked_and_nothing_is_fetched_by_its_address(path: Path):
    text = code(path)
    for run in re.findall(r"pip\b.*? install .*?(?:&&|$)", text, re.MULTILINE):
        assert "--require-hashes" in run
        assert "--no-cache-dir" in run
    assert not re.search(r"\b(curl|wget)\b[^\n]*https?://(?!127\.0\.0\.1)", text)
    assert not re.search(r"(?im)^(ARG|ENV)\b.*(password|secret|token|api_?key)\w*=", text)


@pytest.mark.parametrize("path", OF_OURS, ids=name)
def test_ours_have_an_orderly_form(path: Path):
    text = code(path)
    for word in re.findall(r"^(?:CMD|ENTRYPOINT) (.*)$", text, re.MULTILINE):
        assert word.startswith("["), "a shell would stand between the signals and the command"
    for default in re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE):
        assert re.search(r":[\w.]+\d|^mlops/", default), f"{default} has no version"


@pytest.mark.parametrize(
    "copy",
    [
        "feature-store-management/scripts",
        "mlops-orchestration-pipelines/scripts",
        "ml-model-services/common_service_libs",
    ],
)
def test_the_roots_copies_of_the_entrypoint_are_the_same_file(copy: str):
    file = REPOSITORY / copy / ENTRYPOINT.name
    assert file.read_bytes() == ENTRYPOINT.read_bytes()
    assert file.stat().st_mode & 0o111


def test_the_scripts_of_images_and_stand_ins_are_clean():
    scripts = [
        path
        for folder in (ROOT / "images", STAND_INS_FOLDER)
        for path in folder.rglob("*.sh")
        if "python" not in path.read_text().splitlines()[0]
    ]
    assert len(scripts) >= 5
    done = subprocess.run([str(SHELLCHECK), *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("lock", "of"),
    [
        ("feature-store-management/requirements_feast_cli.txt", "feature-store-management"),
        ("ml-reporting-and-monitoring-logic/requirements_reporting.txt", "ml-reporting-and-monitoring-logic"),
        ("mlops-platform-infrastructure/images/mlflow_server/requirements.txt", ROOT.name),
        ("mlops-platform-infrastructure/images/spark/requirements.txt", "feature-store-management"),
    ],
)
def test_an_images_lock_has_the_versions_of_its_root_and_hashes(lock: str, of: str):
    text = (REPOSITORY / lock).read_text()
    locked, root = versions(text), versions((REPOSITORY / of / "requirements.txt").read_text())
    assert len(locked) > 20
    different = {
        package: (found, root[package])
        for package, found in locked.items()
        if package in root and not found <= root[package]
    }
    assert different == {}, "`make lock-images`"
    assert len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) == len(
        re.findall(r"^\S+==.*\\\n\s+--hash=", text, re.MULTILINE)
    )
    assert "://" not in text


def versions(lock: str) -> dict[str, set[str]]:
    """Return the versions of each package: a lock may name one for each Python."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", lock, re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


class TestEntrypoint:
    """What the entrypoint does with the files of a folder of secrets."""

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ENTRYPOINT), *command],
            env={"PATH": "/usr/bin:/bin", "SECRETS_FOLDER": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_each_file_becomes_the_variable_of_its_name_in_capitals(self, tmp_path: Path):
        (tmp_path / "redis_password").write_text("a b$c'\"\n")
        (tmp_path / "airflow__core__fernet_key").write_text("k=")
        done = self.run(tmp_path, "sh", "-c", 'printf "%s|%s" "$REDIS_PASSWORD" "$AIRFLOW__CORE__FERNET_KEY"')
        assert done.stdout == "a b$c'\"|k="

    def test_a_name_that_is_no_variables_stays_a_file(self, tmp_path: Path):
        for file in ("api_keys.json", "2fa", "a-b"):
            (tmp_path / file).write_text("hidden")
        (tmp_path / "folder").mkdir()
        done = self.run(tmp_path, "env")
        assert done.returncode == 0
        assert "hidden" not in done.stdout

    def test_the_command_takes_its_place_and_gives_its_exit_code(self, tmp_path: Path):
        assert self.run(tmp_path, "sh", "-c", "exit 7").returncode == 7

    def test_without_secrets_it_only_starts_the_command(self, tmp_path: Path):
        done = self.run(tmp_path / "none", "sh", "-c", "echo started; env")
        assert done.stdout.startswith("started\n")
        assert "\nvalue=" not in done.stdout
        assert "\nname=" not in done.stdout

    def test_a_secret_that_can_not_be_read_stops_the_start(self, tmp_path: Path):
        secret = tmp_path / "redis_password"
        secret.write_text("x")
        broken = tmp_path / "bin"
        broken.mkdir()
        for tool in ("sh", "tr"):
            (broken / tool).symlink_to(shutil.which(tool) or "")
        (broken / "cat").write_text("#!/bin/sh\necho 'Permission denied' >&2\nexit 1\n")
        (broken / "cat").chmod(0o755)
        done = subprocess.run(
            [str(ENTRYPOINT), "sh", "-c", "echo started"],
            env={"PATH": str(broken), "SECRETS_FOLDER": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "started" not in done.stdout
