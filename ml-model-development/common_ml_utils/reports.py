"""Reports of a command: JSON for machines under `REPORTS_DIR`, and one HTML page with tables and plots."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common_ml_utils.pages import Facts, Page, Plots, Section


class StepClock:
    """Measures the seconds of named steps, in order, and says on stderr what runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step; the figure stands even when the step fails."""
        print(f"==> {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def measurement(
    name: str,
    value: float,
    unit: str,
    *,
    target: float | None = None,
    peer: str = "",
    peer_value: float | None = None,
) -> dict[str, Any]:
    """Return one line of `results`: higher is better wherever a target or a peer is given."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer or None,
        "peer_value": peer_value,
        "ratio": None if not peer_value else round(value / peer_value, 4),
        "target": target,
        "met": None if target is None else value >= target,
    }


def write_report(path: Path, results: Sequence[Mapping[str, Any]], **content: Any) -> None:
    """Write a report: what ran, when, where, its `results` and the content given; replaces an older one."""
    document = {
        "command": " ".join([Path(sys.executable).name, "-m", _module(), *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "peak_rss_mb": peak_rss_mb(),
        "results": list(results),
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False, default=str)
    _replace(path, text.encode())


def write_html(
    path: Path, title: str, tables: Mapping[str, Mapping[str, Any]], plots: Mapping[str, bytes]
) -> None:
    """Write one self-contained page: tables of name and value, then the plots."""
    blocks = [Section(heading, [Facts(rows)]) for heading, rows in tables.items()]
    if plots:
        blocks.append(Section("Plots", [Plots(plots)]))
    write_page(path, Page(title, "", [], blocks))


def write_page(path: Path, page: Page) -> None:
    """Write a page as HTML; replaces an older one."""
    write_files(path.parent, {path.name: page.html().encode()})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path in a folder, each replaced whole."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)


def peak_rss_mb() -> float:
    """Return this process's peak resident memory in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _replace(path: Path, content: bytes) -> None:
    """Write beside the target and rename, so that a reader never sees half a report."""
    partial = path.with_suffix(f"{path.suffix}.partial")
    partial.write_bytes(content)
    partial.replace(path)
