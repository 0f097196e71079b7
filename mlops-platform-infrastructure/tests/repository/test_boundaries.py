"""Contracts over the whole repository: boundaries between roots, locks, layout, documented commands."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
ROOTS = (
    "feature-store-management",
    "ml-model-development",
    "ml-model-services",
    "mlops-orchestration-pipelines",
    "mlops-platform-infrastructure",
    "ml-reporting-and-monitoring-logic",
)
# Names that several roots use for units of their own; each is only ever imported inside its own root.
SHARED_UNIT_NAMES = {"src", "app", "tests", "scripts", "data"}


def tracked(pattern: str = "") -> list[Path]:
    """Files that git tracks, as paths below the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", pattern or "."],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    return [Path(name) for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists()]


def own_packages(root: str) -> set[str]:
    """Names that code in a root can import from that root."""
    names: set[str] = set()
    for path in tracked(f"{root}/*.py"):
        inside = path.relative_to(root)
        names.add(inside.parts[0].removesuffix(".py"))
    return names - SHARED_UNIT_NAMES


def imported_names(source: str) -> set[str]:
    """Top-level names of absolute imports in Python source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def foreign_imports(root: str, source: str, packages: dict[str, set[str]]) -> set[str]:
    """Names a source file of one root imports that only another root defines."""
    foreign = set().union(*(packages[other] for other in ROOTS if other != root)) - packages[root]
    return imported_names(source) & foreign


def test_no_root_imports_another_roots_python():
    packages = {root: own_packages(root) for root in ROOTS}
    found = {
        f"{path}: {name}"
        for root in ROOTS
        for path in tracked(f"{root}/*.py")
        for name in foreign_imports(root, (REPOSITORY / path).read_text(), packages)
    }
    assert found == set()


def test_a_foreign_import_is_caught():
    packages = {root: set() for root in ROOTS} | {"ml-model-services": {"common_service_libs"}}
    source = "from common_service_libs.online_store import reader\n"
    assert foreign_imports("ml-model-development", source, packages) == {"common_service_libs"}


@pytest.mark.parametrize("root", ROOTS)
def test_root_stands_on_its_own(root):
    for name in ("pyproject.toml", "requirements.txt", "Makefile", "README.md", "CHANGELOG.md"):
        assert (REPOSITORY / root / name).stat().st_size > 0, name
    verbs = set(re.findall(r"^([a-z-]+):", (REPOSITORY / root / "Makefile").read_text(), re.MULTILINE))
    assert {"help", "setup", "format", "check", "test", "build"} <= verbs


def test_locks_hold_names_versions_and_hashes_only():
    locks = [path for path in tracked() if path.name.startswith("requirements") and path.suffix == ".txt"]
    assert len(locks) >= len(ROOTS)
    for path in locks:
        for number, line in enumerate((REPOSITORY / path).read_text().splitlines(), 1):
            assert re.fullmatch(
                r"[A-Za-z0-9._-]+(\[[a-z0-9,._-]+\])?==\S+( ;.*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?",
                line,
            ), f"{path}:{number}: {line}"


def test_layout_page_tells_what_stands():
    rows = []
    root = ""
    for line in (REPOSITORY / "docs/layout.md").read_text().splitlines():
        if line.startswith("## "):
            root = line[3:].strip()
        match = re.fullmatch(r"\| `([^`]+)` \| (.+) \|", line)
        if match and root in ROOTS:
            rows.append((root, match.group(1), match.group(2)))
    assert len(rows) > 120
    for root, path, state in rows:
        exists = (REPOSITORY / root / path).exists()
        if state == "stands":
            assert exists, f"{root}/{path} is said to stand"
        elif state.startswith("stands as"):
            assert not exists, f"{root}/{path} stands under its own name"
            folder = (REPOSITORY / root / path).parent
            for name in re.findall(r"`([^`]+)`", state):
                assert (folder / name).exists(), f"{root}/{path}: {name}"
        else:
            assert not exists, f"{root}/{path} stands, but the page says: {state}"


def test_no_tracked_file_is_large_or_generated():
    for path in tracked():
        assert (REPOSITORY / path).stat().st_size < 5 * 1024 * 1024, path
        assert not {"__pycache__", "target", ".local", "mlruns"} & set(path.parts), path
