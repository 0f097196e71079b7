"""The benchmark's data: fetched when asked, checked, and refused with a reason; its split."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from src import ml100k
from src.benchmark_ml100k import main, random_split

from common_ml_utils.errors import DataError


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point pip to nowhere, and let this Python stand for the one with pip."""

    def python_with_pip(folder: Path) -> Path:
        return Path(sys.executable)

    def refused(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        error = "WARNING: retrying\nERROR: No matching distribution found for recbole==1.2.1\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(ml100k, "_python_with_pip", python_with_pip)
    monkeypatch.setattr(ml100k.subprocess, "run", refused)


@pytest.mark.usefixtures("no_index")
def test_without_an_index_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    assert main([]) == 1
    error = capsys.readouterr().err
    assert "MovieLens 100K can't be fetched: pip could not get recbole==1.2.1" in error
    assert "No matching distribution found" in error
    assert not (tmp_path / "reports").exists()


def test_an_altered_wheel_is_not_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(folder: Path) -> Path:
        wheel = folder / ml100k.WHEEL
        wheel.write_bytes(b"not the wheel")
        return wheel

    monkeypatch.setattr(ml100k, "_download", altered)
    with pytest.raises(DataError, match="nothing was extracted"):
        ml100k.fetched(tmp_path / "ml-100k")
    assert not (tmp_path / "ml-100k").exists()


def test_too_few_ratings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t4\n"
    )
    with pytest.raises(DataError, match="has 1 ratings here, not 100000"):
        ml100k.read_ratings(tmp_path)


def test_movies_are_read_with_their_genres_and_age(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "2\tGoldenEye\t1995\tAction Thriller\n1\tunknown\t\tunknown\n"
    )
    movies = ml100k.read_movies(tmp_path)
    assert movies["movie_id"].tolist() == [1, 2]
    assert movies["movie_is_action"].tolist() == [0, 1]
    assert movies["movie_genre_count"].tolist() == [1, 2]
    assert np.isnan(movies["movie_age_years"][0])
    assert movies["movie_age_years"][1] == 3


def test_the_random_split_parts_every_rating_and_repeats() -> None:
    rated = csr_matrix((np.random.default_rng(0).random((20, 30)) < 0.5).astype(np.float32))
    training, test = random_split(rated, 0.25, seed=42)
    assert (training + test - rated).nnz == 0
    assert training.multiply(test).nnz == 0
    assert test.nnz == pytest.approx(0.25 * rated.nnz, abs=1)
    assert (random_split(rated, 0.25, seed=42)[0] != training).nnz == 0
    assert (random_split(rated, 0.25, seed=43)[0] != training).nnz > 0
