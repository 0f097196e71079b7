"""Every `make` target that a pipeline, a workflow or a page names exists in the Makefile that is meant."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# A command begins a line, a piece of code or a quoted string, or follows what can stand before a command.
_BEFORE = r"(?:^|[`'\"(]|&&|\|\||;|\bdo |\bthen |\bstep \w+ |\bexec -- |run: )\s*(?:[A-Z_]+=\S+\s+)*"
_COMMAND = re.compile(_BEFORE + r"\$?\(?(?:make|MAKE)\)?((?:[ \t]+[^\s`'\"|;&)#]+)+)", re.MULTILINE)
_TARGET = re.compile(r"[a-z][a-z0-9-]*")


# What is code in a page: fenced blocks and pieces between backticks.
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


class Call(NamedTuple):
    """A make target that somebody is told to run, and where."""

    file: str
    line: int
    folder: str
    target: str


def calls(file: str, text: str) -> Iterator[Call]:
    """Find the calls of make in a file."""
    if file.endswith(".md"):
        text = code_of(text)
    for match in _COMMAND.finditer(text):
        words = match[1].split()
        folder = ""
        targets = []
        while words:
            word = words.pop(0)
            if word in {"-C", "--directory"} and words:
                folder = words.pop(0)
            elif word.startswith("-") or "=" in word:
                continue
            elif _TARGET.fullmatch(word.rstrip(".,:")):
                targets.append(word.rstrip(".,:"))
            else:
                break
        line = text.count("\n", 0, match.start(1)) + 1
        for target in targets:
            yield Call(file, line, folder, target)


def code_of(page: str) -> str:
    """Return a page with all but its code blanked, so that lines keep their numbers."""
    kept, last = [], 0
    for match in _CODE.finditer(page):
        kept += [re.sub(r"[^\n]", " ", page[last : match.start()]), match[0]]
        last = match.end()
    return "".join(kept)


@functools.cache
def targets_of(folder: Path) -> frozenset[str]:
    """Return the targets of a folder's Makefile, included files and patterns as make itself reads them."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    printed = subprocess.run(
        [
            "make",
            "-C",
            str(folder),
            "-qp",
            "--no-print-directory",
            f"LOCAL_DIR={REPOSITORY / '.local'}",
            "help",
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    ).stdout
    _, _, files = printed.partition("\n# Files\n")
    found = re.findall(r"(?<!# Not a target:\n)^([a-z][a-z0-9-]*):(?!=)", files, re.MULTILINE)
    return frozenset(found)


def own_folder(file: str) -> Path:
    """Return the folder whose Makefile a file means: its root's, else the repository's."""
    first = file.split("/", 1)[0]
    return REPOSITORY / first if (REPOSITORY / first / "Makefile").exists() and "/" in file else REPOSITORY


def candidates(call: Call) -> list[Path]:
    """Return the folders in which the target may stand."""
    if call.folder:
        here = own_folder(call.file)
        return [folder for folder in (REPOSITORY / call.folder, here / call.folder) if folder.exists()]
    if call.file.startswith(".github/") or "/jenkins_config/" in call.file or call.file.startswith(".ci/"):
        return [REPOSITORY]
    # Pages of a root tell people in the root, or at the top of the repository, what to type.
    return [own_folder(call.file), REPOSITORY]


def missing(call: Call) -> bool:
    """Whether no Makefile that the call may mean has the target."""
    return not any(call.target in targets_of(folder.resolve()) for folder in candidates(call))


def files_that_name_targets() -> list[str]:
    """Return pipelines, workflows, CI and pages that git tracks or would track."""
    patterns = ["*.md", ".github/workflows/*", ".ci/run", "*/Jenkinsfile_*", "*.sh"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists()})


def every_call() -> list[Call]:
    return [
        call for name in files_that_name_targets() for call in calls(name, (REPOSITORY / name).read_text())
    ]


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
