"""Batch prediction: a day's rows through the champion, in bounded chunks, all published or none.

A project says which entities a day has (`BatchProject`); everything else is here. The champion is loaded once
and its feature service must be the published one. Each chunk is fetched as of its rows' own times, scored and
staged; the day is published when every chunk is. What is scored from what is the run's identity: a killed run
goes on after its last staged chunk as long as champion and input are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Protocol

import numpy as np
import pandas as pd
from psycopg import sql
from tqdm import tqdm

from common_ml_utils.batch.scores import (
    BATCH_SCORES,
    DayRun,
    DayTable,
    RunOfTable,
    json_texts,
    stage_chunk,
    written,
)
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.errors import EmptyWindowError, ModelDevelopmentError, RegistryError, SchemaMismatchError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from common_ml_utils.mlflow_utils import CHAMPION, ModelRegistry, RegisteredBundle
from common_ml_utils.settings import PlatformSettings

CHUNK_ROWS = 20_000
MOMENT = timedelta(microseconds=1)
# What of a published contract decides values; the rest (owner, descriptions) may change under a champion.
CONTRACT_PARTS = ("name", "version", "entities", "request", "views", "on_demand", "features")


@dataclass(frozen=True)
class Chunk:
    """A part of a day: a query of entities, the times [start, end) to ask for, and its number of rows."""

    number: int
    entities: EntityQuery
    start: datetime
    end: datetime
    rows: int


@dataclass(frozen=True)
class DayPlan:
    """A day cut into chunks; `all_rows` is the query of the whole day over [start, end)."""

    all_rows: EntityQuery
    start: datetime
    end: datetime
    chunks: tuple[Chunk, ...]

    @property
    def rows(self) -> int:
        """Rows of the day."""
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True)
class BatchProject:
    """What batch prediction must know of a model project.

    `plan(client, contract, day, chunk_rows)` cuts the day and raises EmptyWindowError when it is not loaded;
    `check` refuses feature values that can't be; `key` identifies a row. A project whose model does not score
    vectors says itself in `score` what a chunk's rows are. All are functions of modules, so that a worker of
    Spark finds them.
    """

    model_name: str
    settings: type[PlatformSettings]
    key: str
    rows_named: str
    plan: Callable[[FeatureStoreClient, PublishedContract, date, int], DayPlan]
    check: Callable[[pd.DataFrame], pd.DataFrame]
    table: DayTable = BATCH_SCORES
    score: Callable[[FeatureStoreClient, RegisteredBundle, ChunkJob, Chunk], list[tuple[Any, ...]]] | None = (
        None
    )


class ScoringEngine(Protocol):
    """Runs the chunks of a day; the two are this process and Spark."""

    def run(self, job: ChunkJob, chunks: Sequence[Chunk], done: Callable[[int], None]) -> None:
        """Stage every chunk and call `done` with the rows of each."""


@dataclass(frozen=True)
class ChunkJob:
    """What a process needs to score chunks of a day on its own; it holds no secret."""

    project: BatchProject
    model_version: int
    bundle_sha256: str
    day: date
    run_id: int


@dataclass
class LocalEngine:
    """Scores chunk after chunk in this process, with what is loaded already."""

    settings: PlatformSettings
    client: FeatureStoreClient
    champion: RegisteredBundle

    def run(self, job: ChunkJob, chunks: Sequence[Chunk], done: Callable[[int], None]) -> None:
        """Stage every chunk."""
        for chunk in chunks:
            done(score_chunk(self.settings, self.client, self.champion, job, chunk))


@dataclass(frozen=True)
class BatchOutcome:
    """What a run did: rows and entities of the day, and how many an earlier, killed run had staged."""

    rows: int
    entities: int
    continued: int
    model_version: int
    bundle_sha256: str


@dataclass
class BatchPrediction:
    """One run of a project's batch prediction; `engine` scores the chunks, by default this process."""

    project: BatchProject
    settings: PlatformSettings
    registry: ModelRegistry
    client: FeatureStoreClient
    chunk_rows: int = CHUNK_ROWS
    engine: ScoringEngine | None = None

    def predict(self, day: date) -> BatchOutcome:
        """Score a day and publish it, replacing what was there; a day is published whole or not at all."""
        champion = load_champion(self.registry, self.project.model_name)
        contract = published_contract(self.client, champion)
        project = self.project
        with DayRun(self.settings.decisions_db, project.table, project.model_name, day) as run:
            plan = self.project.plan(self.client, contract, day, self.chunk_rows)
            identity = run_identity(self.client, contract, plan, champion)
            staged = run.begin(identity)
            job = ChunkJob(project, champion.version, champion.bundle.sha256, day, run.run_id)
            engine = self.engine or LocalEngine(self.settings, self.client, champion)
            pending = [chunk for chunk in plan.chunks if chunk.number not in staged]
            continued = sum(staged.values())
            with progress(plan.rows, continued, f"{project.model_name} {day}", project.rows_named) as done:
                engine.run(job, pending, done)
            counted = sum(run.finished().values())
            if counted != plan.rows or run_identity(self.client, contract, plan, champion) != identity:
                raise ModelDevelopmentError(
                    f"the input of {day} changed while it was scored ({counted} {project.rows_named} scored,"
                    f" {plan.rows} planned): nothing was published, run again"
                )
            return BatchOutcome(run.publish(), plan.rows, continued, champion.version, champion.bundle.sha256)


