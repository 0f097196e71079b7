"""The label engine's second door: decide a day of batch scores with the policy file of the service.

`python -m common_service_libs.batch_door --service fraud_detection_api --date 2026-01-31` reads
`scoring.batch_scores` of the day and replaces the day in `decisions.batch_decisions`, in one transaction:
a rerun gives the same rows. A batch score was computed from the offline store, which is whole, so every view
counts as present and nothing as degraded. Lists count as of the midnight at which the day begins; velocities,
which are of requests, are null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg

from common_service_libs.base_api_config import DecisionSettings
from common_service_libs.errors import ServiceError
from common_service_libs.feature_status import FeatureStatus
from common_service_libs.label_engine.engine import LabelEngine, Verdict
from common_service_libs.label_engine.lists import NO_LISTS, EntityLists, load_lists
from common_service_libs.label_engine.policy import Policy, find_policy, load_policy
from common_service_libs.model_registry import BundleCache, MlflowRegistry
from common_service_libs.release_bundle import read_thresholds

SERVICES = Path(__file__).resolve().parent.parent / "services"
FETCH_ROWS = 5000

DDL = """
select pg_advisory_xact_lock(hashtext('decisions.batch_decisions'));
create schema if not exists decisions;
create table if not exists decisions.batch_decisions (
    model_name     text not null,
    data_date      date not null,
    entity_key     text not null,
    score          double precision not null,
    decision       text not null,
    reason_codes   text[] not null,
    rules_fired    text[] not null,
    policy_version integer not null,
    policy_sha256  text not null,
    bundle_sha256  text not null,
    decided_at     timestamptz not null,
    primary key (model_name, data_date, entity_key)
);
comment on table decisions.batch_decisions is 'One row a model, day and entity; written by the batch door.'
"""
SELECT = """
select entity_key, model_version, bundle_sha256, entity_ids, request, features, score
from scoring.batch_scores where model_name = %s and data_date = %s order by entity_key
"""
DELETE = "delete from decisions.batch_decisions where model_name = %s and data_date = %s"
COPY = """
copy decisions.batch_decisions (model_name, data_date, entity_key, score, decision, reason_codes, rules_fired,
    policy_version, policy_sha256, bundle_sha256, decided_at) from stdin
"""


class NoScores(ServiceError):
    """There are no batch scores of the day."""


@dataclass(frozen=True)
class BatchScore:
    """One row of `scoring.batch_scores`."""

    entity_key: str
    model_version: int
    bundle_sha256: str
    entity_ids: Mapping[str, Any]
    request: Mapping[str, Any]
    features: Mapping[str, Any]
    score: float


def decide(row: BatchScore, engine: LabelEngine, lists: EntityLists = NO_LISTS, at: float = 0.0) -> Verdict:
    """Return the verdict on one batch score, as the service gives it on the same vector.

    `lists` count as of `at`, in seconds since the epoch.
    """
    on = lists.of(row.entity_ids, engine.policy.inputs.lists, at)
    return engine.decide(
        score=row.score,
        features=_floats(row.features),
        request={**row.entity_ids, **_floats(row.request)},
        status=dict.fromkeys(engine.policy.inputs.status, FeatureStatus.PRESENT.value),
        degraded=False,
        policy_inputs={"lists": on, "velocity": {}},
    )


def _floats(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with every number a float: JSON does not tell 1 from 1.0, a rule does."""
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in values.items()
    }


def decide_day(
    conninfo: str, policy: Policy, day: date, bundles: BundleCache, lists: EntityLists = NO_LISTS
) -> Counter[str]:
    """Replace the decisions of a day and return how many there are of each; raises NoScores."""
    engines: dict[str, LabelEngine] = {}
    counts: Counter[str] = Counter()
    now, at = datetime.now(UTC), datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    with psycopg.connect(conninfo) as connection:  # commits at the end, rolls back on an error
        connection.execute(DDL)
        connection.execute(DELETE, (policy.model, day))
        with connection.cursor() as writing, writing.copy(COPY) as copy:
            for row in _scores(conninfo, policy.model, day):
                if row.bundle_sha256 not in engines:
                    engines[row.bundle_sha256] = _engine(policy, row, bundles)
                verdict = decide(row, engines[row.bundle_sha256], lists, at)
                counts[verdict.decision] += 1
                copy.write_row(
                    (
                        policy.model, day, row.entity_key, row.score, verdict.decision,
                        list(verdict.reason_codes), list(verdict.rules_fired),
                        policy.version, policy.sha256, row.bundle_sha256, now,
                    )
                )  # fmt: skip
        if not counts:
            raise NoScores(f"scoring.batch_scores has no rows of {policy.model} for {day}")
    return counts


def _scores(conninfo: str, model: str, day: date) -> Iterator[BatchScore]:
    """Yield the scores of a day over a connection of its own: a COPY is running on the other."""
    with psycopg.connect(conninfo) as connection, connection.cursor("batch_scores") as cursor:
        cursor.itersize = FETCH_ROWS
        for row in cursor.execute(SELECT, (model, day)):
            yield BatchScore(*row)


def _engine(policy: Policy, row: BatchScore, bundles: BundleCache) -> LabelEngine:
    return LabelEngine(
        policy, read_thresholds(bundles.obtain_recorded(policy.model, row.model_version, row.bundle_sha256))
    )


def main(arguments: list[str] | None = None) -> int:
    """Decide a day, print what was decided as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(prog="batch_door", description="Decide a day of batch scores.")
    parser.add_argument("--service", required=True, choices=sorted(path.name for path in SERVICES.iterdir()))
    parser.add_argument("--date", required=True, type=date.fromisoformat, help="the day of the data, UTC")
    options = parser.parse_args(arguments)
    settings = DecisionSettings()
    try:
        policy = load_policy(find_policy(SERVICES / options.service / "policies"))
        registry = MlflowRegistry(
            settings.mlflow_tracking_uri,
            deadline=settings.registry_deadline_seconds,
            download_deadline=settings.download_deadline_seconds,
        )
        bundles = BundleCache(settings.spool_dir / "bundles", registry)
        lists = load_lists(settings.lists_file) if settings.lists_file else NO_LISTS
        counts = decide_day(settings.decisions_conninfo(), policy, options.date, bundles, lists)
    except (ServiceError, psycopg.Error) as error:
        print(f"batch door: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps({
        "service": options.service, "model": policy.model, "date": str(options.date), "policy": policy.name,
        "policy_version": policy.version, "policy_sha256": policy.sha256,
        "rows": counts.total(), "decisions": dict(counts),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
