"""The reasons of a score, and a recorded verdict given again."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from service_testkit import NOON, REPOSITORY, contract_document, fraud_bundle
from stack_testkit import python_of
from test_decision_log import record

from common_service_libs.decision_record import decode, encode
from common_service_libs.decision_replay import (
    ReasonCode,
    agrees,
    read_reason_codes,
    reasons,
    replay_verdict,
    request_values,
)
from common_service_libs.errors import BundleError
from common_service_libs.label_engine.engine import LabelEngine
from common_service_libs.label_engine.policy import load_policy
from common_service_libs.release_bundle import load_bundle

POLICY = REPOSITORY / "ml-model-services/services/fraud_detection_api/policies/fraud_detection.yaml"
CODES = {name: ReasonCode(code, code.lower()) for name, code in zip("dbace", "YXXZW", strict=True)}

PEER = """
import json, sys
import numpy as np
from common_ml_utils.explanations import ReasonCodes
from common_ml_utils.release_bundle import ReasonCode
given = json.load(sys.stdin)
codes = {name: ReasonCode(code=code, text=text) for name, (code, text) in given["codes"].items()}
table = ReasonCodes(given["names"], codes)
rows = table.reasons(np.array(given["rows"]))
print(json.dumps([[[r.code, r.text, r.contribution] for r in row] for row in rows]))
"""


def found(*parts: float) -> list[tuple[str, float]]:
    return [(row["code"], row["contribution"]) for row in reasons(list("dbace"), parts, CODES)]


def test_contributions_are_summed_by_code_and_the_three_strongest_named() -> None:
    assert found(0.4, 0.1, 0.2, 0.9, 0.5) == [("Z", 0.9), ("W", 0.5), ("Y", 0.4)]
    assert found(0.4, 0.3, 0.3, 0.0, 0.0) == [("X", 0.6), ("Y", 0.4)]


def test_what_lowers_the_score_or_holds_less_than_a_twentieth_is_no_reason() -> None:
    assert found(-1.0, -0.5, 0.2, -2.0, 0.0) == []
    assert found(1.0, 0.0, 0.0, 0.04, 0.0) == [("Y", 1.0)]
    assert found(0.95, 0.0, 0.0, 0.05, 0.0) == [("Y", 0.95), ("Z", 0.05)]


def test_ties_go_by_code() -> None:
    assert [code for code, _ in found(1.0, 0.5, 0.5, 1.0, 1.0)] == ["W", "X", "Y"]


@pytest.fixture(scope="module")
def fraud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("coded") / "bundle"
    names = [feature["name"] for feature in contract_document("fraud_detection_v1")["features"]]
    codes = {name: {"code": name.upper()[:8], "text": f"{name} is high"} for name in names}
    fraud_bundle(folder, tamper={"reason_codes.json": codes})
    return folder, load_bundle(
        folder, model_name="fraud-detection-model", feature_service="fraud_detection_v1"
    )


def test_the_codes_are_those_of_the_bundle_and_checked_by_its_manifest(fraud: Any, tmp_path: Path) -> None:
    folder, bundle = fraud
    codes = read_reason_codes(folder, bundle)
    assert codes is not None
    assert codes["tx_amount"] == ReasonCode("TX_AMOUN", "tx_amount is high")
    altered = tmp_path / "bundle"
    altered.mkdir()
    (altered / "reason_codes.json").write_text("{}")
    with pytest.raises(BundleError, match="hash"):
        read_reason_codes(altered, bundle)
    without = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files={}))
    assert read_reason_codes(folder, without) is None


def recorded(bundle: Any, amount: float, **changes: Any) -> Any:
    names = bundle.feature_names
    values: dict[str, Any] = {
        "entity_ids": {"customer_id": 1, "terminal_id": 2},
        "request": {"tx_amount": amount, "tx_datetime": "2026-01-31T12:00:00.000000Z"},
        "features": dict.fromkeys(names, 2.0) | {"tx_amount": amount},
        "feature_status": {view.name: {"status": "present", "event_timestamp": None}
                           for view in bundle.contract.views},
        "score": 0.01,
    }  # fmt: skip
    return record("1", **(values | changes))


def test_a_recorded_verdict_is_given_again_and_another_one_noticed(fraud: Any) -> None:
    _, bundle = fraud
    engine = LabelEngine(load_policy(POLICY), bundle.thresholds)
    for amount, score in ((20.0, 0.01), (400.0, 0.01), (20.0, 0.9)):
        original = recorded(bundle, amount, score=score)
        verdict = replay_verdict(original, bundle, engine)
        stored = decode(encode(msgspec.structs.replace(
            original, decision=verdict.decision, reason_codes=verdict.reason_codes,
            rules_fired=verdict.rules_fired,
        )))  # fmt: skip
        assert agrees(stored, replay_verdict(stored, bundle, engine))
        other = "approve" if verdict.decision != "approve" else "decline"
        assert not agrees(msgspec.structs.replace(stored, decision=other), verdict)
    assert replay_verdict(recorded(bundle, 400.0), bundle, engine).decision == "review"


def test_the_time_of_a_request_is_read_back_from_its_record(fraud: Any) -> None:
    _, bundle = fraud
    assert request_values(recorded(bundle, 7.5), bundle) == {"tx_amount": 7.5, "tx_timestamp": NOON}


@pytest.mark.integration
def test_the_reasons_are_those_that_the_models_own_root_gives() -> None:
    rng = np.random.default_rng(7)
    names = [f"f{i}" for i in range(18)]
    codes = {name: [f"C{rng.integers(0, 9)}", f"text of {name}"] for name in names}
    rows = np.where(rng.random((400, 18)) < 0.3, 0.0, rng.normal(0, 1, (400, 18)))
    rows[:100] = np.round(rows[:100], 0)  # ties
    given = {"names": names, "codes": codes, "rows": rows.tolist()}
    done = subprocess.run(
        [python_of("ml-model-development"), "-c", PEER], input=json.dumps(given), text=True,
        cwd=REPOSITORY / "ml-model-development", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    table = {name: ReasonCode(*code) for name, code in codes.items()}
    own = [
        [[r["code"], r["text"], r["contribution"]] for r in reasons(names, row, table)]
        for row in rows.tolist()
    ]
    assert own == json.loads(done.stdout)
