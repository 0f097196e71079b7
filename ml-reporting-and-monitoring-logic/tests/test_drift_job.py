"""The drift job against the stack: a registered champion, stored scores, matured labels."""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, date, datetime, timedelta

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from advanced_monitoring_scripts import calculate_concept_drift_scores as job
from advanced_monitoring_scripts import champion_bundle, matured_labels
from advanced_monitoring_scripts.settings import DriftSettings
from tests import bundles

pytestmark = pytest.mark.integration

DAY = date(2026, 11, 20)
NEEDED = ("MLFLOW_TRACKING_URI", "DECISIONS_DB_HOST", "FEATURE_STORE_DB_HOST", "REPORTS_DIR")
SCORES = """
create schema if not exists scoring;
create table if not exists scoring.batch_scores (
    model_name text not null, data_date date not null, entity_key text not null,
    model_version integer not null, bundle_sha256 text not null, entity_ids jsonb not null,
    request jsonb not null, features jsonb not null,
    score double precision not null, scored_at timestamptz not null,
    primary key (model_name, data_date, entity_key));
"""
RECORDS = """
create schema if not exists decisions;
create table if not exists decisions.decision_records (
    request_id text primary key, service text not null, requested_at timestamptz not null,
    entity_ids jsonb not null, request jsonb not null, features jsonb not null, feature_status jsonb not null,
    model_name text not null, model_version integer not null, bundle_sha256 text not null,
    policy_version integer not null, policy_sha256 text not null, score double precision,
    decision text not null, reason_codes text[] not null, rules_fired text[] not null,
    degraded boolean not null, latency_ms double precision not null,
    recorded_at timestamptz not null default now());
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    missing = [name for name in NEEDED if not os.environ.get(name)]
    assert not missing, f"{', '.join(missing)} missing: run through `local_stack exec`, or load stack.env"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPORTS_DIR", str(tmp_path_factory.mktemp("reports")))
        yield DriftSettings()


def execute(database, query, rows=None):
    arguments = database.connection_arguments()
    del arguments["options"]
    with psycopg.connect(**arguments) as connection, connection.cursor() as cursor:
        if rows is None:
            cursor.execute(query)
        else:
            cursor.executemany(query, rows)


@pytest.fixture
def champion(settings, tmp_path, monkeypatch):
    """A champion of a model of this test's own, with tables for its scores; gone afterwards."""
    import mlflow  # noqa: PLC0415

    model = f"drift-test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(bundles, "MODEL", model)
    sha256 = bundles.write_bundle(tmp_path / "bundle")
    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment(model)
    run = client.create_run(experiment)
    for name, value in {"auc_roc": 0.93, "average_precision": 0.45, "brier": 0.01}.items():
        client.log_metric(run.info.run_id, name, value)
    client.log_artifacts(run.info.run_id, str(tmp_path / "bundle"), "model/artifacts/bundle")
    client.create_registered_model(model)
    version = client.create_model_version(
        model, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"bundle_sha256": sha256}
    )
    client.set_registered_model_alias(model, "champion", version.version)
    execute(settings.decisions_db, SCORES)
    execute(settings.decisions_db, RECORDS)
    yield model, sha256
    client.delete_registered_model(model)
    client.delete_experiment(experiment)
    for table in ("scoring.batch_scores", "decisions.decision_records"):
        execute(settings.decisions_db, f"delete from {table} where model_name = '{model}'")


@pytest.fixture
def labels(settings, monkeypatch, champion):
    """A table of labels in a schema of this test's own, read by the production query."""
    schema = f"drift_test_{uuid.uuid4().hex[:8]}"
    execute(
        settings.feature_store_db,
        f"create schema {schema}; create table {schema}.fct_fraud_labels"
        " (transaction_id bigint, tx_date date, is_fraud smallint, label_known_at timestamptz)",
    )
    query = matured_labels.LABEL_QUERIES[job_model()].replace("labels.fct", f"{schema}.fct")
    monkeypatch.setitem(matured_labels.LABEL_QUERIES, champion[0], query)
    yield sql.Identifier(schema, "fct_fraud_labels")
    execute(settings.feature_store_db, f"drop schema {schema} cascade")


