"""MovieLens 100K, fetched when asked: it must not be passed on, so it is not in the repository.

GroupLens' files, as the package RecBole ships them, fetched with pip from the index that pip is set up for
and checked by SHA-256. Harper and Konstan 2015, "The MovieLens Datasets".
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from common_ml_utils.errors import DataError
from common_ml_utils.hybrid_recommender import AGE, GENRE_COUNT, GENRE_PREFIX

PACKAGE = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER_IN_WHEEL = "recbole/dataset_example/ml-100k"
FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
RATINGS = 100_000
YEAR = 1998  # when the data ends


def fetched(folder: Path) -> Path:
    """Return the folder with the three files, fetched if one is missing or altered; raises DataError."""
    if all(_sha256(folder / name) == digest for name, digest in FILES.items()):
        return folder
    print(f"==> fetching {PACKAGE} for MovieLens 100K", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(Path(scratch))
        if (digest := _sha256(wheel)) != WHEEL_SHA256:
            raise DataError(f"{WHEEL} has SHA-256 {digest}, expected {WHEEL_SHA256}: nothing was extracted")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                partial = folder / f".{name}.partial"
                partial.write_bytes(archive.read(f"{FOLDER_IN_WHEEL}/{name}"))
                partial.replace(folder / name)
    if wrong := [name for name, digest in FILES.items() if _sha256(folder / name) != digest]:
        raise DataError(f"files of MovieLens 100K are not the known ones: {wrong}")
    return folder


def read_ratings(folder: Path) -> pd.DataFrame:
    """Return the 100,000 ratings: `viewer_id`, `movie_id`, `rating`; raises DataError for another number."""
    frame = _table(folder / "ml-100k.inter").iloc[:, :3]
    frame.columns = pd.Index(["viewer_id", "movie_id", "rating"])
    if len(frame) != RATINGS:
        raise DataError(f"MovieLens 100K has {len(frame)} ratings here, not {RATINGS}")
    return frame.astype({"viewer_id": "int64", "movie_id": "int64", "rating": "float64"})


def read_movies(folder: Path) -> pd.DataFrame:
    """Return `movie_id` and what a movie is: a flag a genre, their number, age in years at the data's end."""
    items = _table(folder / "ml-100k.item")
    items.columns = pd.Index(["movie_id", "title", "year", "genres"])
    flags = items["genres"].fillna("").str.get_dummies(sep=" ")
    flags.columns = pd.Index([f"{GENRE_PREFIX}{name.lower()}" for name in flags])
    years = pd.to_numeric(items["year"], errors="coerce")
    own = {GENRE_COUNT: flags.sum(axis=1), AGE: YEAR - years}
    movies = pd.concat([items["movie_id"].astype("int64"), flags], axis=1).assign(**own)
    return movies.sort_values("movie_id", ignore_index=True).astype({AGE: np.float64})


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", encoding="utf-8", quoting=3)


def _download(folder: Path) -> Path:
    """Download the wheel alone with pip, the hash required; raises DataError that says what pip said."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    command = [str(_python_with_pip(folder)), "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603
    if done.returncode or not (folder / WHEEL).exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "pip gave no reason"
        ]
        raise DataError(
            f"MovieLens 100K can't be fetched: pip could not get {PACKAGE} from the index it is set up for"
            f" ({said[-1].removeprefix('ERROR: ')}); without an index, put {', '.join(FILES)} of its"
            f" {FOLDER_IN_WHEEL} into ml-100k of the data folder (DATA_DIR)"
        )
    return folder / WHEEL


def _python_with_pip(folder: Path) -> Path:
    """Return a Python that has pip: this one, or one made for it (the locked environment has none)."""
    own = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if own.returncode == 0:
        return Path(sys.executable)
    venv.create(folder / "pip", with_pip=True, symlinks=True)
    return folder / "pip" / "bin" / "python"


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
