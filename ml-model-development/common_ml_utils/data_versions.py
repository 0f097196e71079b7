"""Which raw files a model was trained on, named as DVC names them.

DVC calls a file by the MD5 of its bytes, and a folder by the MD5 of the list of its files followed by `.dir`.
The names are computed here without DVC, so that every training carries one; `make data-push` stores the same
files under the same names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FEATURE_STORE = ROOT.parent / "feature-store-management"
UNKNOWN = "unknown"


def raw_sources(data_dir: Path) -> dict[str, Path]:
    """Return where the raw files of each kind lie: landed, or kept with the feature store."""
    return {
        "transactions": data_dir / "landing" / "transactions",
        "subscribers": FEATURE_STORE / "data" / "subscribers",
        "movies": FEATURE_STORE / "data" / "movies",
    }


# A project's reports folder -> the raw data its model learns from.
RAW_DATA_OF = {"fraud": "transactions", "churn": "subscribers", "recommendation": "movies"}


def dvc_version(data_dir: Path, report: str) -> str:
    """Return `<kind>:<DVC's name>` of a project's raw files, e.g. `transactions:6c1f...e2.dir`.

    `unknown` where the project has no raw files of its own or they are not here, as in an image.
    """
    kind = RAW_DATA_OF.get(report)
    source = raw_sources(data_dir).get(kind) if kind else None
    if source is None or not source.exists():
        return UNKNOWN
    return f"{kind}:{dvc_name(source)}"


def dvc_name(path: Path) -> str:
    """Return DVC's name of a file, or of a folder with all that is in it."""
    if path.is_file():
        return _md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = sorted(
        ({"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files),
        key=lambda entry: entry["relpath"],
    )
    return (
        hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
