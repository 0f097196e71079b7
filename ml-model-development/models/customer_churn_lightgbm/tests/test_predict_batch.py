"""Batch prediction of subscribers: who is scored as of a day, and in which chunks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest
from conftest import FakeFeatureStore
from src import predict_batch
from src.config import ChurnTrainingSettings
from src.data_loader import KEY

from common_ml_utils.batch.command import predict_day
from common_ml_utils.errors import EmptyWindowError, RegistryError
from common_ml_utils.feature_store_client import FeatureStoreClient

DAY = date(2024, 2, 9)


class Subscribers(FakeFeatureStore):
    """Knows only which subscribers there are."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.statements: list[str] = []

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        self.statements.append(statement)
        return [{KEY: number} for number in self.ids]


def test_every_subscriber_is_in_one_chunk_and_asked_for_at_the_end_of_the_day() -> None:
    ids = [1, 2, 5, 8, 9, 30, 31]
    store = Subscribers(ids)
    plan = predict_batch.plan_day(store, None, DAY, 3)
    limits = [chunk.entities.keys for chunk in plan.chunks]
    assert limits == [(1, 5), (8, 30), (31, 31)]
    assert [chunk.rows for chunk in plan.chunks] == [3, 3, 1]
    assert plan.rows == sum(first <= key <= last for key in ids for first, last in limits)
    assert plan.end == datetime(2024, 2, 10, tzinfo=UTC)
    known = "\"created_timestamp\" <= timestamptz '2024-02-10T00:00:00+00:00'"
    assert known in store.statements[0], "nobody who became known later"
    for chunk in plan.chunks:
        statement = chunk.entities.statement(chunk.start, chunk.end)
        assert "timestamptz '2024-02-10T00:00:00+00:00' AS event_timestamp" in statement
        assert known in statement
        first, last = chunk.entities.keys
        assert statement.endswith(f"BETWEEN {first} AND {last}")


def test_a_day_before_any_snapshot_is_refused() -> None:
    with pytest.raises(EmptyWindowError, match="no subscriber known at the end of 2024-02-09"):
        predict_batch.plan_day(Subscribers([]), None, DAY, 3)


def test_an_unreachable_registry_is_one_clear_error(settings: ChurnTrainingSettings) -> None:
    with pytest.raises(RegistryError):
        predict_day(predict_batch.project(), settings, DAY)


def test_the_command_needs_a_day_or_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict_batch.main([])
    assert "either --date, or --input with --out" in capsys.readouterr().err


@pytest.mark.integration
def test_on_the_stack_every_subscriber_is_planned_once() -> None:
    client = FeatureStoreClient(ChurnTrainingSettings().feature_store_db)
    known = client.query("SELECT subscriber_id, snapshot_at FROM raw.subscribers ORDER BY 1")
    day = max(row["snapshot_at"] for row in known).date()
    plan = predict_batch.plan_day(client, None, day, 1000)
    planned = [
        row[KEY]
        for chunk in plan.chunks
        for row in client.query(f"{chunk.entities.statement(chunk.start, chunk.end)} ORDER BY 1")
    ]
    assert planned == [row["subscriber_id"] for row in known]
    assert plan.rows == len(planned) > len(plan.chunks) > 1
