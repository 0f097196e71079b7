"""What-if: the right rows are scored, bad values are named, and nothing is promised that the model can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeFeatureStore, Trained, make_subscribers
from src import what_if
from src.what_if import Change, checked_row

from common_ml_utils.errors import DataError
from common_ml_utils.release_bundle import ReleaseBundle

ROW: dict[str, Any] = {
    "subscriber_is_senior": 0,
    "subscriber_tenure_months": 3,
    "subscriber_contract": "Month-to-month",
    "subscriber_payment_method": None,
    "subscriber_monthly_charges_usd": 70.0,
}


@pytest.fixture
def bundle(trained: Trained) -> ReleaseBundle:
    return trained.registry.latest().bundle


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    for name, content in trained.registry.registered[0][2].items():
        (tmp_path / "bundle" / name).write_bytes(content)
    return tmp_path / "bundle"


def test_the_change_alone_is_changed_and_scored_as_the_bundle_scores(bundle: ReleaseBundle) -> None:
    found = what_if.what_if(bundle, checked_row(bundle, ROW), Change("two_year", 55.5))
    changed = {**ROW, "subscriber_contract": "Two year", "subscriber_monthly_charges_usd": 55.5}
    assert found.changed is not None
    assert found.changed.row == changed
    assert found.changed.score == bundle.score_row(changed)
    assert found.now.score == bundle.score_row(ROW)
    assert found.changed.score < found.now.score  # short monthly contracts leave most in the made-up data
    assert found.now.reasons[0]["code"] in {"CONTRACT_TERM", "SHORT_TENURE"}


def test_the_grid_holds_every_contract_and_goes_through_both_points(bundle: ReleaseBundle) -> None:
    found = what_if.what_if(bundle, checked_row(bundle, ROW), Change(monthly_charges=500.0))
    assert list(found.grid) == ["Month-to-month", "One year", "Two year"]
    assert found.charges[0] <= 70 <= found.charges[-1] == 500
    for contract, line in found.grid.items():
        row = {**ROW, "subscriber_contract": contract, "subscriber_monthly_charges_usd": found.charges[7]}
        assert line[7] == pytest.approx(bundle.score_row(row), abs=1e-12)
    assert "500 USD a month is outside of" in found.remarks[0]
    assert not what_if.what_if(bundle, checked_row(bundle, ROW), Change()).remarks


def test_nothing_asked_for_shows_the_subscriber_as_it_is(bundle: ReleaseBundle) -> None:
    assert what_if.what_if(bundle, checked_row(bundle, ROW), Change()).changed is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(contract="three_year"), "--contract 'three_year' is none of .*'Month-to-month'"),
        (Change(monthly_charges=-1), "--monthly-charges -1 is not an amount"),
        (Change(monthly_charges=float("nan")), "--monthly-charges nan is not an amount"),
        (Change(monthly_charges=float("inf")), "--monthly-charges inf is not an amount"),
    ],
)
def test_bad_changes_are_named(bundle: ReleaseBundle, change: Change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        what_if.what_if(bundle, checked_row(bundle, ROW), change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tenure": 3}, r"not features of customer_churn_v1: \['tenure'\]"),
        ({"subscriber_tenure_months": "long"}, "subscriber_tenure_months: not numeric"),
        ({"subscriber_tenure_months": -3}, "subscriber_tenure_months < 0"),
        ({"subscriber_is_senior": 2}, "subscriber_is_senior is neither 0 nor 1"),
        ({"subscriber_contract": 12}, "subscriber_contract: 12 is not a string"),
        ({"subscriber_contract": "Weekly"}, "subscriber_contract 'Weekly' is none of"),
        ({"subscriber_contract": None}, "what is to be changed is not known"),
        ({"subscriber_monthly_charges_usd": float("inf")}, "holds an infinite value"),
    ],
)
def test_bad_rows_are_named(bundle: ReleaseBundle, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_row(bundle, {**ROW, **values})


@pytest.mark.parametrize("text", ["{", "{}x", '{"a": NaN}', "/no/such/file.json"])
def test_a_row_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="--row"):
        what_if.read_row(text)


def test_the_command_needs_no_platform_for_a_bundle_and_a_row(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(folder), "--row", json.dumps(ROW), "--out", str(tmp_path / "out")]
    assert what_if.main([*arguments, "--contract", "Two-Year", "--monthly-charges", "60"]) == 0
    printed = capsys.readouterr().out
    assert "not a causal effect" in printed
    assert "changed: Two year, 60 USD a month: score" in printed
    report = json.loads((tmp_path / "out" / "what_if-row.json").read_text())
    assert report["difference"] == pytest.approx(report["changed"]["score"] - report["now"]["score"])
    assert "not a causal effect" in report["meaning"]
    page = (tmp_path / "out" / "what_if-row.html").read_text()
    assert "not a causal effect" in page
    assert "data:image/png" in page
    assert (tmp_path / "out" / "what_if-row.png").read_bytes().startswith(b"\x89PNG")


def test_a_bad_value_is_one_line_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(folder), "--row", json.dumps(ROW), "--out", str(tmp_path / "out")]
    assert what_if.main([*arguments, "--contract", "weekly"]) == 1
    assert capsys.readouterr().err.startswith("DataError: --contract 'weekly' is none of")
    assert not (tmp_path / "out").exists()


def test_a_subscribers_newest_profile_is_taken(bundle: ReleaseBundle) -> None:
    class Store(FakeFeatureStore):
        def query(self, statement: str, parameters: Any = ()) -> list[dict[str, Any]]:
            assert "ORDER BY event_timestamp DESC, created_timestamp DESC LIMIT 1" in statement
            rows = self.subscribers[self.subscribers["subscriber_id"] == parameters[0]]
            return rows.to_dict("records")

    store = Store(make_subscribers(20))
    row = checked_row(bundle, what_if.subscriber_row(store, bundle, 7))
    assert row["subscriber_tenure_months"] == store.subscribers["subscriber_tenure_months"][6]
    with pytest.raises(DataError, match="has no subscriber_id 21"):
        what_if.subscriber_row(store, bundle, 21)