def job_model() -> str:
    return "fraud-detection-model"


def store_scores(settings, champion, day, data, *, first_key=0, sha256=None):
    model, own = champion
    features = [name for name in data if name != "score"]
    rows = [
        (
            model,
            day,
            str(first_key + i),
            1,
            sha256 or own,
            Jsonb({"customer_id": i % 300}),
            Jsonb({}),
            Jsonb({name: float(data[name][i]) for name in features}),
            float(data["score"][i]),
            datetime.now(UTC),
        )
        for i in range(len(data["score"]))
    ]
    execute(
        settings.decisions_db,
        "insert into scoring.batch_scores values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        rows,
    )


def run(settings, champion, capsys, *arguments, day=DAY):
    code = job.main(["--model", champion[0], "--date", str(day), *arguments])
    out, err = capsys.readouterr()
    suffix = "-api" if "api" in arguments else ""
    path = settings.reports_dir / "drift" / f"{champion[0]}-{day}{suffix}.json"
    return code, out, err, json.loads(path.read_text()) if path.exists() else None


def test_a_day_like_the_training_is_ok_and_without_labels_says_so(settings, champion, capsys):
    store_scores(settings, champion, DAY, bundles.sample(3000, 1))
    code, out, err, report = run(settings, champion, capsys)
    assert (code, err) == (0, "")
    assert report["verdict"] == "ok"
    assert report["window"] == {
        "first_day": "2026-11-20",
        "last_day": "2026-11-20",
        "days": 1,
        "rows": 3000,
        "left_out": {},
    }
    assert report["concept"]["verdict"] == "not_judged"
    assert "no labels" in report["concept"]["reasons"][0]
    assert {feature["name"]: feature["verdict"] for feature in report["features"]} == {
        "tx_amount": "ok",
        "tx_is_weekend": "not_judged",
        "terminal_fraud_risk_7d": "ok",
    }
    page = (settings.reports_dir / "drift" / f"{champion[0]}-{DAY}.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "verdict: ok" in page or ": ok</title>" in page
    assert "report:" in out


def test_a_drifted_day_is_an_alert_and_still_exit_0(settings, champion, capsys):
    store_scores(settings, champion, DAY, bundles.sample(3000, 1, amounts=120.0))
    code, out, _, report = run(settings, champion, capsys)
    assert (code, report["verdict"]) == (0, "alert")
    assert "tx_amount: alert" in out
    psi = {result["name"]: result for result in report["results"]}["psi.tx_amount"]
    assert psi["value"] > 0.25
    assert psi["met"] is False


def test_a_window_takes_the_champions_days_and_counts_what_it_leaves_out(settings, champion, capsys):
    for back in range(10):
        store_scores(settings, champion, DAY - timedelta(days=back), bundles.sample(200, back))
    store_scores(
        settings, champion, DAY - timedelta(days=1), bundles.sample(50, 99), first_key=10_000, sha256="0" * 64
    )
    _, _, _, week = run(settings, champion, capsys)
    assert week["window"]["rows"] == 1400
    assert week["window"]["days"] == 7
    assert week["window"]["left_out"] == {"scored by another bundle": 50}
    _, _, _, two_days = run(settings, champion, capsys, "--window-days", "2")
    assert two_days["window"]["rows"] == 400


def test_quality_is_measured_on_labels_known_at_the_moment_asked_for(settings, champion, labels, capsys):
    data = bundles.sample(6000, 5)
    frauds = np.random.default_rng(6).uniform(size=6000) < 0.03
    data["score"] = np.clip(data["score"] + np.where(frauds, 0.01, 0.0), 0, 1)  # hardly better than guessing
    scored, known = DAY - timedelta(days=9), datetime(2026, 11, 18, tzinfo=UTC)
    store_scores(settings, champion, scored, data)
    store_scores(settings, champion, DAY, bundles.sample(500, 7), first_key=50_000)
    execute(
        settings.feature_store_db,
        sql.SQL("insert into {} values (%s, %s, %s, %s)").format(labels),
        [(i, scored, int(fraud), known) for i, fraud in enumerate(frauds)],
    )
    _, _, _, early = run(settings, champion, capsys, "--as-of", "2026-11-17")
    assert early["concept"]["verdict"] == "not_judged"
    code, _, _, late = run(settings, champion, capsys)
    assert code == 0
    assert late["concept"]["rows"] == 6000
    assert late["concept"]["positives"] == int(frauds.sum())
    assert late["concept"]["first_day"] == late["concept"]["last_day"] == str(scored)
    assert late["concept"]["verdict"] == "alert"
    assert late["verdict"] == "alert"
    auc = next(q for q in late["concept"]["qualities"] if q["metric"] == "auc_roc")
    assert auc["lower"] < auc["current"] < auc["upper"] < auc["holdout"] == 0.93


def test_decision_records_are_a_source_too(settings, champion, capsys):
    model, sha256 = champion
    data = bundles.sample(600, 3)
    names = [name for name in data if name != "score"]
    at = datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC)
    execute(
        settings.decisions_db,
        "insert into decisions.decision_records (request_id, service, requested_at, entity_ids, request,"
        " features, feature_status, model_name, model_version, bundle_sha256, policy_version, policy_sha256,"
        " score, decision, reason_codes, rules_fired, degraded, latency_ms)"
        " values (%s, 's', %s, %s, '{}', %s, '{}', %s, 1, %s, 1, 'p', %s, 'approve', '{}', '{}', %s, 1.0)",
        [
            (
                uuid.uuid4().hex,
                at,
                Jsonb({"customer_id": i}),
                Jsonb({name: float(data[name][i]) for name in names}),
                model,
                sha256,
                None if i < 5 else float(data["score"][i]),
                5 <= i < 15,
            )
            for i in range(600)
        ],
    )
    code, _, err, report = run(settings, champion, capsys, "--source", "api")
    assert (code, err) == (0, "")
    assert report["window"]["rows"] == 585
    assert report["window"]["left_out"] == {
        "decided without a score": 5,
        "decided on fallback features": 10,
    }
    assert report["verdict"] == "ok"


