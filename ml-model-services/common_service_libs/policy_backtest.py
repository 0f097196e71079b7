"""A changed policy on logged decisions: what it would have done, beside what was decided.

Reads `decisions.decision_records` and, where the feature store answers, `labels.fct_fraud_labels`. Before
anything else every decision is replayed by the policy that made it; one that comes out otherwise is reported.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from common_service_libs.base_api_config import DecisionSettings, Port
from common_service_libs.errors import ServiceError
from common_service_libs.feature_contract import FeatureContract, parse_contract
from common_service_libs.label_engine.engine import LabelEngine, Verdict, require_fit
from common_service_libs.label_engine.lists import EntityLists
from common_service_libs.label_engine.policy import Policy
from common_service_libs.label_engine.policy_archive import policies_of
from common_service_libs.model_registry import BundleCache
from common_service_libs.policy_measures import Side, card_precision
from common_service_libs.policy_replay import (
    Recorded,
    decide_anew,
    floats,
    missing_inputs,
    replay,
    request_values,
)
from common_service_libs.release_bundle import FEATURE_SERVICE, read_thresholds

FETCH_ROWS = 2000
LABEL_BATCH = 20_000
MOST_MISMATCHES = 100
FOLDER = "policy-backtest"

HASHES = """
select policy_sha256, count(*) from decisions.decision_records
where service = %s and requested_at >= %s and requested_at < %s group by 1
"""
RECORDS = """
select request_id, extract(epoch from requested_at)::float8, entity_ids, request, features, feature_status,
    model_name, model_version, bundle_sha256, policy_version, policy_sha256, score, decision, reason_codes,
    rules_fired, degraded, rung, policy_inputs
from decisions.decision_records
where service = %s and requested_at >= %s and requested_at < %s
order by requested_at, request_id
"""
LABELS = """
select transaction_id, is_fraud from labels.fct_fraud_labels
where transaction_id = any(%s) and label_known_at <= %s
"""


class BacktestSettings(DecisionSettings):
    """The settings of a backtest: the decision database, the registry, reports, and the feature store."""

    reports_dir: Path
    feature_store_db_host: str = "127.0.0.1"
    feature_store_db_port: Port = 5432
    feature_store_db_name: str = "feature_store"
    feature_store_db_user: str | None = None
    feature_store_db_password: SecretStr | None = None

    def feature_store_conninfo(self) -> str | None:
        """Return the connection string of the feature store, None where it is not set up."""
        if self.feature_store_db_user is None or self.feature_store_db_password is None:
            return None
        return make_conninfo(
            host=self.feature_store_db_host,
            port=self.feature_store_db_port,
            dbname=self.feature_store_db_name,
            user=self.feature_store_db_user,
            password=self.feature_store_db_password.get_secret_value(),
            connect_timeout=3,
            application_name="policy-backtest",
        )


class NothingRecorded(ServiceError):
    """There are no decisions of the service in the interval."""


@dataclass(frozen=True)
class Interval:
    """Days in UTC, both included; None is open."""

    first: date | None
    last: date | None

    def bounds(self) -> tuple[datetime, datetime]:
        """Return the first moment in it and the first after it."""
        first, last = self.first or date(2000, 1, 1), self.last or date(2199, 12, 31)
        begin = datetime(first.year, first.month, first.day, tzinfo=UTC)
        return begin, datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)


class Engines:
    """Engines by policy and bundle; a bundle's thresholds and contract are fetched once."""

    def __init__(self, bundles: BundleCache) -> None:
        self._bundles = bundles
        self._found: dict[str, tuple[Mapping[str, float], FeatureContract] | str] = {}
        self._engines: dict[tuple[str, str], LabelEngine] = {}

    def of(self, policy: Policy, record: Recorded) -> LabelEngine | None:
        """Return the engine for a record, None where its bundle cannot be had; raises PolicyError."""
        key = policy.sha256, record.bundle_sha256
        if key not in self._engines:
            bundle = self._bundle(record)
            if isinstance(bundle, str):
                return None
            thresholds, contract = bundle
            require_fit(policy, contract)
            self._engines[key] = LabelEngine(policy, thresholds)
        return self._engines[key]

    def _bundle(self, record: Recorded) -> tuple[Mapping[str, float], FeatureContract] | str:
        sha256 = record.bundle_sha256
        if sha256 not in self._found:
            try:
                folder = self._bundles.obtain_recorded(record.model_name, record.model_version, sha256)
                thresholds = read_thresholds(folder)
                contract = parse_contract(json.loads((folder / FEATURE_SERVICE).read_bytes()))
                self._found[sha256] = thresholds, contract
            except (ServiceError, OSError) as error:
                self._found[sha256] = str(error)
        return self._found[sha256]

    @property
    def unavailable(self) -> dict[str, str]:
        """The bundles that could not be had, and why."""
        return {sha256: found for sha256, found in self._found.items() if isinstance(found, str)}


