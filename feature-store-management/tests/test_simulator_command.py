"""The simulate command: landing files, manifest, reuse, repair and refusals."""

import hashlib
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_transformation_pipelines.python_scripts_feast import simulate_transactions
from data_transformation_pipelines.python_scripts_feast.landing_files import (
    INCOMING_NAME,
    LABELS_SCHEMA,
    TRANSACTIONS_SCHEMA,
    locked,
    read_manifest,
)

SMALL = ["--customers", "60", "--terminals", "800", "--days", "40"]


def run(out: Path, *options: str) -> int:
    return simulate_transactions.main([*SMALL, "--out", str(out), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def column(folder: Path, kind: str, name: str) -> list[Any]:
    values: list[Any] = []
    for path in sorted(folder.glob(f"{kind}_*.parquet")):
        values += pq.read_table(path)[name].to_pylist()
    return values


def test_one_file_of_each_kind_a_day_with_the_declared_schema(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    days = [(date(2018, 4, 1) + timedelta(days=n)).isoformat() for n in range(40)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["dataset.json"] + [f"{kind}_{day}.parquet" for day in days for kind in ("transactions", "labels")]
    )
    for day in days:
        transactions = pq.read_table(tmp_path / f"transactions_{day}.parquet")
        labels = pq.read_table(tmp_path / f"labels_{day}.parquet")
        assert transactions.schema.equals(TRANSACTIONS_SCHEMA)
        assert labels.schema.equals(LABELS_SCHEMA)
        assert transactions["transaction_id"] == labels["transaction_id"]
        assert {moment.date().isoformat() for moment in transactions["tx_datetime"].to_pylist()} <= {day}
    assert column(tmp_path, "transactions", "transaction_id") == list(
        range(len(column(tmp_path, "labels", "is_fraud")))
    )


def test_the_manifest_states_the_totals_and_every_file(tmp_path: Path) -> None:
    run(tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    assert manifest["transactions"] == len(column(tmp_path, "transactions", "transaction_id"))
    assert manifest["frauds"] == sum(column(tmp_path, "labels", "is_fraud"))
    assert manifest["frauds"] == sum(manifest["frauds_by_scenario"].values()) > 0
    for landed in manifest["files"]:
        data = (tmp_path / landed["name"]).read_bytes()
        assert landed["sha256"] == hashlib.sha256(data).hexdigest()
        assert landed["rows"] == pq.read_table(pa.BufferReader(data)).num_rows
    assert manifest["parameters"]["end_date"] == "2018-05-10"


def test_the_data_set_id_is_the_hash_of_the_canonical_parameters(tmp_path: Path) -> None:
    run(tmp_path)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    canonical = json.dumps(manifest["parameters"], sort_keys=True, separators=(",", ":"))
    assert manifest["dataset_id"] == hashlib.sha256(canonical.encode()).hexdigest()


def test_two_runs_write_identical_bytes(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_shifted_calendar_changes_nothing_but_the_dates(tmp_path: Path) -> None:
    run(tmp_path / "published")
    run(tmp_path / "shifted", "--end-date", "2026-11-21")
    shift = date(2026, 11, 21) - date(2018, 5, 10)
    for kind, names in (
        ("transactions", ("transaction_id", "customer_id", "terminal_id", "tx_amount")),
        ("labels", ("transaction_id", "is_fraud", "fraud_scenario")),
    ):
        for name in names:
            assert column(tmp_path / "shifted", kind, name) == column(tmp_path / "published", kind, name)
    published = column(tmp_path / "published", "transactions", "tx_datetime")
    assert column(tmp_path / "shifted", "transactions", "tx_datetime") == [
        moment + shift for moment in published
    ]
    ids = {
        json.loads((tmp_path / name / "dataset.json").read_text())["dataset_id"]
        for name in ("published", "shifted")
    }
    assert len(ids) == 2


def test_intact_files_are_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert "reused, all 80 files are intact" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_force_simulates_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    assert run(tmp_path, "--force") == 0
    assert "simulating (--force)" in capsys.readouterr().out
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_repaired(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    victim = tmp_path / "transactions_2018-04-03.parquet"
    victim.unlink()
    if damage == "changed":
        victim.write_bytes(before[victim.name][:-1])
    assert run(tmp_path) == 0
    assert "transactions_2018-04-03.parquet is missing or not as" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_other_parameters_replace_the_set_and_leave_other_files(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert run(tmp_path, "--end-date", "2018-05-15") == 0
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    expected = {landed.name for landed in manifest.files} | {"dataset.json", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert not (tmp_path / "transactions_2018-04-01.parquet").exists()


def test_a_run_that_broke_off_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "broken", "--end-date", "2018-05-15")
    replace, moved = Path.replace, []

    def break_off(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 30:
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", break_off)
    assert run(tmp_path / "broken") == 1
    monkeypatch.undo()
    # Days of two data sets stand there now: without a manifest nobody takes them for one.
    assert read_manifest(tmp_path / "broken") is None
    assert (tmp_path / "broken" / INCOMING_NAME).exists()
    assert run(tmp_path / "broken") == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_day_files_of_unknown_origin_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "transactions_2018-04-01.parquet"
    mine.write_bytes(b"mine")
    assert run(tmp_path) == 1
    assert "holds day files but no dataset.json" in capsys.readouterr().err
    assert mine.read_bytes() == b"mine"


def test_a_broken_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    assert run(tmp_path) == 1
    assert "dataset.json is no manifest: dataset_id" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path, exclusive=False):
        assert run(tmp_path) == 1
    assert "in use by another process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--customers", "0"],
        ["--terminals", "-3"],
        ["--days", "many"],
        ["--days", "1.5"],
        ["--end-date", "21.11.2026"],
        ["--end-date", "2026-02-30"],
        ["--start-date", "2018-04-01", "--end-date", "2018-10-01"],
        ["--end-date", "0001-01-02"],
        ["--start-date", "9999-12-31"],
        ["--customers", "5000000000"],
        ["--unknown"],
    ],
    ids=" ".join,
)
def test_bad_parameters_give_one_line_and_exit_2(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(tmp_path / "out", *options)
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate_transactions: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    assert run(tmp_path / "out") == 2
    assert "is not a folder" in capsys.readouterr().err
