"""Velocities in the real Redis, and a backtest over the real tables; everything under names of its own."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from service_testkit import fraud_bundle
from stack_testkit import conninfo, redis_client, setting, unique

from common_service_libs import policy as command
from common_service_libs.batch_door import SERVICES
from common_service_libs.decision_record import DecisionRecord, encode, rfc3339
from common_service_libs.decision_store import DecisionStore
from common_service_libs.label_engine.engine import LabelEngine
from common_service_libs.label_engine.policy import find_policy, parse_policy
from common_service_libs.label_engine.policy_archive import PolicyArchive
from common_service_libs.label_engine.velocity import AT_MOST, Velocity, VelocityLimit
from common_service_libs.policy_backtest import BacktestSettings, FraudLabels
from common_service_libs.policy_replay import Recorded
from common_service_libs.redis_socket import RedisSocket
from common_service_libs.release_bundle import load_bundle

pytestmark = pytest.mark.integration

TEXT = find_policy(SERVICES / "fraud_detection_api" / "policies").read_text()
THRESHOLDS = {"review": 0.35, "decline": 0.8}


# --- velocity -------------------------------------------------------------------------------------


class Asked:
    """Limits under a project of its own on the stack's Redis."""

    def __init__(self) -> None:
        self.project = unique("velocity-tests")
        self.limits = Velocity(
            {"n": VelocityLimit("customer_id", 60), "spent": VelocityLimit("customer_id", 60, "tx_amount")},
            self.project,
        )
        self.socket = RedisSocket(
            setting("REDIS_HOST"), int(setting("REDIS_PORT")), setting("REDIS_PASSWORD")
        )

    def ask(self, request_id: str, at: float, amount: float = 1.0, customer: int = 1) -> dict[str, Any]:
        commands = self.limits.commands({"customer_id": customer}, {"tx_amount": amount}, request_id, at)
        return dict(self.limits.values(self.socket.call(b"".join(commands), len(commands))))


@pytest.fixture
def asked() -> Iterator[Asked]:
    found = Asked()
    yield found
    found.socket.close()
    client = redis_client()
    for key in client.scan_iter(f"velocity:{found.project}:*"):
        client.delete(key)


def test_velocities_are_exact_over_any_sequence_of_requests(asked: Asked) -> None:
    """Against a list that is looked through anew each time; repeats of ids included, out of order too."""
    chance, seen, now = random.Random(7), dict[tuple[int, str], tuple[float, float]](), 1_000_000.0
    for number in range(400):
        now += chance.choice([0.0, 0.1, 5.0, 20.0, 59.999999, 60.0])
        customer, id_ = chance.randint(1, 2), f"r-{chance.randint(max(0, number - 30), number)}"
        amount = round(chance.uniform(0, 500), 2)
        seen = {key: value for key, value in seen.items() if value[0] > now - 60.0}
        _, amount = seen.setdefault((customer, id_), (now, amount))
        own = [a for (of, _), (_, a) in seen.items() if of == customer]
        said = asked.ask(id_, now, amount, customer)
        assert said["n"] == len(own)
        assert said["spent"] == pytest.approx(sum(own))


def test_an_entity_s_requests_are_bounded_and_forgotten(asked: Asked) -> None:
    for number in range(AT_MOST + 5):
        commands = asked.limits.commands(
            {"customer_id": 9}, {"tx_amount": 2.0}, f"r-{number}", 1000.0 + number / 1e3
        )
        said = asked.limits.values(asked.socket.call(b"".join(commands), len(commands)))
    assert said == {"n": float(AT_MOST), "spent": 2.0 * AT_MOST}
    client = redis_client()
    keys = list(client.scan_iter(f"velocity:{asked.project}:*"))
    assert len(keys) == 2
    for key in keys:
        assert client.zcard(key) == AT_MOST
        assert 0 < client.pttl(key) <= 60_000


# --- backtest -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    name = unique("policy-tests")
    yield name
    with psycopg.connect(conninfo()) as connection:
        for table in ("decision_records", "decision_ids"):
            connection.execute(f"delete from decisions.{table} where service = %s", (name,))
        connection.execute("delete from decisions.label_policies where name = %s", (name,))