@dataclass
class Comparison:
    """What came of a backtest, before it is written down."""

    old: Side = field(default_factory=Side)
    new: Side = field(default_factory=Side)
    records: int = 0
    verified: int = 0
    mismatches: list[dict[str, Any]] = field(default_factory=list)
    mismatched: int = 0
    unverified: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    labelled: int = 0
    frauds: int = 0
    days: Counter[str] = field(default_factory=Counter)
    labelled_days: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    flips: list[dict[str, Any]] = field(default_factory=list)
    decisions: tuple[str, ...] = ()
    costed: int = 0


def compare(
    batches: Iterable[tuple[list[Recorded], Mapping[str, int]]],
    new: Policy,
    old: Mapping[str, Policy],
    engine_of: Callable[[Policy, Recorded], LabelEngine | None],
    lists: EntityLists | None = None,
) -> Comparison:
    """Return what `new` would have done; `batches` are records with the labels known, by request id.

    `old` are the policies by hash that made the decisions, as far as they are known.
    """
    found = Comparison(decisions=new.decisions)
    costing = new if new.costs is not None else next((p for p in old.values() if p.costs is not None), None)
    for records, labels in batches:
        for record in records:
            found.records += 1
            before = old.get(record.policy_sha256)
            _verify(found, record, None if before is None else engine_of(before, record))
            engine = engine_of(new, record)
            if engine is None:
                found.skipped += 1
                continue
            pricing = engine_of(costing, record) if costing is not None else None
            verdict = decide_anew(record, engine, lists, before)
            found.missing.update(missing_inputs(record, engine, lists))
            _add(found, record, verdict, labels.get(record.request_id), engine, pricing)
    return found


def _verify(found: Comparison, record: Recorded, engine: LabelEngine | None) -> None:
    if engine is None:
        found.unverified[record.policy_sha256] += 1
        return
    again = replay(record, engine)
    if again == record.verdict:
        found.verified += 1
        return
    found.mismatched += 1
    if len(found.mismatches) < MOST_MISMATCHES:
        found.mismatches.append({
            "request_id": record.request_id, "policy_sha256": record.policy_sha256,
            "recorded": _as_document(record.verdict), "replayed": _as_document(again),
        })  # fmt: skip


def _add(
    found: Comparison,
    record: Recorded,
    verdict: Verdict,
    label: int | None,
    engine: LabelEngine,
    pricing: LabelEngine | None,
) -> None:
    day = datetime.fromtimestamp(record.event_time, UTC).date().isoformat()
    found.days[day] += 1
    if label is not None:
        found.labelled += 1
        found.frauds += label
        found.labelled_days[day] += 1
    costs = (
        None
        if pricing is None
        else pricing.costs(features=floats(record.features), request=request_values(record))
    )
    found.costed += costs is not None
    mildest = engine.policy.decisions[0]
    card = next(iter(record.entity_ids.values()), None)
    for side, said in ((found.old, record.verdict), (found.new, verdict)):
        alert = said.decision != mildest
        side.add(day, said, alert=alert)
        if costs is not None:
            side.add_cost(said.decision, record.score, label, costs)
        if alert and label is not None:
            side.frauds_stopped += label
            side.false_alerts += 1 - label
            if record.score is not None:
                side.add_card(day, card, record.score, bool(label))
    if verdict.decision != record.decision:
        found.flips.append(_flip(record, verdict, label, costs))


