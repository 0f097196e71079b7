"""A bundle is refused unless it is, byte for byte, what was released."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from conftest import make_contents

from common_ml_utils import release_bundle
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import BundleError
from common_ml_utils.native_models import LightGBMModel
from common_ml_utils.release_bundle import (
    GOLDEN,
    MANIFEST,
    BundleContents,
    ReleaseBundle,
    golden_rows,
    read_reason_codes,
    verify_bundle,
    write_bundle,
)

FILES = [
    "model.ubj",
    "preprocessing.json",
    "feature_service.json",
    "thresholds.json",
    "reference.json",
    "golden.json",
    "reason_codes.json",
]


def seal(folder: Path) -> None:
    """Make the manifest agree with files that were changed, as someone would who forges a bundle."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_documented_files_and_no_others_are_written(bundle_folder: Path) -> None:
    assert {path.name for path in bundle_folder.iterdir()} == {MANIFEST, *FILES}
    manifest = json.loads((bundle_folder / MANIFEST).read_text())
    assert set(manifest["files"]) == set(FILES)
    assert manifest["training"]["start"] == "2024-01-01T00:00:00+00:00"


def test_identity_is_the_hash_of_the_manifest(contents: BundleContents, tmp_path: Path) -> None:
    sha256 = write_bundle(contents, tmp_path / "b")
    assert sha256 == hashlib.sha256((tmp_path / "b" / MANIFEST).read_bytes()).hexdigest()
    assert ReleaseBundle.load(tmp_path / "b", sha256).sha256 == sha256


def test_the_same_inputs_give_the_same_bytes(
    contract: PublishedContract, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    hashes = [write_bundle(make_contents(contract, parcels), tmp_path / name) for name in ("a", "b")]
    assert hashes[0] == hashes[1]
    assert write_bundle(make_contents(contract, parcels, depth=2), tmp_path / "c") != hashes[0]


def test_any_single_altered_byte_is_refused(bundle_folder: Path) -> None:
    """First, last and random bytes of every file, changed to any other value; cut and padded files too."""
    sha256 = hashlib.sha256((bundle_folder / MANIFEST).read_bytes()).hexdigest()
    rng = np.random.default_rng(0)
    for name in (MANIFEST, *FILES):
        path = bundle_folder / name
        content = path.read_bytes()
        positions = {0, len(content) - 1, *rng.integers(0, len(content), 25).tolist()}
        for position in positions:
            altered = bytearray(content)
            altered[position] ^= int(rng.integers(1, 256))
            path.write_bytes(bytes(altered))
            with pytest.raises(BundleError, match="the registry says" if name == MANIFEST else "was altered"):
                verify_bundle(bundle_folder, sha256)
        for shortened in (content[:-1], content + b"\n", b""):
            path.write_bytes(shortened)
            with pytest.raises(BundleError):
                verify_bundle(bundle_folder, sha256)
        path.write_bytes(content)
    assert verify_bundle(bundle_folder, sha256)[2] == sha256


def test_a_sealed_pickle_in_place_of_the_model_is_never_unpickled(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """The hashes fit, so only the format tells."""
    trace = tmp_path / "executed"
    pickled = f"cposix\nsystem\n(Vtouch {trace}\ntR.".encode()
    for content in (pickled, b"\x80\x04" + pickled, b"{L" + pickled, b"tree\nversion=v4\n"):
        (bundle_folder / "model.ubj").write_bytes(content)
        seal(bundle_folder)
        with pytest.raises(BundleError, match="no xgboost model"):
            ReleaseBundle.load(bundle_folder)
    assert not trace.exists()


def test_a_cut_model_whose_hash_fits_is_refused(bundle_folder: Path) -> None:
    content = (bundle_folder / "model.ubj").read_bytes()
    (bundle_folder / "model.ubj").write_bytes(content[: len(content) // 2])
    seal(bundle_folder)
    with pytest.raises(BundleError, match="xgboost model file can't be read"):
        ReleaseBundle.load(bundle_folder)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "oversized"])
def test_only_regular_files_of_a_sane_size_are_read(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = bundle_folder / GOLDEN
    content = path.read_bytes()
    if kind == "oversized":
        monkeypatch.setattr(release_bundle, "MAXIMUM_FILE_BYTES", len(content) - 1)
    else:
        path.unlink()
    if kind == "link":
        (bundle_folder.parent / GOLDEN).write_bytes(content)
        path.symlink_to(bundle_folder.parent / GOLDEN)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BundleError, match="at most" if kind == "oversized" else "not a regular file"):
        verify_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_kind": "lightgbm"}, "model file of lightgbm is model.txt"),
        ({"model_kind": "recommender"}, "model file of recommender is model.npz"),
        ({"model_kind": "sklearn"}, "model_kind"),
        ({"format_version": 2}, "format_version"),
        ({"model_file": "model.pkl"}, "model file of xgboost"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    bundle_folder: Path, change: dict[str, Any], message: str
) -> None:
    manifest = json.loads((bundle_folder / MANIFEST).read_text())
    (bundle_folder / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BundleError, match=message):
        verify_bundle(bundle_folder)


@pytest.mark.parametrize("name", [MANIFEST, "/etc/passwd", "a/b", "..", "extra.json"])
def test_a_manifest_that_lists_other_files_is_refused(bundle_folder: Path, name: str) -> None:
    manifest = json.loads((bundle_folder / MANIFEST).read_text())
    manifest["files"][name] = "0" * 64
    (bundle_folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"files must be exactly|no folder part"):
        verify_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("thresholds.json", '{"look": NaN, "stop": 0.6}', "NaN is not a number"),
        ("thresholds.json", '{"look": 1.2}', "less than or equal to 1"),
        ("reference.json", '{"score": {"edges": [Infinity]}}', "Infinity"),
        ("golden.json", "[]", "0 golden rows"),
        ("golden.json", "[" * 100_000, "can't be read"),
        ("reason_codes.json", '{"parcel_stops": {"code": "lower", "text": "x"}}', "code"),
        ("reason_codes.json", '{"parcel_stops": {"code": "STOPS", "text": "x"}}', "differ in"),
        ("preprocessing.json", '{"features": [], "code": "import os"}', "can't be read"),
        ("feature_service.json", "{}", "can't be read"),
    ],
)
def test_a_sealed_document_that_says_nonsense_is_refused(
    bundle_folder: Path, name: str, document: str, message: str
) -> None:
    (bundle_folder / name).write_text(document)
    seal(bundle_folder)
    with pytest.raises(BundleError, match=message):
        ReleaseBundle.load(bundle_folder)