def load_champion(registry: ModelRegistry, model_name: str) -> RegisteredBundle:
    """Return the champion, verified; raises RegistryError when there is none."""
    registry.check_reachable()
    champion = registry.load(model_name, CHAMPION)
    if champion is None:
        raise RegistryError(f"{model_name} has no champion: run the gate first")
    return champion


def published_contract(client: FeatureStoreClient, champion: RegisteredBundle) -> PublishedContract:
    """Return the published contract of the champion's feature service, or refuse when it means other values.

    Raises SchemaMismatchError naming what differs: a champion gets the features that it learned, or none.
    """
    learned = champion.bundle.contract
    published = client.contract(learned.service.name)
    before, now = json.loads(learned.text), json.loads(published.text)
    different = [part for part in CONTRACT_PARTS if before.get(part) != now.get(part)]
    if different:
        raise SchemaMismatchError(
            f"{champion.model_name} version {champion.version} was trained on another {learned.service.name}:"
            f" {', '.join(different)} differ from what is published now; train a challenger on it"
        )
    return published


def score_chunk(
    settings: PlatformSettings,
    client: FeatureStoreClient,
    champion: RegisteredBundle,
    job: ChunkJob,
    chunk: Chunk,
) -> int:
    """Score and stage one chunk, and return how many entities it has."""
    project = job.project
    rows = (project.score or score_vectors)(client, champion, job, chunk)
    with written(job.day):
        run = RunOfTable(settings.decisions_db, project.table, job.run_id)
        stage_chunk(run, chunk.number, rows, chunk.rows if project.score else len(rows))
    return chunk.rows


def score_vectors(
    client: FeatureStoreClient, champion: RegisteredBundle, job: ChunkJob, chunk: Chunk
) -> list[tuple[Any, ...]]:
    """Fetch, check and score a chunk's vectors, each as of its own time."""
    fetched = client.features_as_of(champion.bundle.contract, chunk.entities, [(chunk.start, chunk.end)])
    return score_rows(champion, job.day, job.project.check(fetched), job.project.key)


def score_rows(champion: RegisteredBundle, day: date, frame: pd.DataFrame, key: str) -> list[tuple[Any, ...]]:
    """Return the rows of `scoring.batch_scores` for a frame of vectors, in the order of its columns."""
    service = champion.bundle.contract.service
    scores = champion.bundle.score_frame(frame)
    scored_at = datetime.now(UTC)
    ids, requests, features = (
        json_texts(frame, names)
        for names in (service.join_keys, [value.name for value in service.request], service.feature_names)
    )
    same = (champion.model_name, day)
    versions = (champion.version, champion.bundle.sha256)
    return [
        (*same, str(entity), *versions, entity_ids, request, vector, score, scored_at)
        for entity, entity_ids, request, vector, score in zip(
            frame[key].tolist(), ids, requests, features, np.asarray(scores, np.float64).tolist(), strict=True
        )
    ]


