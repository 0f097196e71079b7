"""Staging and publishing a day on the stack's PostgreSQL: what readers see, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from common_ml_utils.batch.scores import BATCH_SCORES, DayRun, RunOfTable, stage_chunk
from common_ml_utils.errors import ModelDevelopmentError
from common_ml_utils.settings import DatabaseAddress, PlatformSettings

pytestmark = pytest.mark.integration
DAY = date(2001, 2, 3)


@pytest.fixture(scope="module")
def database() -> DatabaseAddress:
    try:
        return PlatformSettings().decisions_db
    except ValidationError as error:
        missing = sorted(str(problem["loc"][0]) for problem in error.errors())
        pytest.fail(f"the stack's environment is not loaded (source its stack.env); not set: {missing}")


@pytest.fixture
def model(database: DatabaseAddress) -> Iterator[str]:
    name = f"test-batch-{uuid.uuid4().hex[:8]}"
    yield name
    with psycopg.connect(**database.connection_arguments()) as connection:
        runs = connection.execute(
            "DELETE FROM scoring.batch_runs WHERE model_name = %s RETURNING run_id", [name]
        ).fetchall()
        connection.execute(
            "DELETE FROM scoring.batch_run_chunks WHERE run_id = ANY(%s)", [[r for (r,) in runs]]
        )
        for table in ("batch_scores", "batch_scores_staging"):
            connection.execute(f"DELETE FROM scoring.{table} WHERE model_name = %s", [name])


def rows(model: str, keys: range, score: float = 0.5) -> list[tuple[Any, ...]]:
    now = datetime.now(UTC)
    return [(model, DAY, str(key), 1, "f" * 64, "{}", "{}", '{"a": null}', score, now) for key in keys]


def stage(run: DayRun, chunk: int, some: list[tuple[Any, ...]], run_id: int | None = None) -> None:
    stage_chunk(RunOfTable(run.database, run.table, run_id or run.run_id), chunk, some, len(some))


def seen(database: DatabaseAddress, model: str, table: str = "batch_scores") -> dict[str, float]:
    with psycopg.connect(**database.connection_arguments()) as connection:
        found = connection.execute(
            f"SELECT entity_key, score FROM scoring.{table} WHERE model_name = %s", [model]
        ).fetchall()
    return {str(key): float(score) for key, score in found}


def score_day(database: DatabaseAddress, model: str, identity: str, score: float) -> int:
    with DayRun(database, BATCH_SCORES, model, DAY) as run:
        staged = run.begin(identity)
        for chunk in range(3):
            if chunk not in staged:
                stage(
                    run,
                    chunk,
                    rows(model, range(chunk * 10, chunk * 10 + 10), score),
                )
        return run.publish()


def test_readers_see_the_old_day_until_the_new_one_is_whole(database: DatabaseAddress, model: str) -> None:
    assert score_day(database, model, "first", 0.1) == 30
    with DayRun(database, BATCH_SCORES, model, DAY) as run:
        assert run.begin("second") == {}
        stage(run, 0, rows(model, range(5), 0.9))
        assert set(seen(database, model).values()) == {0.1}
        assert run.publish() == 5
    assert seen(database, model) == {str(key): 0.9 for key in range(5)}, "exactly the day, nothing of before"
    assert seen(database, model, "batch_scores_staging") == {}


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from test_batch_scores import *
database = PlatformSettings().decisions_db
run = DayRun(database, BATCH_SCORES, sys.argv[1], DAY).__enter__()
run.begin("same input")
stage(run, 0, rows(sys.argv[1], range(10), 0.25))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_continued_and_one_of_other_input_begins_anew(
    database: DatabaseAddress, model: str
) -> None:
    score_day(database, model, "first", 0.1)
    for identity, expected in (("same input", {0.25, 0.75}), ("other input", {0.75})):
        killed = subprocess.run([sys.executable, "-c", KILLED, model], env=os.environ, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert 0.25 not in seen(database, model).values() or identity == "other input"
        assert score_day(database, model, identity, 0.75) == 30
        assert set(seen(database, model).values()) == expected
    assert seen(database, model, "batch_scores_staging") == {}


def test_two_runs_of_a_day_are_not_possible_and_a_replaced_run_writes_nothing(
    database: DatabaseAddress, model: str
) -> None:
    with DayRun(database, BATCH_SCORES, model, DAY) as run:
        run.begin("old")
        old = run.run_id
        with pytest.raises(ModelDevelopmentError, match="another run is scoring 2001-02-03"):
            DayRun(database, BATCH_SCORES, model, DAY).__enter__()
    with DayRun(database, BATCH_SCORES, model, DAY) as run:
        run.begin("new")
        with pytest.raises(ModelDevelopmentError, match="was replaced by a newer one"):
            stage(run, 0, rows(model, range(3)), old)
    assert seen(database, model, "batch_scores_staging") == {}


def test_a_chunk_staged_twice_counts_once(database: DatabaseAddress, model: str) -> None:
    with DayRun(database, BATCH_SCORES, model, DAY) as run:
        run.begin("x")
        for _ in range(2):
            stage(run, 0, rows(model, range(4)))
        assert run.finished() == {0: 4}
        assert run.publish() == 4


def test_a_score_outside_of_0_and_1_stops_the_day_and_keeps_the_old(
    database: DatabaseAddress, model: str
) -> None:
    score_day(database, model, "first", 0.1)
    with pytest.raises(psycopg.errors.CheckViolation):
        score_day(database, model, "second", 1.5)
    assert set(seen(database, model).values()) == {0.1}


def test_a_database_that_does_not_answer_is_one_clear_error(database: DatabaseAddress) -> None:
    nowhere = database.model_copy(update={"port": 1})
    with pytest.raises(ModelDevelopmentError, match="the scores of 2001-02-03 were not written"):
        DayRun(nowhere, BATCH_SCORES, "test", DAY).__enter__()
