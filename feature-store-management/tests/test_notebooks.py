"""The notebooks: committed without output, computed by tested measures, run on the stack without warnings."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from common_test_utils import require_stack
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks_feature_dev import execute
from notebooks_feature_dev.common_utils import data_loading, measures

NAMES = [
    "01_eda_raw_transactions.ipynb",
    "02_profiling_market_data.ipynb",
    "03_feature_engineering_user_behavior.ipynb",
]
START = pd.Timestamp("2026-11-01", tz="UTC")


def committed_output(path: Path) -> list[str]:
    """Return what a committed notebook holds of a run."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    found = []
    for number, cell in enumerate(notebook.cells):
        if cell.get("outputs"):
            found.append(f"cell {number} has output")
        if cell.get("execution_count") is not None:
            found.append(f"cell {number} has an execution count")
        if cell.metadata:
            found.append(f"cell {number} has metadata")
    return found + [
        f"metadata {key}" for key in notebook.metadata if key not in ("kernelspec", "language_info")
    ]


def test_the_documented_notebooks_stand_there() -> None:
    assert [path.name for path in execute.notebooks()] == NAMES


@pytest.mark.parametrize("path", execute.notebooks(), ids=lambda path: path.name[:2])
def test_a_notebook_is_committed_without_output(path: Path) -> None:
    assert committed_output(path) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"outputs": [nbformat.v4.new_output("stream", text="1")]}, "cell 1 has output"),
        ({"execution_count": 3}, "cell 1 has an execution count"),
        ({"metadata": {"collapsed": True}}, "cell 1 has metadata"),
    ],
)
def test_stale_output_would_be_found(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    notebook = nbformat.read(execute.notebooks()[0], as_version=4)
    notebook.cells[1].update(change)
    nbformat.write(notebook, tmp_path / "stale.ipynb")
    assert complaint in committed_output(tmp_path / "stale.ipynb")


@pytest.mark.parametrize("path", execute.notebooks(), ids=lambda path: path.name[:2])
def test_notebooks_look_and_modules_compute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= 25
            assert not [line for line in lines if line.startswith(("def ", "class ", "!", "%"))]


def test_an_unknown_notebook_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        execute.main(["--out", str(tmp_path), "04_none.ipynb"])
    assert "no notebook 04_none.ipynb" in capsys.readouterr().err


# Measures.


def frame(rows: list[tuple[int, float, int, int, float]]) -> pd.DataFrame:
    """Return transactions of (day, hour, customer, terminal, amount), fraud where the amount is above 500."""
    data = pd.DataFrame(rows, columns=["day", "hour", "customer_id", "terminal_id", "tx_amount"])
    data["tx_date"] = START + pd.to_timedelta(data["day"], unit="D")
    data["tx_datetime"] = data["tx_date"] + pd.to_timedelta(data["hour"], unit="h")
    data["is_fraud"] = (data["tx_amount"] > 500).astype(int)
    return data


ROWS = [
    (0, 10.0, 1, 7, 10.0),
    (0, 20.0, 1, 8, 600.0),
    (1, 9.0, 2, 8, 30.0),
    (2, 12.0, 1, 8, 700.0),
    (2, 15.0, 1, 8, 50.0),
    (3, 0.0, 1, 7, 20.0),
]


def test_full_days_end_at_the_midnight_before_and_begin_where_history_does() -> None:
    totals = measures.by_day(frame(ROWS), "customer_id", "tx_amount")
    assert totals.loc[1].tolist() == [610.0, 0.0, 750.0, 20.0]
    before = measures.full_days_before(totals, 2)
    assert np.isnan(before.loc[1].to_numpy()[:2]).all()
    assert before.loc[1].tolist()[2:] == [610.0, 750.0]
    assert measures.full_days_before(totals, 1, delay_days=2).loc[1].tolist()[3:] == [610.0]


def test_a_mean_before_counts_full_days_only() -> None:
    means = measures.mean_amount_before(frame(ROWS), 2)
    assert np.isnan(means[:3]).all()
    assert means[3:].tolist() == [305.0, 305.0, 375.0]


def test_a_risk_waits_for_its_delay() -> None:
    assert measures.risk_before(frame(ROWS), 1, 0)[3:].tolist() == [0.0, 0.0, 0.0]
    assert measures.risk_before(frame(ROWS), 1, 1)[3:].tolist() == [1.0, 1.0, 0.0]
    assert measures.risk_before(frame([*ROWS, (3, 1.0, 1, 8, 1.0)]), 3, 0)[-1] == 0.5


TRANSACTIONS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 23).map(float),
        st.integers(1, 3),
        st.integers(7, 9),
        st.sampled_from([10.0, 20.0, 600.0]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(rows=TRANSACTIONS, delay=st.integers(0, 4), days=st.integers(1, 4))
def test_a_risk_is_that_of_a_plain_count_and_sees_no_later_label(
    rows: list[tuple[int, float, int, int, float]], delay: int, days: int
) -> None:
    data = frame(rows)
    risk = measures.risk_before(data, days, delay)
    first = data["day"].min()
    for place, row in enumerate(data.itertuples()):
        end = row.day - delay
        if end - days < first:
            assert np.isnan(risk[place])
            continue
        inside = data[(data["terminal_id"] == row.terminal_id) & data["day"].between(end - days, end - 1)]
        assert risk[place] == (inside["is_fraud"].mean() if len(inside) else 0.0)
    last = data["day"].max()
    changed = data.assign(is_fraud=data["is_fraud"].where(data["day"] < last - delay, 1 - data["is_fraud"]))
    assert np.array_equal(measures.risk_before(changed, days, delay), risk, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(rows=TRANSACTIONS)
def test_counts_of_a_day_are_those_of_plain_comparisons(
    rows: list[tuple[int, float, int, int, float]],
) -> None:
    data = frame(rows)
    counts = measures.day_counts(data)
    for place, row in enumerate(data.itertuples()):
        own = data.loc[data["customer_id"] == row.customer_id, "tx_datetime"]
        before, midnight, day = own < row.tx_datetime, row.tx_date, measures.DAY
        assert counts.iloc[place].to_dict() == {
            "exact": (before & (own >= row.tx_datetime - day)).sum(),
            "full_day": ((own >= midnight - day) & (own < midnight)).sum(),
            "full_day_and_today": (before & (own >= midnight - day)).sum(),
        }


def test_the_days_after_a_fraud_are_those_of_its_terminal() -> None:
    after = measures.days_after(frame(ROWS), [1, 2, 3])
    assert after.to_dict() == {1: 0.0, 2: 0.5, 3: pytest.approx(np.nan, nan_ok=True)}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=2, max_size=30).filter(
        lambda pairs: len({positive for _, positive in pairs}) == 2
    )
)
def test_an_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, int]]) -> None:
    ones = [score for score, positive in pairs if positive]
    zeros = [score for score, positive in pairs if not positive]
    wins = sum((one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros)
    assert measures.roc_auc(*zip(*pairs, strict=True)) == pytest.approx(wins / len(ones) / len(zeros))


def test_an_auc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="positives and negatives"):
        measures.roc_auc([1.0, 2.0], [0, 0])


