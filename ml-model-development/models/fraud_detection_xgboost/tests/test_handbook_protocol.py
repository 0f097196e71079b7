"""Folds, tuning and the cards that are left out, on made-up transactions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from src import handbook, handbook_protocol
from src.handbook_protocol import (
    MEASURES,
    SINGLE_SPLIT,
    TEST_FOLDS,
    TUNING_FOLDS,
    Fold,
    Kind,
    Labelled,
    Parameters,
    Tuned,
    prequential,
)
from src.handbook_report import Measured, published, result_lines
from src.landing import Landing
from src.windows import DAY

from common_ml_utils.errors import DataError, OneClassLabelsError

DAYS = 157
A_DAY = 20


def made_up(days: int = DAYS) -> Landing:
    """Raw transactions: every eighth terminal is bad for good, and high amounts are frauds."""
    rng = np.random.default_rng(3)
    rows = days * A_DAY
    frame = pd.DataFrame(
        {
            "time": 17_622 * DAY + np.sort(rng.integers(0, days * 86_400, rows)) * 1_000_000,
            "customer_id": rng.integers(0, 150, rows),
            "terminal_id": rng.integers(0, 40, rows),
            "tx_amount": np.round(rng.gamma(2, 30, rows), 2),
        }
    )
    bad = (frame["terminal_id"] % 8 == 0) & (rng.random(rows) < 0.3)
    frame["is_fraud"] = (bad | (frame["tx_amount"] > 220)).astype(int)
    frame["day"] = frame["time"] // DAY - 17_622
    return Landing("made up", frame)


@pytest.fixture(scope="module")
def data() -> Labelled:
    return handbook._datasets(made_up())["platform features"]


def echo(parameters: Parameters, training: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """A "model" that scores by one column."""
    return np.asarray(test[:, parameters["column"]])


def test_folds_are_weeks_with_a_week_of_delay() -> None:
    assert SINGLE_SPLIT.training == (115, 122)
    assert SINGLE_SPLIT.test == (129, 136)
    assert [fold.test for fold in TEST_FOLDS] == [(129, 136), (136, 143), (143, 150), (150, 157)]


def test_tuning_never_sees_a_test_week_or_a_label_not_known_at_its_start() -> None:
    last_label_known = max(fold.test[1] for fold in TUNING_FOLDS) + 7
    assert last_label_known <= min(fold.test[0] for fold in TEST_FOLDS)


def test_tuning_folds_too_late_are_refused(data: Labelled) -> None:
    kind = Kind("echo", {}, [{"column": 0}], echo)
    with pytest.raises(ValueError, match="not known when"):
        prequential(data, [kind], "test", tuning=(Fold(102),), test=(Fold(115),))


def test_cards_known_as_compromised_leave_the_test(data: Labelled) -> None:
    fold = TEST_FOLDS[0]
    training, test = data.rows(fold)
    assert set(data.days[training]) == set(range(115, 122))
    frauds = {
        (customer, day)
        for customer, day, label in zip(data.customers, data.days, data.labels, strict=True)
        if label == 1 and day >= 115
    }
    expected = [
        row
        for row in np.flatnonzero((data.days >= 129) & (data.days < 136))
        if not any(card == data.customers[row] and day + 8 <= data.days[row] for card, day in frauds)
    ]
    assert test.tolist() == expected
    assert len(expected) < ((data.days >= 129) & (data.days < 136)).sum()


def test_each_measure_chooses_on_the_tuning_folds_and_is_measured_on_the_test_folds(data: Labelled) -> None:
    columns = [0, 3, 9, 17]
    kind = Kind("echo", {}, [{"column": column} for column in columns], echo)
    tuned = prequential(data, [kind], "test")["echo"]
    tuning, test = (
        {column: [measures_of(data, fold, column) for fold in folds] for column in columns}
        for folds in (TUNING_FOLDS, TEST_FOLDS)
    )
    for measure in MEASURES:
        best = max(columns, key=lambda column: np.mean([fold[measure] for fold in tuning[column]]))
        assert tuned.chosen[measure] == {"column": best}
        expected = [fold[measure] for fold in test[best]]
        assert tuned.folds[measure] == pytest.approx(expected)
        assert tuned.means[measure] == pytest.approx(np.mean(expected))


def measures_of(data: Labelled, fold: Fold, column: int) -> dict[str, float]:
    _, test = data.rows(fold)
    return data.measures(test, data.features[test, column])


def test_too_few_days_and_one_class_are_refused(data: Labelled) -> None:
    short = handbook._datasets(made_up(days=150))["published features"]
    with pytest.raises(DataError, match="needs the days to 156"):
        short.rows(TEST_FOLDS[-1])
    clean = Labelled(data.features, data.days, data.customers, np.zeros_like(data.labels))
    with pytest.raises(OneClassLabelsError):
        clean.rows(SINGLE_SPLIT)


@pytest.fixture
def quick_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three kinds of models, tiny."""
    small = []
    for kind in handbook_protocol.kinds():
        tiny = {"logistic regression": {"C": 1}}.get(kind.name, {"n_estimators": 3, "max_depth": 2})
        small.append(Kind(kind.name, tiny, [tiny], kind.scores))
    monkeypatch.setattr(handbook_protocol, "kinds", lambda: tuple(small))


