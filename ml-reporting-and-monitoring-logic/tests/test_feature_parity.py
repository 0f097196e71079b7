"""Parity: equal bits are equal, everything else is a mismatch with its place named."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advanced_monitoring_scripts import measure_feature_parity as job
from advanced_monitoring_scripts.errors import MonitoringError
from advanced_monitoring_scripts.feature_parity import compare
from advanced_monitoring_scripts.served_vectors import (
    SERVED_MODELS,
    ServedVector,
    ServedVectors,
    entity_rows,
)

AT = datetime(2026, 11, 20, 8, 15, 0, 250_000, tzinfo=UTC)
FRAUD = SERVED_MODELS["fraud-detection-model"]


def served(request_id: str, **features):
    request = {"tx_amount": 12.5, "tx_datetime": "2026-11-20T08:15:00.250000Z"}
    return ServedVector(request_id, AT, {"customer_id": 7, "terminal_id": 9}, request, features)


VECTORS = [served("a", count=3.0, mean=0.1 + 0.2, kind=None), served("b", count=4.0, mean=None, kind="x")]
OFFLINE = pd.DataFrame(
    {"request_id": ["b", "a"], "count": [4, 3], "mean": [math.nan, 0.1 + 0.2], "kind": ["x", None]}
)


def test_equal_values_in_any_order_are_parity_and_null_equals_null():
    parity = compare(VECTORS, OFFLINE)
    assert parity.holds
    assert (parity.vectors, parity.values, parity.mismatches) == (2, 6, 0)


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("mean", 1, float(np.nextafter(0.1 + 0.2, 1))),
        ("mean", 0, 0.0),
        ("count", 0, 5),
        ("kind", 1, ""),
        ("mean", 1, math.nan),
    ],
    ids=["last bit", "null against zero", "count", "null against empty text", "value against null"],
)
def test_any_difference_is_a_mismatch_and_is_named(column, row, value):
    other = OFFLINE.copy()
    other.loc[row, column] = value
    parity = compare(VECTORS, other)
    assert not parity.holds
    assert parity.mismatches == 1
    assert parity.by_feature[column] == 1
    assert parity.examples[0].feature == column
    assert parity.examples[0].request_id == other.loc[row, "request_id"]


def test_a_vector_that_was_not_recomputed_is_no_parity():
    parity = compare(VECTORS, OFFLINE[:1])
    assert parity.not_recomputed == 1
    assert not parity.holds


def test_a_missing_column_or_a_double_row_is_refused():
    with pytest.raises(MonitoringError, match="no column kind"):
        compare(VECTORS, OFFLINE.drop(columns="kind"))
    with pytest.raises(MonitoringError, match="twice"):
        compare(VECTORS, pd.concat([OFFLINE, OFFLINE]))


def test_entity_rows_hold_what_the_request_was_asked_with():
    rows = entity_rows([served("a", count=1.0)], FRAUD).to_pylist()
    assert rows == [
        {
            "request_id": "a",
            "customer_id": 7,
            "terminal_id": 9,
            "event_timestamp": AT,
            "tx_amount": 12.5,
            "tx_timestamp": AT.timestamp(),
        }
    ]


def test_a_request_without_its_value_is_refused_by_name():
    bare = ServedVector("a", AT, {"customer_id": 7}, {"tx_datetime": "2026-11-20T08:15:00Z"}, {})
    with pytest.raises(MonitoringError, match="decision a has no tx_amount"):
        entity_rows([bare], FRAUD)


@pytest.mark.parametrize(("shift", "code"), [(0, 0), (1, 1)], ids=["equal", "skew"])
def test_the_command_writes_report_and_page_and_fails_on_skew(tmp_path, monkeypatch, shift, code):
    for name in ("HOST", "NAME", "USER", "PASSWORD"):
        monkeypatch.setenv(f"DECISIONS_DB_{name}", "x")
    monkeypatch.setenv("DECISIONS_DB_PORT", "1")
    monkeypatch.setenv("REPORTS_DIR", str(tmp_path))
    monkeypatch.setattr(job, "read_served_vectors", lambda *_: ServedVectors(VECTORS, 3))
    path = tmp_path / "vectors.parquet"
    pq.write_table(pa.Table.from_pandas(OFFLINE.assign(count=OFFLINE["count"] + shift)), path)
    words = ["compare", "--service", "s", "--model", "fraud-detection-model", "--vectors", str(path)]
    assert job.main(words) == code
    report = json.loads((tmp_path / "parity.json").read_text())
    assert (report["vectors"], report["values"], report["mismatches"]) == (2, 6, 2 * shift)
    assert report["degraded_left_out"] == 3
    assert "Feature parity of s" in (tmp_path / "parity.html").read_text()
    assert json.loads((tmp_path / "feature_parity" / "fraud_detection_v1.json").read_text()) == report
    assert job.main([*words, "--out", str(tmp_path / "rehearsal" / "parity.json")]) == code
    rehearsal = json.loads((tmp_path / "rehearsal" / "parity.json").read_text())
    assert rehearsal["feature_service"] == "fraud_detection_v1"
    kept = json.loads((tmp_path / "feature_parity" / "fraud_detection_v1.json").read_text())
    assert kept == report
