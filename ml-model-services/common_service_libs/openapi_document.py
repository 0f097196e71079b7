"""The committed OpenAPI documents of the services: `python -m common_service_libs.openapi_document --write`.

Without `--write` it says whether each document is what its service says of itself. A change that clients may
not notice as a break is written over the document; a break is refused, unless `--new-version` puts it into a
document of the next version beside the old one.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common_service_libs.openapi_compare import compare

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "openapi"
_PRINT = "from common_service_libs.openapi_document import print_own; print_own()"


def services() -> list[str]:
    """Return the decision services: those with an application and policies."""
    found = (ROOT / "services").glob("*/app/main.py")
    return sorted(path.parents[1].name for path in found if (path.parents[1] / "policies").is_dir())


def print_own() -> None:
    """Print the document of the service whose folder is the working directory; connects to nothing."""
    config = importlib.import_module("app.core.config")  # whatever service the working directory is
    create_app = importlib.import_module("app.main").create_app
    settings: Any
    [settings] = [
        cls for _, cls in inspect.getmembers(config, inspect.isclass) if cls.__module__ == config.__name__
    ]
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        keys.write_text("[]")
        app = create_app(
            settings(
                decisions_db_password="",
                mlflow_tracking_uri="http://127.0.0.1:9",
                spool_dir=folder,
                api_keys_file=keys,
            )
        )
    print(json.dumps(app.openapi()))


def generate(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what services say of themselves, each in a process of its own: all call their package `app`."""
    processes = {
        name: subprocess.Popen(  # noqa: S603  (this interpreter, on this file)
            [sys.executable, "-c", _PRINT], cwd=ROOT / "services" / name, stdout=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if key in {"PATH", "HOME", "LANG"}}
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), "."])},
        )
        for name in names
    }  # fmt: skip
    documents = {}
    for name, process in processes.items():
        out, _ = process.communicate(timeout=60)
        if process.returncode:
            raise ValueError(f"{name} gives no document; what it said is above")
        documents[name] = json.loads(out)
    return documents


def current(name: str) -> tuple[int, dict[str, Any] | None]:
    """Return the newest version of a service's document and the document; 1 and None if there is none."""
    versions = sorted(int(path.name.split(".v")[1].split(".")[0]) for path in FOLDER.glob(f"{name}.v*.json"))
    if not versions:
        return 1, None
    return versions[-1], json.loads(document_path(name, versions[-1]).read_text())


def document_path(name: str, version: int) -> Path:
    """Return where a document stands."""
    return FOLDER / f"{name}.v{version}.json"


def written(document: dict[str, Any]) -> str:
    """Return a document as it is committed."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def check(name: str, document: dict[str, Any]) -> list[str]:
    """Return what is wrong between a service's own document and the committed one; empty if nothing is."""
    version, committed = current(name)
    if committed is None:
        return [f"{name} has no document: write it with --write"]
    changes = compare(committed, document)
    said = [f"{name}: {change.place} {change.what}" for change in changes if change.breaks]
    if said:
        return [*said, f"{name}: this breaks clients of v{version}: it needs --write --new-version"]
    if written(committed) != written(document):
        return [
            *(f"{name}: {change.place} {change.what}" for change in changes),
            f"{name}: v{version} is not what the service says of itself: write it again with --write",
        ]
    return []


def main(arguments: Sequence[str] | None = None) -> None:
    """Check or write the documents; exit code 1 and the reasons if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m common_service_libs.openapi_document")
    parser.add_argument("--write", action="store_true", help="write what has changed without a break")
    parser.add_argument("--new-version", action="store_true", help="with --write: a break is a new version")
    parser.add_argument("services", nargs="*", help="all of them, if none is named")
    given = parser.parse_args(arguments)
    failed = False
    for name, document in generate(given.services or services()).items():
        version, committed = current(name)
        breaks = [change for change in compare(committed or {}, document) if change.breaks]
        if given.write and (given.new_version or not breaks):
            FOLDER.mkdir(exist_ok=True)
            path = document_path(name, version + bool(breaks))
            path.write_text(written(document))
            print(path.relative_to(ROOT))
            continue
        wrong = check(name, document)
        failed = failed or bool(wrong)
        print("\n".join(wrong or [f"{name}: v{version} is as it should be"]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