def _flip(
    record: Recorded,
    verdict: Verdict,
    label: int | None,
    costs: Mapping[str, tuple[float, float]] | None,
) -> dict[str, Any]:
    gained = sorted(set(verdict.rules_fired) - set(record.rules_fired))
    lost = sorted(set(record.rules_fired) - set(verdict.rules_fired))
    change = None
    if costs is not None and {record.decision, verdict.decision} <= costs.keys() and record.score is not None:
        weight = record.score if label is None else float(label)
        price = {d: weight * a + (1 - weight) * b for d, (a, b) in costs.items()}
        change = round(price[verdict.decision] - price[record.decision], 4)
    return {
        "request_id": record.request_id,
        "requested_at": datetime.fromtimestamp(record.requested_at, UTC).isoformat(timespec="milliseconds"),
        "entity_ids": record.entity_ids,
        "request": {
            k: v for k, v in record.request.items() if k != "defaulted" and k not in record.entity_ids
        },
        "score": record.score,
        "old": _as_document(record.verdict),
        "new": _as_document(verdict),
        "rules_gained": gained,
        "rules_lost": lost,
        "label": label,
        "cost_change": change,
    }


def _as_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "decision": verdict.decision,
        "reason_codes": list(verdict.reason_codes),
        "rules_fired": list(verdict.rules_fired),
    }


# --- reading ------------------------------------------------------------------------------------------------


def recorded_policies(
    conninfo: str, service: str, interval: Interval, *, folders: Iterable[Path], files: Iterable[Path]
) -> tuple[dict[str, Policy], dict[str, int]]:
    """Return the policies that decided in the interval, as far as they are found, and how often each did.

    Raises NothingRecorded.
    """
    begin, end = interval.bounds()
    with psycopg.connect(conninfo) as connection:
        counts: dict[str, int] = dict(connection.execute(HASHES, (service, begin, end)).fetchall())
    if not counts:
        raise NothingRecorded(f"no decisions of {service} between {begin:%Y-%m-%d} and {end:%Y-%m-%d}")
    return policies_of(counts, conninfo=conninfo, folders=folders, files=files), counts


def read_records(
    conninfo: str, service: str, interval: Interval, labels_of: Callable[[list[Recorded]], Mapping[str, int]]
) -> Iterator[tuple[list[Recorded], Mapping[str, int]]]:
    """Yield the records of an interval in batches, in order of arrival, with the labels known."""
    with psycopg.connect(conninfo) as connection, connection.cursor("policy_backtest") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(RECORDS, (service, *interval.bounds()))
        while rows := cursor.fetchmany(LABEL_BATCH):
            records = [_recorded(row) for row in rows]
            yield records, labels_of(records)


def _recorded(row: Sequence[Any]) -> Recorded:
    values = dict(zip(Recorded.__struct_fields__, row, strict=True))
    values["reason_codes"], values["rules_fired"] = (
        tuple(values["reason_codes"]),
        tuple(values["rules_fired"]),
    )
    return Recorded(**values)


class FraudLabels:
    """Matured labels by request id, from the feature store; none where it does not answer."""

    def __init__(self, conninfo: str | None, known_as_of: datetime) -> None:
        self._conninfo = conninfo
        self._known_as_of = known_as_of
        self.problem = None if conninfo else "the feature store is not set up"

    def __call__(self, records: list[Recorded]) -> Mapping[str, int]:
        """Return the labels of those records whose transaction has one that was known by then."""
        ids = {
            record.request_id: id_
            for record in records
            if isinstance(id_ := record.request.get("transaction_id"), int) and id_ < 2**63
        }
        if self._conninfo is None or self.problem or not ids:
            return {}
        try:
            with psycopg.connect(self._conninfo) as connection:
                rows = connection.execute(LABELS, (list(set(ids.values())), self._known_as_of)).fetchall()
        except psycopg.Error as error:
            self.problem = "the feature store does not answer: " + " ".join(str(error).split())[:200]
            return {}
        known: dict[int, int] = dict(rows)
        return {request_id: known[id_] for request_id, id_ in ids.items() if id_ in known}


