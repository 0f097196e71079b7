"""Every `make` target that a pipeline, a workflow or a page names exists in the Makefile that is meant."""

from __future__ import annotations

import doctest
import json
import subprocess
from pathlib import Path

import pytest

from server_tools import make_targets
from server_tools.make_targets import REPOSITORY, calls, every_call, missing, targets_of


def test_every_target_that_is_named_exists():
    found = every_call()
    kinds = {
        Path(call.file).name.split("_")[0] if "Jenkinsfile" in call.file else Path(call.file).suffix
        for call in found
    }
    assert {"Jenkinsfile", ".md", ".yaml"} <= kinds
    assert len(found) > 150
    wrong = [
        f"{call.file}:{call.line}: make -C {call.folder or '.'} {call.target}"
        for call in found
        if missing(call)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", "```bash\nmake no-such-target\n```\n"),
        ("README.md", "Run `make no-such-target SCALE=small` now.\n"),
        ("docs/x.md", "`SCALE=small make no-such-target`\n"),
        ("ml-model-services/README.md", "`make -C .. no-such-target`\n"),
        (
            "mlops-platform-infrastructure/jenkins_config/Jenkinsfile_x",
            "sh 'make -C ml-model-services no-such-target'\n",
        ),
        (".github/workflows/x.yaml", "      - run: make -C ml-model-services no-such-target\n"),
        (".ci/run", "step demo make no-such-target\n"),
        ("docs/x.md", "`make setup && make no-such-target`\n"),
        ("docs/x.md", "`make setup no-such-target`\n"),
        # A root's target at the top of the repository.
        (".github/workflows/x.yaml", "      - run: make openapi\n"),
    ],
)
def test_a_target_that_does_not_exist_is_found(file, text):
    assert [call.target for call in calls(file, text) if missing(call)] in (["no-such-target"], ["openapi"])


@pytest.mark.parametrize(
    "text", ["This will make it faster.\n", "what they make of it\n", "make it so\n", "`makefile target`\n"]
)
def test_prose_names_no_target(text):
    assert list(calls("docs/x.md", text)) == []


def test_targets_come_from_included_files_too():
    assert {"smoke-test", "rollback", "setup"} <= targets_of(REPOSITORY / "mlops-platform-infrastructure")
    assert "no-such-target" not in targets_of(REPOSITORY / "mlops-platform-infrastructure")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose page names three targets; `all` calls a make below it."""
    (tmp_path / "Makefile").write_text("all:\n\t@$(MAKE) -s -C part work\nbroken:\n\t@false\n")
    (tmp_path / "part").mkdir()
    (tmp_path / "part/Makefile").write_text("work:\n\t@true\n")
    (tmp_path / "part/README.md").write_text("`make work`, then `make broken`\n")
    (tmp_path / "README.md").write_text("`make all`\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(make_targets, "REPOSITORY", tmp_path)
    monkeypatch.setattr(make_targets, "RECORD", tmp_path / "record.json")
    return tmp_path


def test_a_run_is_recorded_with_the_makes_below_it(small: Path, capsys: pytest.CaptureFixture[str]):
    assert make_targets.main(["make-targets", "--check"]) == 1
    assert "3 targets named, 0 recorded as run, 3 not" in capsys.readouterr().out
    assert make_targets.main(["make-targets", "--run", "--", "make", "-s", "all"]) == 0
    assert set(make_targets.run_well(make_targets.read_record())) == {(".", "all"), ("part", "work")}
    assert make_targets.main(["make-targets", "--not-run"]) == 0
    said = capsys.readouterr().out
    assert "make -C . broken  [not run]  part/README.md:1" in said
    assert "make -C part work" not in said


def test_what_failed_or_was_only_looked_at_was_not_run(small: Path):
    assert make_targets.main(["make-targets", "--run", "--", "make", "-s", "broken"]) == 2
    assert make_targets.main(["make-targets", "--run", "--", "make", "-n", "all"]) == 0
    assert make_targets.run_well(make_targets.read_record()) == {}


def test_a_record_keeps_what_others_wrote(small: Path):
    theirs = {"only_dry_run": ["make x"], "results": [{"command": "make all", "exit": 0, "at": "2026"}]}
    make_targets.RECORD.write_text(json.dumps(theirs))
    make_targets.main(["make-targets", "--run", "--", "make", "-s", "broken"])
    document = make_targets.read_record()
    assert document["only_dry_run"] == ["make x"]
    assert make_targets.run_well(document) == {(".", "all"): "2026"}


def test_the_examples_hold():
    assert doctest.testmod(make_targets).failed == 0


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["backup"], "server_tools backup --server all"),
        (["backup", "SERVER=2"], "server_tools backup --server 2"),
        (["smoke-test"], "server_tools smoke --server server3"),
        (["smoke-test", "SERVER=server1"], "server_tools smoke --server server1"),
        (["rollback"], "server_tools rollback --server server3"),
    ],
)
def test_a_server_that_is_not_named_is_what_the_target_says(arguments, command):
    platform = REPOSITORY / "mlops-platform-infrastructure"
    shown = subprocess.run(
        ["make", "-n", "-C", platform, *arguments], capture_output=True, text=True, check=True
    )
    assert command in shown.stdout