def test_what_is_missing_is_named_and_nothing_is_reported(settings, champion, capsys, monkeypatch):
    code, _, err, report = run(settings, champion, capsys)
    assert (code, report) == (1, None)
    assert "no scores of 2026-11-20" in err
    assert "score_daily_transactions_fraud" in err
    store_scores(settings, champion, DAY, bundles.sample(200, 1), sha256="f" * 64)
    code, _, err, _ = run(settings, champion, capsys)
    assert code == 1
    assert "200 scored by another bundle" in err
    code, _, err, _ = run(settings, ("no-such-model", ""), capsys)
    assert code == 1
    assert "no-such-model has no champion" in err
    monkeypatch.setenv("DECISIONS_DB_PORT", "1")
    code, _, err, _ = run(settings, champion, capsys)
    assert code == 1
    assert "database decisions does not answer" in err
    assert os.environ["DECISIONS_DB_PASSWORD"] not in err
    monkeypatch.delenv("DECISIONS_DB_HOST")
    code, _, err, _ = run(settings, champion, capsys)
    assert code == 1
    assert "DECISIONS_DB_HOST" in err


def test_an_altered_bundle_is_refused(settings, champion, capsys, monkeypatch):
    store_scores(settings, champion, DAY, bundles.sample(200, 1))
    found = champion_bundle.find_bundle

    def altered(folder):
        bundle = found(folder)
        (bundle / "reference.json").write_text("{}")
        return bundle

    monkeypatch.setattr(champion_bundle, "find_bundle", altered)
    code, _, err, report = run(settings, champion, capsys)
    assert (code, report) == (1, None)
    assert "reference.json was altered" in err
