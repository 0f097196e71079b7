"""Batch prediction without a stack: cutting a day, refusing what must not be scored, the rows it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_ml_utils.batch import command
from common_ml_utils.batch.parquet import score_parquet
from common_ml_utils.batch.prediction import (
    BatchProject,
    DayPlan,
    cut,
    load_champion,
    plan_by_time,
    published_contract,
    run_identity,
    score_rows,
)
from common_ml_utils.batch.scores import BATCH_SCORES, json_texts
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import (
    BackendError,
    DataError,
    EmptyWindowError,
    ModelDevelopmentError,
    RegistryError,
    SchemaMismatchError,
)
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from common_ml_utils.mlflow_utils import ModelRegistry, RegisteredBundle
from common_ml_utils.release_bundle import ReleaseBundle
from common_ml_utils.settings import PlatformSettings

DAY = date(2024, 3, 1)
START = datetime(2024, 3, 1, tzinfo=UTC)
ENTITIES = EntityQuery(
    table=("raw", "parcels"), columns=("parcel_id",), order_by="parcel_id", timestamp="asked_at"
)


class Store(FeatureStoreClient):
    """Answers statements from a list of (part of the statement, rows); unknown ones are an error."""

    def __init__(self, answers: dict[str, list[dict[str, Any]]], contract: PublishedContract | None = None):
        self.answers = answers
        self.published = contract

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return next(rows for part, rows in self.answers.items() if part in statement)

    def contract(self, service_name: str) -> PublishedContract:
        assert self.published is not None
        assert service_name == self.published.service.name
        return self.published


@pytest.fixture
def champion(bundle: ReleaseBundle) -> RegisteredBundle:
    return RegisteredBundle("parcel-loss-model", 3, bundle)


@pytest.fixture
def project() -> BatchProject:
    return BatchProject(
        "parcel-loss-model", PlatformSettings, "parcel_id", "parcels", lambda *_: plan(), lambda frame: frame
    )


def plan(moments: int = 5, chunk_rows: int = 2) -> DayPlan:
    rows = [{"moment": START + timedelta(hours=i), "n": 1} for i in range(moments)]
    return plan_by_time(Store({"GROUP BY": rows}), ENTITIES, DAY, chunk_rows)


@given(st.lists(st.integers(1, 50)), st.integers(1, 60))
def test_groups_hold_all_rows_once_and_are_no_larger_than_they_must_be(counts: list[int], limit: int) -> None:
    groups = cut(counts, limit)
    assert sum(rows for _, rows in groups) == sum(counts)
    for (first, rows), end in zip(groups, [*(first for first, _ in groups[1:]), len(counts)], strict=False):
        assert rows == sum(counts[first:end])
        assert rows <= limit or end == first + 1


def test_the_chunks_of_a_day_cover_it_without_a_gap() -> None:
    chunks = plan().chunks
    assert [chunk.rows for chunk in chunks] == [2, 2, 1]
    assert (chunks[0].start, chunks[-1].end) == (START, START + timedelta(days=1))
    assert [chunk.end for chunk in chunks[:-1]] == [chunk.start for chunk in chunks[1:]]


def test_a_day_without_rows_is_not_loaded() -> None:
    with pytest.raises(EmptyWindowError, match=r"raw.parcels has no rows of 2024-03-01: load the day first"):
        plan(moments=0)


def hashed(content: int, built: bool = True) -> dict[str, list[dict[str, Any]]]:
    return {"EXISTS": [{"found": built}], "count(*) AS n": [{"n": 5, "x": content, "s": content}]}


def test_a_runs_identity_hangs_on_input_and_champion(champion: RegisteredBundle) -> None:
    contract = champion.bundle.contract
    same = [run_identity(Store(hashed(1)), contract, plan(), champion) for _ in range(2)]
    newer = RegisteredBundle("parcel-loss-model", 4, champion.bundle)
    assert same[0] == same[1]
    others = {
        run_identity(Store(hashed(2)), contract, plan(), champion),
        run_identity(Store(hashed(1)), contract, plan(chunk_rows=3), champion),
        run_identity(Store(hashed(1)), contract, plan(), newer),
    }
    assert len(others | set(same)) == 4


def test_a_day_whose_features_are_not_built_is_refused(champion: RegisteredBundle) -> None:
    with pytest.raises(EmptyWindowError, match="fct_parcel_profile has no row for 2024-03-01: build"):
        run_identity(Store(hashed(1, built=False)), champion.bundle.contract, plan(), champion)


def test_a_champion_of_other_features_is_refused_by_what_differs(champion: RegisteredBundle) -> None:
    document = json.loads(champion.bundle.contract.text)
    described = PublishedContract.parse(json.dumps({**document, "description": "the same values"}))
    assert published_contract(Store({}, described), champion) is described
    document["features"][1]["default"] = 1
    other = PublishedContract.parse(json.dumps(document))
    with pytest.raises(SchemaMismatchError, match="trained on another parcel_loss_v1: features differ"):
        published_contract(Store({}, other), champion)


def test_no_champion_is_one_clear_error() -> None:
    class Empty(ModelRegistry):
        def check_reachable(self) -> None:
            """It answers."""

        def version_of(self, model_name: str, alias: str) -> int | None:
            return None

    with pytest.raises(RegistryError, match="has no champion: run the gate first"):
        load_champion(Empty("http://127.0.0.1:1"), "parcel-loss-model")


def test_a_row_holds_all_that_is_needed_to_score_it_again(
    champion: RegisteredBundle, parcels: pd.DataFrame
) -> None:
    frame = parcels.assign(asked_at=1.5).head(30)
    frame.loc[3, "parcel_weight_kg"] = np.nan
    rows = [
        dict(zip(BATCH_SCORES.columns, row, strict=True))
        for row in score_rows(champion, DAY, frame, "parcel_id")
    ]
    assert [row["entity_key"] for row in rows] == [str(key) for key in frame["parcel_id"]]
    assert json.loads(rows[3]["features"])["parcel_weight_kg"] is None
    for row in rows:
        assert (row["model_version"], row["bundle_sha256"]) == (3, champion.bundle.sha256)
        assert (json.loads(row["entity_ids"]).keys(), row["request"]) == ({"parcel_id"}, '{"asked_at": 1.5}')
        assert champion.bundle.score_row(json.loads(row["features"])) == pytest.approx(
            row["score"], abs=1e-12
        )


@given(
    st.lists(st.tuples(st.floats(allow_infinity=False), st.integers(-(2**62), 2**62), st.text()), min_size=1)
)
def test_json_texts_say_what_json_says(rows: list[tuple[float, int, str]]) -> None:
    frame = pd.DataFrame(rows, columns=["a %s", "b", 'c "'])
    names = list(frame.columns)
    expected = [{names[0]: None if np.isnan(a) else a, names[1]: b, names[2]: c} for a, b, c in rows]
    assert [json.loads(text) for text in json_texts(frame, names)] == expected


def test_an_infinite_value_is_refused() -> None:
    with pytest.raises(ModelDevelopmentError, match="infinite"):
        json_texts(pd.DataFrame({"a": [np.inf]}), ["a"])


def test_files_are_scored_in_batches_like_a_frame(
    champion: RegisteredBundle, parcels: pd.DataFrame, project: BatchProject, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for part in range(2):
        parcels.iloc[part::2].to_parquet(source / f"{part}.parquet", index=False)
    (out / "old").mkdir(parents=True)
    assert score_parquet(project, champion, source, out, batch_rows=37) == len(parcels)
    scored = pq.read_table(out).to_pandas().sort_values("parcel_id", ignore_index=True)
    assert not (out / "old").exists()
    assert "parcel_stops" not in scored
    np.testing.assert_array_equal(scored["score"], champion.bundle.score_frame(parcels))
    assert set(scored["bundle_sha256"]) == {champion.bundle.sha256}


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda frame: frame.drop(columns="parcel_stops"), "features are missing: \\['parcel_stops'\\]"),
        (lambda frame: frame.assign(parcel_weight_kg="heavy"), "parcel_weight_kg: not numeric"),
        (lambda frame: frame.assign(parcel_weight_kg=None), "parcel_weight_kg: 400 nulls"),
        (lambda frame: frame.head(0), "has no rows"),
    ],
)
def test_bad_files_leave_the_old_scores(  # noqa: PLR0917 (two of them are what is tested)
    spoil: Any,
    error: str,
    champion: RegisteredBundle,
    parcels: pd.DataFrame,
    project: BatchProject,
    tmp_path: Path,
) -> None:
    spoil(parcels).to_parquet(tmp_path / "in.parquet", index=False)
    old = tmp_path / "out" / "old"
    old.mkdir(parents=True)
    with pytest.raises(DataError, match=error):
        score_parquet(project, champion, tmp_path / "in.parquet", tmp_path / "out")
    assert old.exists()


def test_a_file_that_is_no_parquet_or_not_there_is_one_clear_error(
    champion: RegisteredBundle, project: BatchProject, tmp_path: Path
) -> None:
    (tmp_path / "in.parquet").write_text("a,b\n")
    with pytest.raises(SchemaMismatchError, match="can't be read as Parquet"):
        score_parquet(project, champion, tmp_path / "in.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        score_parquet(project, champion, tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--date", "yesterday"],
        ["--date", "2024-03-01", "--input", "x", "--out", "y"],
        ["--input", "x"],
        ["--date", "2024-03-01", "--chunk-rows", "0"],
    ],
)
def test_wrong_arguments_are_a_usage_error(arguments: list[str], project: BatchProject) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.parse(project, arguments)


def test_spark_where_it_is_not_installed_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(
        BackendError, match="--engine spark needs a package that is not installed here: pyspark"
    ):
        command.spark()


def test_record_batches_keep_their_other_columns_types(
    champion: RegisteredBundle, parcels: pd.DataFrame, project: BatchProject, tmp_path: Path
) -> None:
    parcels.to_parquet(tmp_path / "in.parquet", index=False)
    score_parquet(project, champion, tmp_path / "in.parquet", tmp_path / "out")
    before, after = pq.read_schema(tmp_path / "in.parquet"), pq.read_table(tmp_path / "out").schema
    assert after.field("event_timestamp").type == before.field("event_timestamp").type
    assert [after.field(name).type for name in ("model_version", "score")] == [pa.int32(), pa.float64()]
