"""The release bundle is trusted only as far as its hashes."""

from __future__ import annotations

import hashlib
import json

import pytest

from advanced_monitoring_scripts.champion_bundle import (
    calendar_features,
    find_bundle,
    parse_bundle,
    parse_reference,
    verify_bundle,
)
from advanced_monitoring_scripts.distribution_drift import CategoricalReference
from advanced_monitoring_scripts.errors import BundleError
from tests.bundles import CONTRACT, MODEL, read_bundle, reference, write_bundle


def test_a_bundle_is_read_as_it_was_written(tmp_path):
    bundle = read_bundle(tmp_path / "bundle", auc_roc=0.87, average_precision=0.7, brier=0.01)
    assert bundle.feature_names == ["tx_amount", "tx_is_weekend", "terminal_fraud_risk_7d"]
    assert bundle.calendar_features == {"tx_is_weekend"}
    assert bundle.group_key == "customer_id"
    assert bundle.holdout_metrics == {"auc_roc": 0.87, "average_precision": 0.7}
    assert bundle.references["score"].counts.sum() == 50_000


@pytest.mark.parametrize("name", ["model.ubj", "reference.json", "feature_service.json", "manifest.json"])
def test_an_altered_file_is_refused_before_it_is_parsed(tmp_path, name):
    sha256 = write_bundle(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" not even JSON {")
    with pytest.raises(BundleError, match=f"{name} was altered"):
        verify_bundle(tmp_path, sha256)


def test_a_bundle_with_a_file_too_many_or_too_few_is_refused(tmp_path):
    sha256 = write_bundle(tmp_path)
    (tmp_path / "extra.pkl").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.pkl"):
        verify_bundle(tmp_path, sha256)
    (tmp_path / "extra.pkl").unlink()
    (tmp_path / "golden.json").unlink()
    with pytest.raises(BundleError, match=r"golden\.json"):
        verify_bundle(tmp_path, sha256)


def test_a_manifest_that_points_outside_its_folder_is_refused(tmp_path):
    write_bundle(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    (tmp_path / "secret").write_bytes(b"s")
    manifest["files"]["../secret"] = hashlib.sha256(b"s").hexdigest()
    content = json.dumps(manifest).encode()
    (tmp_path / "bundle" / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"\.\./secret"):
        verify_bundle(tmp_path / "bundle", hashlib.sha256(content).hexdigest())


def test_a_version_without_the_registered_hash_is_refused(tmp_path):
    write_bundle(tmp_path)
    with pytest.raises(BundleError, match="bundle_sha256"):
        verify_bundle(tmp_path, None)


def test_a_bundle_of_another_model_or_format_is_refused(tmp_path):
    contents, sha256 = verify_bundle(tmp_path, write_bundle(tmp_path))
    with pytest.raises(BundleError, match="not of churn-prediction-model"):
        parse_bundle(contents, sha256, "churn-prediction-model", 1, {})
    later = json.loads(contents["manifest.json"]) | {"format_version": 2}
    with pytest.raises(BundleError, match="format version 2"):
        parse_bundle(contents | {"manifest.json": json.dumps(later).encode()}, sha256, MODEL, 1, {})


def test_reference_and_contract_must_name_the_same_features(tmp_path):
    statistics = reference()
    del statistics["tx_amount"]
    contents, sha256 = verify_bundle(tmp_path, write_bundle(tmp_path, reference=statistics))
    with pytest.raises(BundleError, match="different features"):
        parse_bundle(contents, sha256, MODEL, 1, {})


@pytest.mark.parametrize(
    "statistics",
    [
        {"edges": [1.0, 1.0], "counts": [1, 2, 3], "null_count": 0},
        {"edges": [1.0], "counts": [1, 2, 3], "null_count": 0},
        {"edges": [1.0], "counts": [1, -2], "null_count": 0},
        {"edges": [1.0], "counts": [1, 2]},
        {"edges": [1.0], "counts": [1, "many"], "null_count": 0},
        {"categories": ["a"], "counts": [1, 2], "null_count": 0},
        [],
    ],
)
def test_statistics_that_contradict_themselves_are_refused(statistics):
    with pytest.raises(BundleError, match="x"):
        parse_reference("x", statistics)


def test_statistics_of_categories_are_read():
    reference = parse_reference("plan", {"categories": ["a", "b"], "counts": [3, 4], "null_count": 1})
    assert isinstance(reference, CategoricalReference)
    assert (reference.categories, reference.counts.tolist(), reference.null_count) == (("a", "b"), [3, 4], 1)


def test_a_feature_follows_the_calendar_only_if_it_reads_nothing_but_the_clock():
    contract = CONTRACT | {
        "on_demand": {
            "features": [
                {"name": "night", "expression": "hour(tx_timestamp) <= 6"},
                {"name": "total", "expression": "if_same_day(spent, spent_day, tx_timestamp) + tx_amount"},
                {"name": "constant", "expression": "1 + 1"},
            ]
        }
    }
    assert calendar_features(contract) == {"night"}
    assert calendar_features({"features": []}) == frozenset()


def test_exactly_one_bundle_is_found(tmp_path):
    with pytest.raises(BundleError, match="0 bundles"):
        find_bundle(tmp_path)
    write_bundle(tmp_path / "artifacts" / "bundle")
    assert find_bundle(tmp_path) == tmp_path / "artifacts" / "bundle"
    write_bundle(tmp_path / "other" / "bundle")
    with pytest.raises(BundleError, match="2 bundles"):
        find_bundle(tmp_path)
