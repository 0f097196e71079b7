"""`python -m server_tools make-targets`: every make target that a pipeline or page names, and where.

Beside each stands when it was last run well, as far as a record was kept: `--run -- make ...` runs a command
and records its target and those of every make below it. `--not-run` lists the rest; `--check` exits 1 while
there is one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from server_tools import places

REPOSITORY = places.REPOSITORY
RECORD = Path(os.environ.get("LOCAL_DIR") or REPOSITORY / ".local") / "reports" / "make-targets.json"
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
    """Return every call of make in those files."""
    return [
        call for name in files_that_name_targets() for call in calls(name, (REPOSITORY / name).read_text())
    ]


Target = tuple[str, str]
# Read by every make below the recorded command before its own Makefile: it notes its folder and its goals.
_NOTE = """make_flags_noted := $(firstword -$(MAKEFLAGS))
ifeq (,$(findstring n,$(make_flags_noted))$(findstring q,$(make_flags_noted)))
$(shell printf '%s %s\\n' '$(CURDIR)' '$(or $(MAKECMDGOALS),help)' >>"$$MAKE_TARGETS_NOTED")
endif
"""


def meant(call: Call) -> Target:
    """Return the folder below the repository, and the target, that a call means."""
    found = next((f for f in candidates(call) if call.target in targets_of(f.resolve())), candidates(call)[0])
    return str(found.resolve().relative_to(REPOSITORY)), call.target


def named(found: Sequence[Call]) -> dict[Target, list[str]]:
    """Return each target that is named, with the places that name it."""
    places_of: dict[Target, list[str]] = {}
    for call in found:
        places_of.setdefault(meant(call), []).append(f"{call.file}:{call.line}")
    return dict(sorted(places_of.items()))


def run_well(document: Mapping[str, Any]) -> dict[Target, str]:
    """Return when each target was last run with exit code 0.

    >>> goals = [["a", "x"], ["b", "y"]]
    >>> run_well({"results": [{"command": "make -C a x", "exit": 0, "at": "t", "goals": goals}]})
    {('a', 'x'): 't', ('b', 'y'): 't'}
    >>> run_well({"results": [{"command": "make -C a x", "exit": 2, "at": "t", "goals": goals}]})
    {}
    """
    when: dict[Target, str] = {}
    for entry in document.get("results", []):
        goals = entry.get("goals")
        if goals is None:
            goals = [meant(call) for call in calls(".ci/record", entry["command"])]
        for folder, target in goals if entry["exit"] == 0 else ():
            when[folder, target] = max(entry["at"], when.get((folder, target), ""))
    return when


def read_record() -> dict[str, Any]:
    """Return what was recorded; the test of the pipelines writes the same file."""
    document: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return document


def run_and_record(command: Sequence[str]) -> int:
    """Run a command, keep how it ended and which targets it ran, and return its exit code."""
    began, at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as scratch:
        note, noted = Path(scratch, "note.mk"), Path(scratch, "noted")
        note.write_text(_NOTE, encoding="utf-8")
        noted.touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        environment |= {"MAKEFILES": str(note), "MAKE_TARGETS_NOTED": str(noted)}
        code = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
        lines = [line.split() for line in noted.read_text(encoding="utf-8").splitlines()]
    goals = {
        (str(Path(folder).relative_to(REPOSITORY)), target)
        for folder, *targets in lines
        if Path(folder).is_relative_to(REPOSITORY)
        for target in targets
    }
    document = read_record()
    results = {entry["command"]: entry for entry in document.get("results", [])}
    shown = shlex.join(command)
    results[shown] = {
        "command": shown, "exit": code, "seconds": round(time.monotonic() - began, 1), "at": at,
        "goals": sorted(goals),
    }  # fmt: skip
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    document |= {"date": at, "results": [results[name] for name in sorted(results)]}
    RECORD.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return code


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="server_tools make-targets", description=__doc__)
    parser.add_argument("--not-run", action="store_true", help="only those that no record says were run")
    parser.add_argument("--check", action="store_true", help="exit 1 while one was not run")
    parser.add_argument("--run", action="store_true", help="run the command after -- and record it")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(arguments[1:])
    if options.run:
        return run_and_record(options.command)
    when, all_named = run_well(read_record()), named(every_call())
    left = [target for target in all_named if target not in when]
    for target, found in all_named.items():
        if not options.not_run or target in left:
            folder, name = target
            print(f"make -C {folder} {name}  [{when.get(target, 'not run')}]  {' '.join(found)}")
    print(f"{len(all_named)} targets named, {len(all_named) - len(left)} recorded as run, {len(left)} not")
    return 1 if options.check and left else 0


if __name__ == "__main__":
    sys.exit(main(["make-targets", *sys.argv[1:]]))