def test_the_whole_run_reports_a_scaled_down_set_without_targets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick_kinds: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(handbook, "read_landing", lambda folder: made_up())
    assert handbook.main(["--landing", str(tmp_path), "--reports", str(tmp_path / "reports")]) == 0
    document = json.loads((tmp_path / "reports" / "handbook.json").read_text())
    assert document["full_set"] is False
    assert len(document["results"]) == 2 * 2 * 3 * 3  # protocols, definitions, models, measures
    assert all(line["target"] is None and line["peer"] is None for line in document["results"])
    assert all(0 < line["value"] <= 1 for line in document["results"])
    page = (tmp_path / "reports" / "handbook.html").read_text()
    assert page.count("data:image/png") == 4
    said = capsys.readouterr().out
    assert "prequential" in said
    assert "not comparable" in said


def test_a_full_set_must_give_the_published_rows_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    landing = made_up()
    frauds = int(landing.transactions["is_fraud"].sum())
    monkeypatch.setattr(handbook, "read_landing", lambda folder: landing)
    monkeypatch.setitem(
        published(), "full set", {"transactions": len(landing.transactions), "frauds": frauds}
    )
    assert handbook.main(["--landing", str(tmp_path), "--reports", str(tmp_path)]) == 1
    assert "is a day wrong" in capsys.readouterr().err
    assert not (tmp_path / "handbook.json").exists()


@pytest.mark.parametrize(("value", "met"), [(0.869, True), (0.868, False)])
def test_the_full_set_is_held_against_the_published_figures(value: float, met: bool) -> None:
    figures = {"auc_roc": value, "average_precision": 0.7, "card_precision_100": 0.31}
    tuned = Tuned("XGBoost", [], {}, {name: [figure, figure] for name, figure in figures.items()})
    measured = Measured(
        full=True,
        rows={},
        dataset_id="",
        seconds={},
        single={"published features": {"XGBoost": figures}},
        tuned={"published features": {"XGBoost": tuned}},
    )
    lines = {line["name"]: line for line in result_lines(measured)}
    assert len(lines) == 6
    assert all(line["peer"] == "Fraud Detection Handbook, XGBoost" for line in lines.values())
    single = lines["XGBoost, single split, published features: AUC ROC"]
    assert (single["peer_value"], single["target"], single["met"]) == (0.862, None, None)
    auc = lines["XGBoost, prequential, published features: AUC ROC"]
    assert (auc["peer_value"], auc["target"], auc["met"]) == (0.869, 0.869, met)
    assert lines["XGBoost, prequential, published features: card precision@100"]["met"]


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert handbook.main(["--landing", str(tmp_path / "none"), "--reports", str(tmp_path)]) == 1
    assert "simulate transactions into it first" in capsys.readouterr().err
