"""The subscribers' demographics: the committed file cleaned, and what is refused of another."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_transformation_pipelines.python_scripts_feast import clean_user_demographics
from data_transformation_pipelines.python_scripts_feast.clean_user_demographics import (
    COLUMNS,
    DEFAULT_SOURCE,
    FEATURES,
    DirtyFileError,
    clean,
    read_source,
)

RAW = list(csv.DictReader(io.StringIO(gzip.decompress(DEFAULT_SOURCE.read_bytes()).decode())))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_committed_file_has_the_documented_counts() -> None:
    assert clean(read_source(DEFAULT_SOURCE)).report() == {
        "subscribers": 7_043,
        "churned": 1_869,
        "missing_totals_set_to_zero": 11,
    }


def test_every_value_but_the_missing_totals_is_kept_in_file_order() -> None:
    cleaned = clean(read_source(DEFAULT_SOURCE))
    for name, column in COLUMNS.items():
        convert = {"int64": int, "double": float, "string": str}[str(column.type)]
        expected = [
            convert(row[name] or "0") if name == "total_charges" else convert(row[name]) for row in RAW
        ]
        assert cleaned.profiles[column.feature].to_pylist() == expected, name
    assert cleaned.churned == [int(row["churn"] == "Yes") for row in RAW]


def test_totals_are_missing_exactly_where_nothing_was_billed() -> None:
    assert [row["tenure"] == "0" for row in RAW] == [row["total_charges"] == "" for row in RAW]


def test_the_label_is_no_feature_and_names_carry_entity_and_unit() -> None:
    assert not [name for name in FEATURES if "churn" in name]
    assert all(name.startswith("subscriber_") for name in FEATURES)
    assert {
        "subscriber_tenure_months",
        "subscriber_monthly_charges_usd",
        "subscriber_total_charges_usd",
    } < set(FEATURES)


def test_the_documented_columns_are_the_cleaned_ones() -> None:
    readme = (DEFAULT_SOURCE.parent / "README.md").read_text()
    documented = [line.split("`")[1] for line in readme.splitlines() if line.startswith("| `subscriber_")]
    assert documented == ["subscriber_id", *FEATURES]


def test_the_order_of_columns_does_not_matter(tmp_path: Path) -> None:
    turned = write(tmp_path / "turned.csv", [dict(reversed(row.items())) for row in RAW])
    assert clean(read_source(turned)).profiles.equals(clean(read_source(DEFAULT_SOURCE)).profiles)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("total_charges", "", "line 4: total_charges is missing though tenure > 0"),
        ("monthly_charges", "", "line 4: monthly_charges is missing"),
        ("monthly_charges", "0", "line 4: monthly_charges is below 0.01"),
        ("monthly_charges", "nan", "line 4: monthly_charges is not finite"),
        ("total_charges", "inf", "line 4: total_charges is not finite"),
        ("total_charges", "-5", "line 4: total_charges is below 0"),
        ("tenure", "-1", "line 4: tenure is below 0"),
        ("tenure", "2.5", "conversion error"),
        ("senior_citizen", "2", "line 4: senior_citizen is above 1"),
        ("senior_citizen", "", "line 4: senior_citizen is missing"),
        ("contract", "Three year", "line 4: contract is none of Month-to-month"),
        ("contract", "", "line 4: contract is missing"),
        ("churn", "Perhaps", "line 4: churn is none of No, Yes"),
        ("churn", "", "line 4: churn is missing"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(tmp_path: Path, column: str, value: str, reason: str) -> None:
    rows = [dict(row) for row in RAW[:5]]
    rows[2][column] = value
    with pytest.raises(DirtyFileError, match=reason):
        clean(read_source(write(tmp_path / "wrong.csv", rows)))


@pytest.mark.parametrize("change", ["one too many", "one missing", "empty"])
def test_other_columns_are_refused(tmp_path: Path, change: str) -> None:
    rows = [dict(row) for row in RAW[:3]]
    for row in rows:
        if change == "one too many":
            row["customer_name"] = "x"
        else:
            del row["tenure"]
    path = write(tmp_path / "wrong.csv", rows)
    if change == "empty":
        path.write_text("")
    with pytest.raises(DirtyFileError, match=r"wrong\.csv: "):
        clean(read_source(path))


def test_the_command_reports_and_writes_the_cleaned_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    assert clean_user_demographics.main(["--out", str(tmp_path / "clean.parquet")]) == 0
    assert "11 missing total charges at tenure 0 set to 0.0" in capsys.readouterr().out
    report = json.loads((tmp_path / "reports" / "clean_user_demographics.json").read_text())
    assert report["missing_totals_set_to_zero"] == 11
    written = pq.read_table(tmp_path / "clean.parquet")
    assert written.schema.names == [*FEATURES, "churned"]
    assert sum(written["churned"].to_pylist()) == 1_869


def test_the_command_refuses_a_wrong_file_with_one_line_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path / "reports"))
    assert clean_user_demographics.main(["--source", str(tmp_path / "absent.csv")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "reports").exists()
