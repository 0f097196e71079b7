"""Run the fault tests, each in a process of its own, and write what they measured.

`python -m faults.run` (with the settings of a running stack and `tests` on PYTHONPATH) runs the small counts,
`--full` the full ones, `--only NAME` one module (again for more). `$REPORTS_DIR/fault-test.json` gets all
results; with `--document` the table in `docs/reliability.md` gets those of the modules that ran, with date
and command. Exit code 1 if a target is missed or a module breaks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- results of {name}: begin -->", "<!-- results of {name}: end -->"
CALL = """
import importlib, json, sys
name, scale, out = sys.argv[1:]
found = importlib.import_module(f"faults.{name}").run(scale)
with open(out, "w") as file:
    json.dump(found, file)
"""


def modules() -> list[str]:
    """Return the names of the fault tests: the modules beside this one that have `run(scale)`."""
    return sorted(
        path.stem
        for path in HERE.glob("*.py")
        if re.search(r"^def run\(scale: str\)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


def run_one(name: str, scale: str) -> dict[str, Any]:
    """Return the results of one module; one that breaks is a missed target."""
    began, at = time.monotonic(), datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CALL, name, scale, str(out)],
            check=False, cwd=HERE.parent, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        results = json.loads(out.read_text())["results"] if done.returncode == 0 else []
    if done.returncode != 0:
        broken = {"name": "the module broke", "value": done.returncode, "unit": "exit code", "target": 0}
        results = [broken | {"met": False}]
    return {
        "name": name,
        "scale": scale,
        "date": at.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "results": results,
    }


def report(runs: Sequence[Mapping[str, Any]], command: str) -> dict[str, Any]:
    """Return the report of all runs, one flat list of results beside the runs themselves."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "results": [
            {
                **line,
                "name": f"{one['name']}: {line['name']}",
                "peer": None,
                "peer_value": None,
                "ratio": None,
            }
            for one in runs
            for line in one["results"]
        ],
        "runs": list(runs),
    }


def table(one: Mapping[str, Any]) -> str:
    """Return the results of one module as Markdown."""
    command = f"python -m faults.run {'--full ' if one['scale'] == 'full' else ''}--only {one['name']}"
    rows = [
        f"| {line['name']} | {_number(line['value'])} {line['unit']} | {_number(line['target'])} "
        f"| {'yes' if line['met'] else '**no**'} |"
        for line in one["results"]
    ]
    head = f"{one['date'][:10]}, `{command}`, {one['seconds']:.0f} s:"
    return "\n".join([head, "", "| what | measured | target | met |", "|---|---|---|---|", *rows])


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value}"


def documented(text: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the tables of these runs in their places; a new one goes to the end."""
    for one in runs:
        begin, end = BEGIN.format(name=one["name"]), END.format(name=one["name"])
        block = f"{begin}\n{table(one)}\n{end}"
        if begin in text:
            before, rest = text.split(begin, 1)
            text = before + block + rest.split(end, 1)[1]
        else:
            text = f"{text.rstrip()}\n\n### {one['name']}\n{block}\n"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults.run", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the full counts: an hour or more in all")
    parser.add_argument("--only", action="append", choices=modules(), help="one module; again for more")
    parser.add_argument("--document", action="store_true", help="refresh the tables in docs/reliability.md")
    parser.add_argument("--list", action="store_true", help="name the modules")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(modules()))
        return 0
    scale = "full" if options.full else "small"
    runs = []
    for name in options.only or modules():
        print(f"== {name} ({scale})", flush=True)
        runs.append(one := run_one(name, scale))
        for line in one["results"]:
            print(f"{'ok    ' if line['met'] else 'MISSED'} {line['name']}: {line['value']} {line['unit']}")
        print(f"   {one['seconds']} s", flush=True)
    command = " ".join(["python -m faults.run", *(arguments if arguments is not None else sys.argv[1:])])
    folder = Path(os.environ.get("REPORTS_DIR", "."))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fault-test.json").write_text(json.dumps(report(runs, command), indent=1) + "\n")
    if options.document:
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8"), runs), encoding="utf-8")
    missed = [line for one in runs for line in one["results"] if not line["met"]]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
