"""Any churn set by configuration alone: the public second one, and each way a file or schema can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from src import csv_schema, train_csv
from src.config import ChurnFolds
from src.cross_validation import Subject, intervals, repeated
from src.csv_schema import read_csv, read_schema

from common_ml_utils import base_model_trainer
from common_ml_utils.errors import DataError, SchemaMismatchError
from common_ml_utils.preprocessing import Preprocessing
from common_ml_utils.release_bundle import ReleaseBundle

DATA = Path(__file__).parents[1] / "data"
SCHEMA: dict[str, Any] = {
    "name": "gym",
    "entity": "member",
    "key": {"column": "Member", "type": "string"},
    "label": {"column": "left", "positive": "yes", "negative": "no"},
    "features": [
        {"column": "Visits", "type": "numeric", "missing": ["?"]},
        {"column": "Plan", "type": "categorical"},
    ],
    "slices": ["plan"],
    "snapshot_date": "2024-01-01",
    "hyperparameters": {"n_estimators": 20, "n_jobs": 1},
    "validation": {"folds": 2},
}


def rows(number: int = 240) -> list[list[str]]:
    rng = np.random.default_rng(0)
    visits, plan = rng.integers(0, 30, number), rng.choice(["day", "year"], number)
    left = rng.random(number) < 1 / (1 + np.exp(0.2 * visits - 2 + (plan == "year")))
    return [
        [f"m{i}", "?" if i % 50 == 0 else str(visits[i]), plan[i], "yes" if left[i] else "no"]
        for i in range(number)
    ]


def write_csv(folder: Path, body: list[list[str]], header: str = "Member,Visits,Plan,left") -> Path:
    path = folder / "gym.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in body)]) + "\n")
    return path


def write_schema(folder: Path, **changes: Any) -> Path:
    path = folder / "gym.schema.yaml"
    path.write_text(yaml.safe_dump({**SCHEMA, **changes}))
    return path


def run(folder: Path, csv: Path, schema: Path) -> int:
    arguments = ["--schema", str(schema), "--csv", str(csv), "--out", str(folder / "out"), "--repeats", "1"]
    return train_csv.main(arguments)


def test_a_file_becomes_a_bundle_a_card_and_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The trainer's plots take seconds; another training of these tests draws them.
    monkeypatch.setattr(base_model_trainer, "model_plots", lambda *_: {})
    schema = read_schema(write_schema(tmp_path))
    train_csv.train_csv(schema, write_csv(tmp_path, rows()), tmp_path / "out", repeats=1, resamples=20)
    bundle = ReleaseBundle.load(tmp_path / "out" / "bundle")
    assert bundle.manifest.model_name == "gym-model"
    assert bundle.preprocessing.names == ["visits", "plan"]
    assert bundle.reason_codes["visits"].code == "VISITS"
    assert bundle.score_row({"visits": 1, "plan": "day"}) > bundle.score_row({"visits": 29, "plan": "year"})
    report = json.loads((tmp_path / "out" / "cross_validation.json").read_text())
    assert report["rows"] == 240
    assert report["logistic_regression"]["auc_roc"]["mean"] > 0.6
    card = (tmp_path / "out" / "model_card" / "model_card.md").read_text()
    assert "plan: year" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gym.csv", "gym.schema.yaml", "out"]


def test_the_same_file_and_schema_give_the_same_model(tmp_path: Path) -> None:
    schema, csv = read_schema(write_schema(tmp_path)), write_csv(tmp_path, rows())
    models, versions = [], []
    for _ in range(2):
        trainer = train_csv.CsvTrainer(schema, csv, tmp_path)
        data = trainer.load()
        preprocessing = Preprocessing.fit(data.contract.service, data.training)
        models.append(trainer.fit(preprocessing, data.training).to_bytes())
        versions.append(data.data_version)
    assert models[0] == models[1]
    assert versions[0] == versions[1]


def test_a_later_result_takes_the_place_of_the_earlier_one_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with train_csv.whole_folder(tmp_path / "out") as folder:
            (folder / "train.json").write_text(content)
            (folder / content).write_text("")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["second", "train.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_second_public_set_is_read_by_its_schema_and_beats_logistic_regression() -> None:
    schema = read_schema(DATA / "mlc_churn.schema.yaml")
    frame = read_csv(DATA / "mlc_churn_5000.csv.gz", schema)
    assert (len(frame), frame["churned"].sum()) == (5000, 707)
    quick = schema.hyperparameters.model_copy(update={"n_estimators": 40, "learning_rate": 0.1})
    subject = Subject(frame, schema.contract().service, "churned", quick, schema.values, ChurnFolds(folds=2))
    boosted = repeated(subject, subject.boosted(quick), 1, "LightGBM")
    logistic = repeated(subject, subject.logistic, 1, "logistic regression")
    assert boosted.mean("auc_roc") > 0.89
    low, high = intervals(subject.labels, boosted.scores, resamples=40)["auc_roc"]
    assert 0.8 < logistic.mean("auc_roc") < low < high


def changed(position: int, column: int, value: str) -> list[list[str]]:
    body = rows()
    body[position][column] = value
    return body


BAD_FILES: dict[str, tuple[Any, str]] = {
    "empty": ("", "gym.csv is empty"),
    "header only": ("Member,Visits,Plan,left\n", "gym.csv has a header and no rows"),
    "missing column": (([row[:1] + row[2:] for row in rows()], "Member,Plan,left"), r"missing \['Visits'\]"),
    "extra column": (([[*row, "1"] for row in rows()], "Member,Visits,Plan,left,x"), r"unexpected \['x'\]"),
    "column twice": (
        ([[*row, "1"] for row in rows()], "Member,Visits,Plan,left,left"),
        "columns stand twice",
    ),
    "short row": ([*rows(), ["m999", "3", "day"]], r"4 fields .* needed: row 242 \(the first has 3\)"),
    "long row": ([*rows(), ["m999", "3", "day", "no", "1"]], "row 242"),
    "word in a number": (changed(5, 1, "many"), "column Visits: not numbers: 'many' in row 7"),
    "infinite": (changed(5, 1, "inf"), "column Visits: not numbers: 'inf' in row 7"),
    "nan": (changed(5, 1, "nan"), "column Visits: not numbers: 'nan' in row 7"),
    "unknown label": (changed(7, 3, "maybe"), "column left: neither 'yes' nor 'no': 'maybe' in row 9"),
    "empty label": (changed(7, 3, ""), "column left: neither 'yes' nor 'no': '' in row 9"),
    "one class": ([[*row[:3], "no"] for row in rows()], "column left: every row is 'no'"),
    "all null": ([[row[0], "?", *row[2:]] for row in rows()], "column Visits: not one value in 240 rows"),
    "duplicate key": (changed(4, 0, "m1"), "column Member: keys stand twice: 'm1' in row 3, 'm1' in row 6"),
    "no key": (changed(4, 0, ""), "column Member: no key in row 6"),
    "ids as categories": ([[*row[:2], f"p{i}", row[3]] for i, row in enumerate(rows())], "are no category"),
    "wrong encoding": ("Member,Visits,Plan,left\nm1,3,é,no\n".encode("latin-1"), "is not utf-8: byte 0xe9"),
    "binary": (b"PK\x03\x04\x00\x00", "gym.csv"),
    "open quote": ('Member,Visits,Plan,left\n"m1,3,day,no\n', "can't be read as CSV"),
    "too few rows": (rows(3), "gym.csv|folds need|class"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_writes_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_FILES[kind]
    path = tmp_path / "gym.csv"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        body, header = content if isinstance(content, tuple) else (content, "Member,Visits,Plan,left")
        write_csv(tmp_path, body, header)
    schema = write_schema(tmp_path)
    with pytest.raises(DataError, match=message):
        train_csv.train_csv(read_schema(schema), path, tmp_path / "out")
    assert run(tmp_path, path, schema) == 1
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) < 400
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gym.csv", "gym.schema.yaml"]


BAD_SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "unquoted yes": ({"label": {"column": "left", "positive": True, "negative": False}}, "put it in quotes"),
    "same values": ({"label": {"column": "left", "positive": "yes", "negative": "yes"}}, "the same value"),
    "unknown entry": ({"lable": 1}, "lable: Extra inputs are not permitted"),
    "unknown type": ({"features": [{"column": "Visits", "type": "number"}]}, r"features\.0\.type"),
    "no features": ({"features": []}, "features"),
    "column twice": ({"ignore": ["Plan"]}, r"columns that stand twice: \['Plan'\]"),
    "name twice": (
        {"features": [{"column": "A b", "type": "numeric"}, {"column": "a-b", "type": "numeric"}]},
        "feature names that stand twice",
    ),
    "reserved name": ({"features": [{"column": "churned", "type": "numeric"}]}, "trainer uses itself"),
    "numeric slice": ({"slices": ["visits"]}, "slices must be categorical"),
    "bad name": ({"name": "Gym 1"}, "name: String should match"),
    "wrong prices": ({"values": {"offer_cost": 1}}, "an offer must cost and keep"),
}


@pytest.mark.parametrize("kind", BAD_SCHEMAS)
def test_a_bad_schema_is_named(tmp_path: Path, kind: str) -> None:
    changes, message = BAD_SCHEMAS[kind]
    with pytest.raises(SchemaMismatchError, match=message) as caught:
        read_schema(write_schema(tmp_path, **changes))
    assert str(caught.value).startswith("gym.schema.yaml: ")


def test_a_schema_that_is_no_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [1")
    for name in ("x.yaml", "absent.yaml"):
        with pytest.raises(SchemaMismatchError, match=f"{name} can't be read"):
            read_schema(tmp_path / name)


def test_a_failure_keeps_the_earlier_result_and_other_folders_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, schema = write_csv(tmp_path, rows()), write_schema(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run(tmp_path, csv, schema) == 1
    assert "holds something else than a training's result" in capsys.readouterr().err
    (tmp_path / "out" / "train.json").write_text("{}")

    def broken(*_: Any, **__: Any) -> None:
        raise DataError("stopped half way")

    monkeypatch.setattr(train_csv.CsvTrainer, "train", broken)
    assert run(tmp_path, csv, schema) == 1
    assert "stopped half way" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["notes.txt", "train.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gym.csv", "gym.schema.yaml", "out"]


def test_gzip_byte_order_mark_other_separator_and_integer_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "gym.csv.gz"
    text = "\ufeffMember;Visits;Plan;left;note\n7;1.5;day;0;a\n8;?;;1;b\n\n"
    path.write_bytes(gzip.compress(text.encode()))
    schema = read_schema(
        write_schema(
            tmp_path,
            separator=";",
            key={"column": "Member", "type": "int64"},
            label={"column": "left", "positive": 1, "negative": 0},
            ignore=["note"],
        )
    )
    frame = read_csv(path, schema)
    assert frame["member"].tolist() == [7, 8]
    assert frame["churned"].tolist() == [0, 1]
    assert frame["visits"][0] == 1.5
    assert np.isnan(frame["visits"][1])
    assert frame["plan"].tolist() == ["day", None]
    assert frame["label_known_at"][0] == pd.Timestamp("2024-01-31", tz="UTC")
    path.write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(SchemaMismatchError, match=r"gym\.csv\.gz can't be read as CSV"):
        read_csv(path, schema)


def test_the_kept_file_is_the_one_its_readme_names() -> None:
    readme = (DATA / "README.md").read_text()
    assert csv_schema.file_sha256(DATA / "mlc_churn_5000.csv.gz") in readme