def test_a_lift_does_not_depend_on_the_order_of_ties() -> None:
    scores, positive = [2, 1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert measures.top_lift(scores, positive, 0.1) == 5.0
    assert measures.top_lift(scores, positive, 0.2) == pytest.approx((1 + 0.25) / 2 / 0.2)
    assert measures.top_lift(scores[::-1], positive[::-1], 0.2) == measures.top_lift(scores, positive, 0.2)
    assert measures.top_lift([1] * 10, positive, 0.3) == pytest.approx(1.0)


def test_a_concentration_begins_at_nothing_and_ends_at_all() -> None:
    curve = measures.concentration(pd.Series([0, 1, 3]))
    assert curve["entities"].tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert curve["held"].tolist() == [0.0, 0.75, 1.0, 1.0]


# On the stack.


@pytest.mark.integration
def test_only_known_labels_are_looked_at() -> None:
    require_stack()
    data = data_loading.dataset()
    known = data_loading.labelled_transactions(data)
    assert (known["label_known_at"] <= data.as_of).all()
    daily = data_loading.daily_totals(data)
    assert daily["labelled"].sum() == len(known)
    assert daily["labelled"].iloc[-1] == 0 < daily["transactions"].iloc[-1]
    delay = pd.Timedelta(days=data_loading.label_delay_days())
    vectors = data_loading.fraud_vectors(data, days=1)
    assert len(vectors) > 0
    assert (vectors["event_timestamp"] + delay <= data.as_of).all()
    assert set(data_loading.feature_names()) <= set(vectors.columns)


@pytest.mark.integration
def test_a_sample_keeps_whole_histories() -> None:
    require_stack()
    data = data_loading.dataset(max_rows=20_000)
    every = data_loading.transactions(data_loading.dataset())
    for entity in ("customer_id", "terminal_id"):
        sample = data_loading.transactions(data, sampled_by=entity)  # type: ignore[arg-type]
        assert 0.3 * 20_000 < len(sample) < 3 * 20_000
        chosen = every[every[entity].isin(sample[entity].unique())]
        assert sorted(chosen["transaction_id"]) == sorted(sample["transaction_id"])


@pytest.mark.integration
def test_the_notebooks_run_and_every_figure_shows_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_stack()
    folder = execute.FOLDER
    before = sorted(folder.rglob("*.ipynb")), [path.read_bytes() for path in execute.notebooks()]
    assert execute.main(["--out", str(tmp_path)]) == 0, capsys.readouterr().err
    assert (sorted(folder.rglob("*.ipynb")), [path.read_bytes() for path in execute.notebooks()]) == before
    figures = {name: figures_of(tmp_path / name) for name in NAMES}
    assert [len(found) for found in figures.values()] == [5, 5, 6]
    for found in figures.values():
        for image in found:
            assert min(image.shape[:2]) > 200
            colours = np.unique((image[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)
            assert len(colours) > 50
            assert (image[..., :3] < 0.9).any(axis=2).mean() > 0.01


def figures_of(path: Path) -> list[np.ndarray]:
    """Return the figures of an executed notebook, which must hold neither an error nor a warning."""
    figures = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.execution_count
            for output in cell.outputs:
                assert output.output_type in ("display_data", "execute_result"), json.dumps(output)
                assert "matplotlib" not in output.data.get("text/plain", "")
                if png := output.data.get("image/png"):
                    figures.append(matplotlib.image.imread(io.BytesIO(base64.b64decode(png))))
    return figures


@pytest.mark.integration
def test_a_notebook_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEATURE_STORE_DB_PORT", "1")
    assert execute.main(["--out", str(tmp_path), NAMES[0]]) == 1
    assert f"{NAMES[0]}: DatabaseUnavailableError: no connection" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