def run_identity(
    client: FeatureStoreClient, contract: PublishedContract, plan: DayPlan, champion: RegisteredBundle
) -> str:
    """Return a hash of all that decides a day's scores: champion, entities, feature rows and the cut.

    Raises EmptyWindowError when a view has no row that could count at the end of the day.
    """
    parts: dict[str, Any] = {
        "model_version": champion.version,
        "bundle": champion.bundle.sha256,
        "chunks": [[chunk.number, chunk.start.isoformat(), chunk.end.isoformat()] for chunk in plan.chunks],
        "entities": _content(client, sql.SQL(plan.all_rows.statement(plan.start, plan.end))),
    }
    for view in contract.service.views:
        ttl = timedelta(seconds=view.ttl_seconds)
        table = sql.Identifier("features", f"fct_{view.name}")
        rows = "SELECT * FROM {t} WHERE event_timestamp > {a} AND event_timestamp <= {b}"
        live = sql.SQL("SELECT EXISTS ({rows} AND event_timestamp > {c} AND event_timestamp < {d}) AS found")
        window = sql.SQL(rows).format(t=table, a=_time(plan.start - ttl), b=_time(plan.end))
        [row] = client.query(
            live.format(rows=window, c=_time(plan.end - ttl), d=_time(plan.end + MOMENT)).as_string(None)
        )
        if not row["found"]:
            raise EmptyWindowError(
                f"features.fct_{view.name} has no row for {plan.end - MOMENT:%Y-%m-%d}: build the feature"
                " tables of the day first"
            )
        parts[view.name] = _content(client, window)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(client: FeatureStoreClient, statement: sql.Composable) -> list[str]:
    """Return count and two order-free sums over the hashes of the statement's rows."""
    query = sql.SQL(
        "SELECT count(*) AS n, bit_xor(h) AS x, sum(h) AS s"
        " FROM (SELECT hashtextextended(r::text, 0) AS h FROM ({}) AS r) AS hashed"
    ).format(statement)
    [row] = client.query(query.as_string(None))
    return [str(row["n"]), str(row["x"]), str(row["s"])]


def _time(moment: datetime) -> sql.Composable:
    return sql.SQL("timestamptz {}").format(sql.Literal(moment.isoformat()))


def day_bounds(day: date) -> tuple[datetime, datetime]:
    """Return the midnights a day begins and ends at, UTC.

    >>> [str(bound) for bound in day_bounds(date(2018, 8, 8))]
    ['2018-08-08 00:00:00+00:00', '2018-08-09 00:00:00+00:00']
    """
    start = datetime.combine(day, time(), UTC)
    return start, start + timedelta(days=1)


def plan_by_time(client: FeatureStoreClient, entities: EntityQuery, day: date, chunk_rows: int) -> DayPlan:
    """Cut a day of events into intervals of at most `chunk_rows` rows each, by the time of the events.

    Events of one moment stay together. Raises EmptyWindowError when the day has none.
    """
    start, end = day_bounds(day)
    counts = sql.SQL(
        "SELECT {t} AS moment, count(*) AS n FROM {table} WHERE {t} >= {a} AND {t} < {b}"
        " GROUP BY 1 ORDER BY 1"
    ).format(
        t=sql.Identifier(entities.timestamp),
        table=sql.Identifier(*entities.table),
        a=_time(start),
        b=_time(end),
    )
    moments = client.query(counts.as_string(None))
    if not moments:
        raise EmptyWindowError(f"{'.'.join(entities.table)} has no rows of {day}: load the day first")
    pieces = cut([row["n"] for row in moments], chunk_rows)
    bounds = [start, *(moments[first]["moment"].astimezone(UTC) for first, _ in pieces[1:]), end]
    chunks = tuple(
        Chunk(number, entities, bounds[number], bounds[number + 1], rows)
        for number, (_, rows) in enumerate(pieces)
    )
    return DayPlan(entities, start, end, chunks)


def cut(counts: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Group neighbours so that each group adds up to at most `limit` (a single larger one stays whole).

    Returns (index of the group's first, its sum).

    >>> cut([3, 4, 2, 9, 1], 7)
    [(0, 7), (2, 2), (3, 9), (4, 1)]
    """
    groups: list[tuple[int, int]] = []
    for i, count in enumerate(counts):
        if groups and groups[-1][1] + count <= limit:
            groups[-1] = (groups[-1][0], groups[-1][1] + count)
        else:
            groups.append((i, count))
    return groups


@contextmanager
def progress(total: int, already: int, description: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar where someone looks; give the function that moves it."""
    with tqdm(total=total, initial=already, desc=description, unit=f" {unit}", disable=None) as bar:

        def done(rows: int) -> None:
            bar.update(rows)

        yield done
