"""The gate of a binary classifier: its holdout, and guards of what it was trained on and is served with."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from psycopg import sql

from common_ml_utils.base_model_trainer import ModelIdentity
from common_ml_utils.data_schemas.training_data_contract import PublishedContract
from common_ml_utils.drift_reference import SCORE, reference_statistics
from common_ml_utils.errors import DataError, EmptyWindowError
from common_ml_utils.feature_store_client import EntityQuery, FeatureStoreClient
from common_ml_utils.mlflow_utils import RegisteredBundle
from common_ml_utils.promotion.evaluation import Evaluation, classifier_evaluation
from common_ml_utils.promotion.gate import Holdout, Measured, Verdict
from common_ml_utils.promotion.guards import ASK, OK, Finding
from common_ml_utils.promotion.project_gate import run_project_gate
from common_ml_utils.promotion.training_guards import (
    agreement_finding,
    labels_finding,
    latency_finding,
    leak_finding,
    parity_finding,
    shift_finding,
    signature_finding,
    single_feature_aucs,
    staleness_finding,
    values_finding,
)
from common_ml_utils.release_bundle import Manifest, ReleaseBundle
from common_ml_utils.settings import GateSettings, PlatformSettings
from common_ml_utils.slices import Slices
from common_ml_utils.training_sets import TrainingSetStore, data_version

Candidate = RegisteredBundle[ReleaseBundle]
ROUNDS = 20
CALLS_A_ROUND = 25


@dataclass(frozen=True)
class TrainingSource:
    """Where a project's labelled rows come from and how they are split; the gate reads them again itself.

    `table` holds `key`, join keys, `label` and `label_known_at`; `request` maps a request value to an SQL
    expression over it. `latest(client)` is the time up to which the platform knows anything.
    `load(client, contract, manifest)` gives the rows a manifest's training had, checked, ordered by `key`;
    `split(rows, manifest)` its training and holdout part. `seen(client, kept, champion, holdout)` marks the
    holdout rows that the champion was trained on.
    """

    table: tuple[str, str]
    key: str
    label: str
    label_name: str
    group: str
    request: Mapping[str, str]
    latest: Callable[[FeatureStoreClient], datetime]
    load: Callable[[FeatureStoreClient, PublishedContract, Manifest], pd.DataFrame]
    split: Callable[[pd.DataFrame, Manifest], tuple[pd.DataFrame, pd.DataFrame]]
    seen: Callable[[FeatureStoreClient, TrainingSetStore, Candidate, pd.DataFrame], np.ndarray]
    slices_of: Callable[[pd.DataFrame], Slices]


@dataclass(frozen=True)
class ClassifierProject:
    """A `GateProject` of a binary classifier on a feature service."""

    source: TrainingSource
    client: FeatureStoreClient
    kept: TrainingSetStore
    settings: GateSettings
    reports_dir: Path
    _read: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _dataset_id(self) -> str:
        return self.client.dataset_id()

    def measure(self, challenger: Candidate, champion: Candidate | None) -> Measured:
        """Measure on the challenger's holdout; the pair only on rows the champion was not trained on."""
        holdout = self.holdout(challenger, challenger)
        whole = self._evaluation(challenger, holdout)
        if champion is None:
            return Measured(whole)
        seen = self.source.seen(self.client, self.kept, champion, holdout.frame)
        theirs = self.holdout(champion, challenger)
        if not np.array_equal(theirs.frame[self.source.key], holdout.frame[self.source.key]):
            raise DataError("champion and challenger were given different holdout rows")
        if not seen.any():
            return Measured(whole, (self._evaluation(champion, theirs), whole))
        fair, fair_theirs = (_rows(each, ~seen) for each in (holdout, theirs))
        positives = int(fair.labels.sum())
        left = f"{int(seen.sum())} of {len(seen)} rows of the holdout"
        if min(positives, len(fair.labels) - positives) < self.settings.slice_support:
            unfair = f"the champion was trained on a part of this holdout, {left}; too few others are left"
            return Measured(whole, unfair=unfair)
        pair = self._evaluation(champion, fair_theirs), self._evaluation(challenger, fair)
        return Measured(
            whole, pair, notes=(f"the champion was trained on {left}: left out of the comparison",)
        )

    def findings(self, challenger: Candidate, champion: Candidate | None) -> Sequence[Finding]:
        """Return what the guards of bundle and training data found."""
        bundle, source = challenger.bundle, self.source
        contract, manifest = bundle.contract, bundle.manifest
        features = contract.service.features
        rows = self.labelled(contract, manifest)
        training = source.split(rows, manifest)[0]
        labels = training[source.label].to_numpy()
        counted = reference_statistics(training, bundle.preprocessing, np.zeros(1))
        counted.pop(SCORE)
        delay = timedelta(days=self.client.label_policy(source.label_name).delay_days)
        found = [
            signature_finding(contract, self.client.contract(manifest.feature_service)),
            staleness_finding(manifest.training, self._labels_until(), delay, self.settings),
            self._data_version_finding(manifest, contract, rows),
            agreement_finding(manifest.training, len(training), int(labels.sum()), bundle.reference, counted),
            labels_finding(rows.set_index(source.key)[source.label], self._labels_of(rows), self.settings),
            self._values_finding(contract, bundle.sha256, training),
            leak_finding(single_feature_aucs(training, labels, features), self.settings),
            parity_finding(latest_parity(self.reports_dir, manifest), manifest.feature_service),
            self._latency_finding(challenger, champion),
        ]
        if champion is not None:
            names = contract.service.feature_names
            found.append(shift_finding(training, champion.bundle.reference, names, self.settings))
        return found

    def _data_version_finding(
        self, manifest: Manifest, contract: PublishedContract, rows: pd.DataFrame
    ) -> Finding:
        """Ask when the training set is not kept here and what the store gives now is another one."""
        if data_version(self._dataset_id, contract.sha256, rows) == manifest.data_version:
            return Finding("data version", OK, "the training set is the one the bundle names")
        message = (
            "the training set the bundle names is not kept here, or was altered, and fetched again it differs"
        )
        return Finding("data version", ASK, message)

    def _labels_until(self) -> datetime:
        """Return the newest event whose label is known."""
        source = self.source
        statement = sql.SQL("SELECT max(event_timestamp) AS until FROM {} WHERE label_known_at <= %s")
        text = statement.format(sql.Identifier(*source.table)).as_string(None)
        until = self.client.query(text, [source.latest(self.client)])[0]["until"]
        if until is None:
            raise EmptyWindowError(f"{'.'.join(source.table)} has no label that is known")
        return until

    def _labels_of(self, rows: pd.DataFrame) -> pd.Series:
        """Return the label store's labels of the rows, by key: all of them, as labels are cheap to read."""
        source = self.source
        statement = sql.SQL("SELECT {key} AS key, {label} AS label FROM {table} WHERE {key} = ANY(%s)")
        text = statement.format(
            key=sql.Identifier(source.key),
            label=sql.Identifier(source.label),
            table=sql.Identifier(*source.table),
        ).as_string(None)
        known = self.client.query(text, [rows[source.key].tolist()])
        return pd.Series([row["label"] for row in known], index=[row["key"] for row in known], dtype="int8")

    def _values_finding(
        self, contract: PublishedContract, bundle_sha256: str, training: pd.DataFrame
    ) -> Finding:
        """Fetch a sample of the training rows again; who is drawn hangs on the bundle's hash."""
        source = self.source
        size = min(self.settings.sample_rows, len(training))
        sample = training.sample(size, random_state=int(bundle_sha256[:8], 16))
        times = sample["event_timestamp"]
        query = SampledQuery(
            table=source.table,
            columns=tuple(dict.fromkeys((source.key, *contract.service.join_keys))),  # one where key = entity
            order_by=source.key,
            request=dict(source.request),
            keys=tuple(sample[source.key].tolist()),
        )
        window = (times.min().to_pydatetime(), times.max().to_pydatetime() + timedelta(microseconds=1))
        fetched = self.client.features_as_of(contract, query, [window], "sample of the training set")
        trained = sample.set_index(source.key)
        again = fetched.set_index(source.key)
        return values_finding(trained, again, contract.service.features, self.settings)

    def _latency_finding(self, challenger: Candidate, champion: Candidate | None) -> Finding:
        candidates = [challenger] if champion is None else [challenger, champion]
        medians = one_row_medians([_one_row(candidate.bundle) for candidate in candidates])
        return latency_finding(medians[0], medians[1] if len(medians) > 1 else None, self.settings)

    def holdout(self, candidate: Candidate, challenger: Candidate) -> Holdout:
        """Return the challenger's holdout with the candidate's features: kept rows, else fetched again."""
        rows = self.labelled(candidate.bundle.contract, challenger.bundle.manifest)
        frame = self.source.split(rows, challenger.bundle.manifest)[1]
        labels, groups = (frame[name].to_numpy() for name in (self.source.label, self.source.group))
        return Holdout(frame, labels, groups, self.source.slices_of(frame))

    def labelled(self, contract: PublishedContract, manifest: Manifest) -> pd.DataFrame:
        """Return the labelled rows of a training with a contract's features; they are read once."""
        wanted = (contract.sha256, manifest.data_version)
        if wanted not in self._read:
            kept = self.kept.load(manifest.data_version, self._dataset_id, contract.sha256)
            self._read[wanted] = self.source.load(self.client, contract, manifest) if kept is None else kept
        return self._read[wanted]

    def _evaluation(self, candidate: Candidate, holdout: Holdout) -> Evaluation:
        scores = candidate.bundle.score_frame(holdout.frame)
        return classifier_evaluation(
            holdout.labels, scores, holdout.groups, holdout.slices, self.settings.metric
        )


