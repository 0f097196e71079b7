"""A new service from the template, in a temporary copy of the root, passes its own tests at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common_service_libs.label_engine.policy import find_policy, load_policy
from service_template.create import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A root beside the real one: its settings and libraries, no services."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("common_service_libs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "services").mkdir()
    return tmp_path


def create(copy: Path, *arguments: str) -> int:
    return main([*arguments, "--services", str(copy / "services")])


def run(folder: Path, *command: str) -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.integration
@pytest.mark.parametrize("feature_service", ["customer_churn_v1", "fraud_detection_v1"])
def test_a_new_service_passes_its_own_tests_is_linted_and_typed(copy: Path, feature_service: str) -> None:
    assert create(copy, "credit_limit_api", "--feature-service", feature_service) == 0
    folder = copy / "services" / "credit_limit_api"
    run(
        folder,
        "pytest",
        "-c",
        str(copy / "pyproject.toml"),
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
        "tests",
    )
    run(copy, "ruff", "check", "--quiet", "services")
    run(copy, "ruff", "format", "--quiet", "--check", "services")
    if feature_service == "fraud_detection_v1":
        cache = ("--cache-dir", str(ROOT / ".mypy_cache"))
        run(folder, "mypy", *cache, "--config-file", str(ROOT / "pyproject.toml"), "app")


def test_a_new_service_has_the_documented_layout_and_a_port_of_its_own(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert create(copy, "credit_limit_api") == 0
    assert (
        create(copy, "loan_price_api", "--model", "price-of-loans", "--feature-service", "fraud_detection_v1")
        == 0
    )
    folder = copy / "services" / "credit_limit_api"
    churn = ROOT / "services" / "customer_churn_api"
    tracked = {path.relative_to(churn).parent for path in churn.rglob("*.py")}
    assert {path.relative_to(folder).parent for path in folder.rglob("*.py")} == tracked
    for service, model in (("credit_limit", "credit-limit-model"), ("loan_price", "price-of-loans")):
        made = copy / "services" / f"{service}_api"
        policy = load_policy(find_policy(made / "policies"))
        assert (policy.name, policy.model) == (service, model)
        assert (made / "requirements.txt").read_text().count("--hash=") > 10
        left = [
            path
            for path in made.rglob("*")
            if path.is_file() and re.search(r"\$\{(?!BASE_IMAGE)", path.read_text())
        ]
        assert left == []
    ports = [
        re.findall(r"port: Port = (\d+)", path.read_text())
        for path in copy.glob("services/*/app/core/config.py")
    ]
    assert sorted(ports) == [["8010"], ["8011"]]
    assert "next: its policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CreditLimit"], "ends with _api"),
        (["../escape_api"], "ends with _api"),
        (["credit_limit_api", "--feature-service", "nothing_v9"], "there are customer_churn_v1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert create(copy, *arguments) == 1
    assert said in capsys.readouterr().err
    assert list((copy / "services").iterdir()) == []


def test_an_existing_service_is_left_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert create(copy, "credit_limit_api") == 0
    before = {path: path.read_bytes() for path in (copy / "services").rglob("*") if path.is_file()}
    assert create(copy, "credit_limit_api") == 1
    assert "exists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (copy / "services").rglob("*") if path.is_file()} == before
