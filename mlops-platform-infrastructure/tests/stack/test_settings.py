from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_stack import credentials, ports, settings
from local_stack.instance import REPO_DIR, Instance, open_instance

VALUES = st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8"), max_size=40)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)


def build(instance: Instance) -> dict[str, str]:
    secrets = {name: f"secret-{name}" for name in credentials.GENERATORS}
    return settings.build(instance, ports.DEFAULT_PORTS, secrets)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_a_settings_file_reads_back_as_written(variables: dict[str, str]) -> None:
    assert settings.parse(settings.render(variables)) == variables


@pytest.mark.parametrize("value", ["plain", "", "it's", '"$HOME" `id` \\ $(id)', "a b\tc #x", "ünï=;&|"])
def test_a_shell_reads_the_same_values(tmp_path: Path, value: str) -> None:
    path = tmp_path / "stack.env"
    path.write_text(settings.render({"SOME_NAME": value}), encoding="utf-8")
    script = f'. {path}; printf %s "$SOME_NAME"'
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode() == value


def test_a_line_break_in_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="SOME_NAME"):
        settings.render({"SOME_NAME": "a\nEVIL='1'"})


@pytest.mark.parametrize("line", ["no assignment", "9A='x'", "A='x' B='y'", "A='x"])
def test_a_line_that_is_no_assignment_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - shlex words its own
        settings.parse(line)


def test_every_variable_that_the_architecture_names_is_set(instance: Instance) -> None:
    text = (REPO_DIR / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## Settings", 1)[1].split("\n## ", 1)[0]
    named: set[str] = set()
    for row in re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE):
        words = re.findall(r"`([A-Z_*]+)`", row)
        prefix = words[0].removesuffix("_HOST") if words and words[0].endswith("_HOST") else ""
        named |= {prefix + word if word.startswith("_") else word for word in words}
    assert len(named) > 25
    built = build(instance)
    assert {name for name in named if "*" not in name} <= set(built)
    assert any(name.startswith("AIRFLOW__") for name in built)


def test_no_secret_survives_masking(instance: Instance) -> None:
    built = build(instance)
    shown = settings.masked(built)
    assert list(shown) == list(built)
    assert "secret-" in json.dumps(built)
    assert "secret-" not in json.dumps(shown)
    assert shown["REDIS_HOST"] == "127.0.0.1"


def test_instances_keep_state_and_reports_apart(tmp_path: Path) -> None:
    first, second = open_instance("default", tmp_path), open_instance("two", tmp_path)
    assert first.state_dir == tmp_path / "stack"
    assert first.reports_dir == tmp_path / "reports"
    assert second.state_dir == tmp_path / "stack-two"
    assert second.reports_dir == tmp_path / "stack-two" / "reports"


@pytest.mark.parametrize("name", ["", "..", "a/b", "UPPER", "-x", "x" * 40])
def test_a_name_that_is_no_plain_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="instance name"):
        open_instance(name, tmp_path)