@dataclass(frozen=True)
class SampledQuery(EntityQuery):
    """An entity query for the rows of some keys alone."""

    keys: tuple[int, ...] = ()

    def statement(self, start: datetime, end: datetime) -> str:
        """Return the SELECT for times in [start, end) and the keys."""
        chosen = sql.SQL(" AND {key} = ANY({keys}::bigint[])").format(
            key=sql.Identifier(self.order_by), keys=sql.Literal(list(self.keys))
        )
        return super().statement(start, end) + chosen.as_string(None)


def latest_parity(reports_dir: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Return the monitoring's last comparison of served features, or None where there was none.

    Raises DataError when its report can't be read.
    """
    path = reports_dir / "feature_parity" / f"{manifest.feature_service}.json"
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: report[name] for name in ("date", "vectors", "mismatches", "not_recomputed", "by_feature")
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the parity report {path} can't be read: {error!r}") from error


def one_row_medians(scorers: Sequence[Callable[[], object]]) -> list[float]:
    """Time the scorers in turns and return the median of each, in microseconds."""
    taken: list[list[int]] = [[] for _ in scorers]
    for round_number in range(ROUNDS + 1):
        for scorer, times in zip(scorers, taken, strict=True):
            for _ in range(CALLS_A_ROUND):
                start = time.perf_counter_ns()
                scorer()
                if round_number:  # the first round warms up
                    times.append(time.perf_counter_ns() - start)
    return [float(np.median(times)) / 1000 for times in taken]


def _one_row(bundle: ReleaseBundle) -> Callable[[], object]:
    """Return a call that scores the next golden row."""
    vectors = itertools.cycle([row.features for row in bundle.golden])
    return lambda: bundle.score_row(next(vectors))


def _rows(holdout: Holdout, mask: np.ndarray) -> Holdout:
    slices = {name: each[mask] for name, each in holdout.slices.items()}
    frame = holdout.frame[mask].reset_index(drop=True)
    return Holdout(frame, holdout.labels[mask], holdout.groups[mask], slices)


def run_classifier_gate(
    settings: PlatformSettings, gate: GateSettings, identity: ModelIdentity, source: TrainingSource
) -> Verdict:
    """Judge a classifier's challenger; see `run_project_gate`."""
    project = ClassifierProject(
        source,
        FeatureStoreClient(settings.feature_store_db),
        TrainingSetStore(settings.data_dir / "training_sets" / identity.report),
        gate,
        settings.reports_dir,
    )
    return run_project_gate(settings, gate, identity, project)
