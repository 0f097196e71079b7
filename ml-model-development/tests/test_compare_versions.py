"""What differs between versions is found, what does not is not, and decisions stand by their bundle."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from common_ml_utils.compare_versions import (
    Version,
    changes,
    compared_metrics,
    main,
    report_folder,
    versions_document,
    versions_page,
    with_decisions,
)
from common_ml_utils.errors import RegistryError
from common_ml_utils.mlflow_utils import VersionRecord

DAY = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)


def record(number: int, *, card: bool = True, **changed: Any) -> VersionRecord:
    """Return a version's record; `changed` replaces tags, parameters or card features."""
    training = {"start": "2024-04-01T00:00:00+00:00", "end": "2024-04-08T00:00:00+00:00", "rows": 900}
    estimate = {"value": 0.7 + number / 100, "lower": 0.6, "upper": 0.8}
    document = {
        "features": changed.get("features", ["amount", "night"]),
        "interval": training,
        "rows": {"training": 900, "holdout": 500},
        "intervals": dict.fromkeys(changed.get("metrics", ["average_precision", "auc_roc"]), estimate),
    }
    tags = {"bundle_sha256": f"{number}" * 64, "git_commit": "c" * 40, "data_version": "d" * 64}
    return VersionRecord(
        version=number,
        created_at=DAY,
        aliases=changed.get("aliases", ()),
        tags={**tags, **changed.get("tags", {})},
        run_id=f"run{number}",
        run_name=f"name-{number}",
        run_tags={"report": "fraud", "holdout_interval": "2024-04-15/2024-04-22"},
        parameters={"depth": "4", "threshold.review": "0.1"} | changed.get("parameters", {}),
        metrics={"average_precision": 0.7 + number / 100, "auc_roc": 0.9},
        document=json.dumps(document).encode() if card else None,
    )


def only(**changed: Any) -> Version:
    return with_decisions([record(2, **changed)], [])[0]


def test_equal_runs_have_no_changes() -> None:
    one, two = with_decisions([record(1), record(2)], [])
    assert changes(one, two) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"parameters": {"depth": "6"}}, [("parameter depth", "4", "6")]),
        ({"parameters": {"depth": "4.0"}}, []),
        ({"parameters": {"rate": "0.1"}}, [("parameter rate", "", "0.1")]),
        ({"parameters": {"threshold.review": "0.25"}}, [("threshold review", "0.1000", "0.2500")]),
        ({"tags": {"data_version": "e" * 64}}, [("training set", "d" * 12, "e" * 12)]),
        (
            {"tags": {"git_commit": "c" * 40 + "-dirty"}},
            [("code (git commit)", "c" * 12, "c" * 12 + "-dirty")],
        ),
        ({"features": ["amount", "risk"]}, [("features", "with night", "with risk")]),
        ({"features": ["night", "amount"]}, [("features", "in another order", "night, amount")]),
        ({"card": False, "features": ["x"]}, []),
    ],
)
def test_what_differs_is_named_with_both_values(
    changed: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    assert changes(with_decisions([record(1)], [])[0], only(**changed)) == expected


def entry(decision: str, version: int, sha256: str, reason: str = "why") -> dict[str, Any]:
    subject = {"version": version, "bundle_sha256": sha256}
    return {"decided_at": DAY, "decision": decision, "entry": {"challenger": subject, "reasons": [reason]}}


def test_a_decision_belongs_to_the_version_whose_bundle_it_names() -> None:
    ledger = [
        entry("refuse", 2, "2" * 64, "worse"),
        entry("promote", 2, "f" * 64, "of another registry"),
        entry("promote", 1, "1" * 64),
    ]
    one, two = with_decisions([record(2), record(1)], ledger)
    assert [(each.decision, each.reason) for each in two.decisions] == [("refuse", "worse")]
    assert [each.decision for each in one.decisions] == ["promote"]


def test_a_rollback_belongs_to_the_version_that_came_back() -> None:
    rollback = {
        "decided_at": DAY,
        "decision": "rollback",
        "entry": {"in_production": {"version": 1, "bundle_sha256": "1" * 64}, "reason": "complaints"},
    }
    one, two = with_decisions([record(1), record(2)], [rollback])
    assert [each.reason for each in one.decisions] == ["complaints"]
    assert two.decisions == []


def test_the_page_says_what_is_in_production_and_what_changed() -> None:
    records = [
        record(1, aliases=("champion",)),
        record(2, aliases=("staging",), parameters={"depth": "<6>"}),
    ]
    versions = with_decisions(records, [entry("promote", 1, "1" * 64)])
    page = versions_page("fraud-model", versions)
    text = page.markdown()
    assert "Version 1 is in production (champion): average precision 0.710 (0.600 to 0.800)" in text
    assert "promote on 2024-05-01 12:30" in text
    assert "From version 1 to version 2" in text
    assert "| parameter depth | 4 | &lt;6&gt; |" in text
    assert "2024-04-01 to 2024-04-07" in text
    document = page.html()
    assert "&lt;6&gt;" in document
    assert "http" not in document


def test_versions_without_cards_are_compared_by_their_runs() -> None:
    versions = with_decisions([record(1, card=False), record(2, card=False)], [])
    text = versions_page("m", versions).markdown()
    assert "No version has a model card" in text
    assert "| 2 |" in text
    assert "0.720" in text


def test_a_model_with_metrics_of_its_own_is_compared_by_them() -> None:
    versions = with_decisions([record(n, metrics=["ndcg_at_10", "coverage"]) for n in (1, 2)], [])
    assert compared_metrics(versions) == ["ndcg_at_10", "coverage"]
    assert "| ndcg at 10 | coverage |" in versions_page("m", versions).markdown()


def test_one_version_has_nothing_to_be_compared_with() -> None:
    assert "nothing to compare it with" in versions_page("m", [only()]).markdown()


def test_the_json_holds_each_version_with_what_changed() -> None:
    versions = with_decisions([record(1), record(2, parameters={"depth": "6"})], [])
    one, two = versions_document(versions)
    assert one["changes"] == []
    assert two["changes"] == [{"what": "parameter depth", "before": "4", "after": "6"}]
    assert two["intervals"]["auc_roc"] == {"value": 0.72, "lower": 0.6, "upper": 0.8}
    assert json.dumps(two, allow_nan=False)


@pytest.mark.parametrize("name", ["..", "/etc", "a/b", ""])
def test_reports_stay_in_their_folder(name: str) -> None:
    assert report_folder("model", name) == "model"
    with pytest.raises(RegistryError):
        report_folder(name, name)


def test_zero_versions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "m", "--last", "0"])
    assert "at least 1" in capsys.readouterr().err