def test_a_golden_row_of_another_vector_is_refused(bundle_folder: Path) -> None:
    rows = json.loads((bundle_folder / GOLDEN).read_text())
    del rows[3]["features"]["parcel_stops"]
    (bundle_folder / GOLDEN).write_text(json.dumps(rows))
    seal(bundle_folder)
    with pytest.raises(BundleError, match="golden row 3"):
        ReleaseBundle.load(bundle_folder)


def test_a_feature_without_reason_code_is_not_released(contents: BundleContents, tmp_path: Path) -> None:
    codes = dict(contents.reason_codes)
    two_texts = {**codes, "parcel_stops": codes["parcel_weight_kg"].model_copy(update={"text": "other"})}
    del codes["parcel_carrier"]
    for broken, message in ((codes, "parcel_carrier"), (two_texts, "two texts")):
        with pytest.raises(BundleError, match=message):
            write_bundle(replace(contents, reason_codes=broken), tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_a_projects_table_may_know_more_features_than_a_vector(tmp_path: Path) -> None:
    table = tmp_path / "reason_codes.json"
    table.write_text('{"a": {"code": "A_1", "text": "x"}, "b": {"code": "B", "text": "y"}}')
    assert read_reason_codes(table, ["b"])["b"].code == "B"
    assert set(read_reason_codes(table, ["b", "c"])) == {"b"}
    with pytest.raises(BundleError, match="reason codes can't be read"):
        read_reason_codes(tmp_path / "none.json", ["a"])


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused_before_the_file_is_parsed(bundle_folder: Path, name: str) -> None:
    path = bundle_folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name} was altered"):
        ReleaseBundle.load(bundle_folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_refused(bundle_folder: Path, name: str) -> None:
    (bundle_folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        ReleaseBundle.load(bundle_folder)


def test_a_file_the_manifest_does_not_list_is_refused(bundle_folder: Path) -> None:
    (bundle_folder / "model.pkl").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.pkl"):
        verify_bundle(bundle_folder)


def test_a_bundle_other_than_the_registered_one_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="the registry says"):
        ReleaseBundle.load(bundle_folder, "0" * 64)


def test_a_path_out_of_the_folder_is_refused(bundle_folder: Path) -> None:
    manifest = json.loads((bundle_folder / MANIFEST).read_text())
    manifest["model_file"] = "../model.ubj"
    manifest["files"]["../model.ubj"] = manifest["files"].pop("model.ubj")
    shutil.copy(bundle_folder / "model.ubj", bundle_folder.parent / "model.ubj")
    (bundle_folder / "model.ubj").unlink()
    (bundle_folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="folder part"):
        verify_bundle(bundle_folder)


def test_a_model_that_does_not_reproduce_its_golden_rows_is_refused(bundle_folder: Path) -> None:
    rows = json.loads((bundle_folder / GOLDEN).read_text())
    rows[-1]["score"] += 1e-4
    (bundle_folder / GOLDEN).write_text(json.dumps(rows))
    seal(bundle_folder)
    with pytest.raises(BundleError, match=f"golden row {len(rows) - 1}, one-row path"):
        ReleaseBundle.load(bundle_folder)


def test_a_vector_in_another_order_than_the_contract_is_refused(bundle_folder: Path) -> None:
    path = bundle_folder / "preprocessing.json"
    document = json.loads(path.read_text())
    document["features"].reverse()
    path.write_text(json.dumps(document))
    seal(bundle_folder)
    with pytest.raises(BundleError, match="different vectors"):
        ReleaseBundle.load(bundle_folder)


def test_a_file_that_is_no_model_is_refused(bundle_folder: Path) -> None:
    (bundle_folder / "model.ubj").write_bytes(b"\x80\x04 not a model")
    seal(bundle_folder)
    with pytest.raises(BundleError, match="no xgboost model: a pickle"):
        ReleaseBundle.load(bundle_folder)


def test_one_row_and_batch_scores_agree(bundle: ReleaseBundle, parcels: pd.DataFrame) -> None:
    batch = bundle.score_frame(parcels)
    single = [bundle.score_row(row) for row in parcels[bundle.preprocessing.names].to_dict("records")]
    np.testing.assert_allclose(batch, single, atol=1e-7)
    assert ((batch >= 0) & (batch <= 1)).all()
    assert len(bundle.score_frame(parcels.head(0))) == 0


def test_golden_rows_hold_every_null_and_an_unknown_category(bundle: ReleaseBundle) -> None:
    assert len(bundle.golden) >= 20
    for name in bundle.preprocessing.names:
        assert any(row.features[name] is None for row in bundle.golden)
    assert any(row.features["parcel_carrier"] == "a category never seen" for row in bundle.golden)
    assert any(all(value is None for value in row.features.values()) for row in bundle.golden)


def test_too_few_golden_rows_are_refused(contents: BundleContents, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="golden rows"):
        write_bundle(replace(contents, golden=contents.golden[:19]), tmp_path / "few")


def test_a_folder_in_use_is_not_overwritten(bundle_folder: Path, contents: BundleContents) -> None:
    with pytest.raises(BundleError, match="not empty"):
        write_bundle(contents, bundle_folder)


def test_lightgbm_bundles_score_categories_nulls_and_strangers_alike(
    contents: BundleContents, parcels: pd.DataFrame, tmp_path: Path
) -> None:
    preprocessing = contents.preprocessing
    matrix = preprocessing.transform(parcels)
    data = lightgbm.Dataset(
        matrix, parcels["lost"].to_numpy(), categorical_feature=preprocessing.categorical_indexes
    )
    parameters = {"objective": "binary", "verbosity": -1, "seed": 0, "num_threads": 1}
    model = LightGBMModel(lightgbm.train(parameters, data, 20))
    native = replace(contents, model=model, golden=golden_rows(parcels, preprocessing, model))
    write_bundle(native, tmp_path / "lgb")
    loaded = ReleaseBundle.load(tmp_path / "lgb")
    assert loaded.manifest.model_file == "model.txt"
    np.testing.assert_allclose(loaded.score_frame(parcels), model.scores(matrix), rtol=0, atol=1e-12)


def test_contributions_add_up_to_the_score(contents: BundleContents, parcels: pd.DataFrame) -> None:
    matrix = contents.preprocessing.transform(parcels)
    shap, scores = contents.model.contributions(matrix), contents.model.scores(matrix)
    base = np.log(scores / (1 - scores)) - shap.sum(axis=1)
    np.testing.assert_allclose(base, base[0], atol=1e-4)
