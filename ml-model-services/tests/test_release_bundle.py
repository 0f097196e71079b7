from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from service_testkit import churn_bundle, contract_document, fraud_bundle

from common_service_libs.errors import ArtifactError, BundleError
from common_service_libs.release_bundle import (
    Bundle,
    Encoder,
    PreprocessedFeature,
    Preprocessing,
    as_values,
    find_bundle,
    load_bundle,
)


def load(folder: Path, **changes: str) -> Bundle:
    names = {"model_name": "fraud-detection-model", "feature_service": "fraud_detection_v1"} | changes
    return load_bundle(folder, **names)


def test_contributions_add_up_to_the_score(bundle_folder: Path, tmp_path: Path) -> None:
    fraud = load(bundle_folder)
    churn_bundle(tmp_path / "churn")
    churn = load(tmp_path / "churn", model_name="churn-prediction-model", feature_service="customer_churn_v1")
    for bundle, values in (
        (fraud, [57.0] + [1.0] * 17),
        (churn, ["Month-to-month" if f.type == "string" else 1.0 for f in churn.contract.features]),
    ):
        parts = bundle.contributions(values)
        assert len(parts) == len(values) + 1
        assert 1 / (1 + math.exp(-sum(parts))) == pytest.approx(bundle.score(values), abs=1e-6)


def test_unknown_categories_and_nulls_become_nan() -> None:
    encoder = Encoder(
        Preprocessing(1, json_features([("c", ["a", "b"]), ("n", None)])),
    )
    assert encoder.encode(["b", 3.0]) == [1.0, 3.0]
    assert all(math.isnan(value) for value in encoder.encode(["z", None]))
    assert all(math.isnan(value) for value in encoder.encode([None, "text"]))


def json_features(rows: list[tuple[str, list[str] | None]]) -> tuple:
    return tuple(
        PreprocessedFeature(name, "numeric" if categories is None else "categorical", tuple(categories or ()))
        for name, categories in rows
    )


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.ubj").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.ubj").write_bytes(content)


def _rewrite_manifest(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip_a_byte, "model.ubj does not have the hash"),
        (
            lambda folder: (folder / "thresholds.json").write_text('{"review": 0, "decline": 1}'),
            "thresholds.json",
        ),
        (lambda folder: (folder / "golden.json").unlink(), "differ in"),
        (lambda folder: (folder / "extra.py").write_text("print()"), "differ in"),
        (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (_rewrite_manifest(format_version=2), "format version 2"),
        (_rewrite_manifest(model_name="other"), "a bundle of other"),
        (_rewrite_manifest(feature_service="fraud_detection_v2"), "on fraud_detection_v2"),
        (_rewrite_manifest(model_kind="pickle"), "unknown model kind"),
        (_rewrite_manifest(model_file="golden.json"), "not an XGBoost model"),
    ],
)
def test_an_altered_bundle_is_refused(
    bundle_folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    change(tmp_path / "bundle")
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "bundle")


def test_a_bundle_that_is_not_the_registered_one_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="not the one that was registered"):
        load_bundle(
            bundle_folder,
            model_name="fraud-detection-model",
            feature_service="fraud_detection_v1",
            expected_sha256="0" * 64,
        )


def _golden(bundle: Path, score_change: float) -> list[dict]:
    rows = json.loads((bundle / "golden.json").read_text())
    rows[-1]["score"] += score_change
    return rows


def test_a_golden_row_may_differ_by_a_millionth_and_no_more(bundle_folder: Path, tmp_path: Path) -> None:
    fraud_bundle(tmp_path / "near", tamper={"golden.json": _golden(bundle_folder, 9e-7)})
    load(tmp_path / "near")
    fraud_bundle(tmp_path / "far", tamper={"golden.json": _golden(bundle_folder, 1.1e-6)})
    with pytest.raises(BundleError, match="golden row 19"):
        load(tmp_path / "far")


def test_documents_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    reordered = contract_document("fraud_detection_v1")
    reordered["features"] = reordered["features"][::-1]
    cases = {
        "feature_service.json": reordered,
        "thresholds.json": {"review": 1.5},
        "golden.json": [],
    }
    for number, (name, document) in enumerate(cases.items()):
        fraud_bundle(tmp_path / str(number), tamper={name: document})
        with pytest.raises(ArtifactError):
            load(tmp_path / str(number))


def test_the_one_bundle_in_the_artifacts_is_found(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "artifacts" / "bundle")
    assert find_bundle(tmp_path) == tmp_path / "artifacts" / "bundle"
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    with pytest.raises(BundleError, match="2 bundles"):
        find_bundle(tmp_path)


def test_recorded_features_become_the_vector_again() -> None:
    assert as_values(["b", "a"], {"a": 1, "b": None, "c": "x"}) == [None, 1.0]
    with pytest.raises(BundleError, match="not recorded"):
        as_values(["d"], {"a": 1})
    with pytest.raises(BundleError, match="of type list"):
        as_values(["a"], {"a": [1]})