# --- the document -------------------------------------------------------------------------------------------


def document_of(
    found: Comparison,
    *,
    service: str,
    new: Policy,
    old: Mapping[str, Policy],
    counts: Mapping[str, int],
    command: str,
    labels_problem: str | None,
    unavailable: Mapping[str, str],
) -> dict[str, Any]:
    """Return everything there is to say, as JSON would hold it."""
    days, labelled_days = sorted(found.days), sorted(found.labelled_days)
    costed = found.costed > 0
    sides = {}
    for name, side in (("old", found.old), ("new", found.new)):
        alerts = sum(side.alerts.values())
        judged = side.frauds_stopped + side.false_alerts
        sides[name] = {
            "decisions": dict(side.decisions),
            "rule_hits": dict(side.rules.most_common()),
            "reason_codes": dict(side.reasons.most_common()),
            "alerts": alerts,
            "alerts_a_day": alerts / len(days) if days else 0.0,
            "alerts_by_day": {day: side.alerts[day] for day in days},
            "alert_precision": side.frauds_stopped / judged if judged else None,
            "frauds_stopped": side.frauds_stopped,
            "frauds_missed": found.frauds - side.frauds_stopped,
            "false_alerts": side.false_alerts,
            "card_precision_at_100": card_precision(side.cards, labelled_days),
            "cost_known": side.cost_known if costed else None,
            "cost_expected": side.cost_expected if costed else None,
        }
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "service": service,
        "new_policy": _policy(new),
        "old_policies": [
            {"sha256": sha256, "records": count}
            | (_policy(old[sha256]) if sha256 in old else {"name": None, "version": None})
            for sha256, count in sorted(counts.items(), key=lambda item: -item[1])
        ],
        "records": found.records,
        "days": days,
        "verification": {
            "replayed_exactly": found.verified,
            "mismatches": found.mismatched,
            "not_replayed": found.unverified.total(),
            "examples": found.mismatches,
        },
        "skipped": {"records": found.skipped, "bundles": dict(unavailable)},
        "labels": {
            "labelled": found.labelled,
            "frauds": found.frauds,
            "days": labelled_days,
            "problem": labels_problem,
        },
        "inputs_not_recorded": dict(found.missing),
        "decision_order": list(found.decisions),
        "old": sides["old"],
        "new": sides["new"],
        "flipped": len(found.flips),
        "flips_by_kind": dict(
            Counter(f"{f['old']['decision']} -> {f['new']['decision']}" for f in found.flips).most_common()
        ),
        "results": _results(sides, len(found.flips), found),
        "flips": found.flips,
    }


def _policy(policy: Policy) -> dict[str, Any]:
    return {"name": policy.name, "version": policy.version, "sha256": policy.sha256}


def _results(sides: Mapping[str, Mapping[str, Any]], flipped: int, found: Comparison) -> list[dict[str, Any]]:
    """Return the figures in the form that every report of the platform has; the peer is the old policy."""
    wanted = (
        ("alerts_a_day", "1/day"), ("card_precision_at_100", "share"), ("alert_precision", "share"),
        ("cost_known", "cost"), ("cost_expected", "cost"),
    )  # fmt: skip
    results = []
    for name, unit in wanted:
        value, peer = sides["new"][name], sides["old"][name]
        ratio = value / peer if value is not None and peer else None
        results.append({"name": name, "value": value, "unit": unit, "peer": "recorded decisions",
                        "peer_value": peer, "ratio": ratio, "target": None, "met": None})  # fmt: skip
    alone = (
        ("decisions_flipped", flipped, None),
        ("decisions_not_reproduced", found.mismatched, 0),
    )
    for name, count, target in alone:
        met = None if target is None else count == target
        results.append({"name": name, "value": count, "unit": "decisions", "peer": None, "peer_value": None,
                        "ratio": None, "target": target, "met": met})  # fmt: skip
    return results