def _records(service: str, folder: Path, policy: Any) -> tuple[list[DecisionRecord], str]:
    """Return decisions of a tiny model under a policy, over three days."""
    sha256 = fraud_bundle(folder / "bundle", thresholds=THRESHOLDS)
    bundle = load_bundle(
        folder / "bundle", model_name="fraud-detection-model", feature_service="fraud_detection_v1"
    )
    engine, chance = LabelEngine(policy, THRESHOLDS), random.Random(3)
    begin = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    records = []
    for number in range(90):
        at = begin + number * 1900.0
        amount = round(chance.uniform(1, 300), 2)
        features: dict[str, Any] = {name: chance.uniform(1, 3) for name in bundle.feature_names}
        features |= {"tx_amount": amount, "terminal_fraud_risk_7d": 0.01, "terminal_fraud_risk_30d": 0.01}
        if number % 7 == 0:
            features["terminal_fraud_risk_7d"] = None
        inputs = {"lists": {"blocked": number % 30 == 29, "trusted_customers": False}, "velocity": {}}
        ids = {"customer_id": number % 20, "terminal_id": number % 5}
        score = bundle.score(list(features.values()))
        said = engine.decide(
            score=score, features=features, request={**ids, "tx_amount": amount}, status={},
            degraded=number % 11 == 0, policy_inputs=inputs,
        )  # fmt: skip
        records.append(
            DecisionRecord(
                request_id=f"{service}-{number}", service=service, requested_at=rfc3339(at), entity_ids=ids,
                request={**ids, "tx_amount": amount, "transaction_id": None, "tx_datetime": rfc3339(at),
                         "defaulted": []},
                features=features,
                feature_status={"customer_daily": {"status": "present", "event_timestamp": None}},
                model_name="fraud-detection-model", model_version=1, bundle_sha256=sha256,
                policy_version=policy.version, policy_sha256=policy.sha256, score=score,
                decision=said.decision,
                reason_codes=said.reason_codes, rules_fired=said.rules_fired, degraded=number % 11 == 0,
                latency_ms=1.0, policy_inputs=inputs,
            )
        )  # fmt: skip
    return records, sha256


@pytest.mark.anyio
async def test_a_backtest_reads_what_was_recorded_and_writes_page_and_json(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old_text = TEXT.replace("name: fraud_detection\n", f"name: {service}\n")
    old = parse_policy(old_text.encode(), "old.yaml")
    records, sha256 = _records(service, tmp_path, old)
    store = DecisionStore(conninfo(), deadline=20)
    assert await store.insert([encode(record) for record in records]) == len(records)
    await store.close()
    archive = PolicyArchive(tmp_path / "elsewhere", conninfo())
    archive.keep(old)
    archive.flush()  # the backtest finds the old policy in the database alone
    shutil.copytree(tmp_path / "bundle", tmp_path / "spool" / "bundles" / sha256)
    policies = tmp_path / "services" / service / "policies"
    policies.mkdir(parents=True)
    changed = old_text.replace("220.0", "100.0").replace("version: 2\n", "version: 9\n")
    (policies / "current.yaml").write_text(changed)
    monkeypatch.setattr(command, "SERVICES", tmp_path / "services")
    for name, value in {"SPOOL_DIR": tmp_path / "spool", "REPORTS_DIR": tmp_path / "reports"}.items():
        monkeypatch.setenv(name, str(value))
    arguments = ["backtest", "--service", service, "--policy", str(policies / "current.yaml")]
    assert command.main(arguments) == 0
    report = json.loads(Path(json.loads(capsys.readouterr().out)["report"]).with_suffix(".json").read_text())
    assert report["verification"] == {
        "replayed_exactly": 90, "mismatches": 0, "not_replayed": 0, "examples": [],
    }  # fmt: skip
    reached = {
        r.request_id for r in records if r.decision == "approve" and 100 < r.request["tx_amount"] <= 220
    }
    assert {flip["request_id"] for flip in report["flips"]} == reached
    assert reached
    assert len(report["days"]) >= 2
    assert [one["version"] for one in report["old_policies"]] == [2]
    tomorrow = datetime.now(UTC).date() + timedelta(days=2)
    assert command.main([*arguments, "--from", str(tomorrow), "--to", str(tomorrow)]) == 1
    assert "no decisions of" in capsys.readouterr().err
    with psycopg.connect(conninfo()) as connection:
        connection.execute(
            "update decisions.decision_records set decision = 'none' where service = %s and request_id = %s",
            (service, next(r.request_id for r in records if r.decision != "approve")),
        )
    assert command.main(arguments) == 1, "a record that is not reproduced is told"
    assert json.loads(capsys.readouterr().out)["verification"]["mismatches"] == 1


def _record_of(transaction_id: int) -> Recorded:
    return Recorded(
        f"t-{transaction_id}", 0.0, {}, {"transaction_id": transaction_id}, {}, {}, "m", 1, "b", 1, "p", 0.1,
        "approve", (), (), False, "online", {},
    )  # fmt: skip


def test_labels_are_those_known_by_then_or_the_report_says_why_there_are_none() -> None:
    settings = BacktestSettings(reports_dir=Path("/nowhere"))
    url = settings.feature_store_conninfo()
    assert url is not None
    with psycopg.connect(url) as connection:
        found = connection.execute("select to_regclass('labels.fct_fraud_labels')").fetchone()
        there = found is not None and found[0] is not None
        known = connection.execute(
            "select transaction_id, is_fraud, label_known_at from labels.fct_fraud_labels order by 1 limit 5"
        ).fetchall() if there else []  # fmt: skip
    labels = FraudLabels(url, datetime(2200, 1, 1, tzinfo=UTC))
    assert labels([_record_of(row[0]) for row in known] + [_record_of(-1)]) == {
        f"t-{r[0]}": r[1] for r in known
    }
    assert (labels.problem is None) == there
    for row in known:
        before = FraudLabels(url, row[2] - timedelta(seconds=1))
        assert before([_record_of(row[0])]) == {}
    silent = FraudLabels(psycopg.conninfo.make_conninfo(url, port=9), datetime.now(UTC))
    assert silent([_record_of(1)]) == {}
    assert "does not answer" in str(silent.problem)
