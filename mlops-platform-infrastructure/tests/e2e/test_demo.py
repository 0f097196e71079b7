"""The small demo, end to end, on a stack of its own; its numbers against an oracle computed apart."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import psycopg
import pytest
import yaml
from oracle import FeatureOracle, read_landing

from local_stack import settings
from local_stack.demo import summary
from local_stack.instance import Instance, open_instance
from server_tools import smoke

pytestmark = pytest.mark.e2e
INSTANCE = "test"
HERE = Path(__file__).resolve()
PLATFORM = HERE.parents[2]
SERVICES = {
    "fraud-detection-api": "FRAUD_API_URL",
    "customer-churn-api": "CHURN_API_URL",
    "movie-recommendation-api": "RECOMMENDATION_API_URL",
    "decision-page": "DECISION_PAGE_URL",
}
CONTRACTS = PLATFORM.parent / "feature-store-management/contracts/feature_services"


def stack(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PLATFORM, check=False, text=True, capture_output=True
    )


def run_demo() -> dict[str, Any]:
    finished = stack("local_stack.demo", "--instance", INSTANCE, "--scale", "small")
    assert finished.returncode == 0, f"{finished.stdout[-6000:]}\n{finished.stderr[-3000:]}"
    print(finished.stdout[finished.stdout.index("What happened") :])
    report: dict[str, Any] = json.loads((open_instance(INSTANCE).reports_dir / "demo.json").read_text())
    return report


def processes_of(instance: Instance) -> list[psutil.Process]:
    """Processes whose settings or command line name the instance's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), process.environ().get("SPOOL_DIR", "")]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(instance.state_dir) in word for word in words):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    opened = open_instance(INSTANCE)
    assert stack("local_stack", "--instance", INSTANCE, "reset", "--yes").returncode == 0
    yield opened
    assert stack("local_stack", "--instance", INSTANCE, "down").returncode == 0
    assert processes_of(opened) == []


@pytest.fixture(scope="module")
def demo(instance: Instance) -> dict[str, Any]:
    return run_demo()


@pytest.fixture(scope="module")
def env(instance: Instance, demo: dict[str, Any]) -> dict[str, str]:
    return settings.read(instance.env_file)


@pytest.fixture(scope="module")
def history(env: dict[str, str]) -> pd.DataFrame:
    return read_landing(Path(env["DATA_DIR"]) / "landing" / "transactions")


@pytest.fixture(scope="module")
def oracle(history: pd.DataFrame) -> FeatureOracle:
    return FeatureOracle(history)


def query(env: dict[str, str], prefix: str, statement: str) -> list[dict[str, Any]]:
    with summary.connect(env, prefix) as connection:
        return connection.cursor(row_factory=psycopg.rows.dict_row).execute(statement.encode()).fetchall()


def mismatches(expected: dict[str, float], found: dict[str, Any]) -> dict[str, tuple[float, Any]]:
    """Features that differ by more than the last bits of a double; sums may be added in another order."""
    assert set(expected) == set(found)
    return {
        name: (value, found[name])
        for name, value in expected.items()
        if found[name] is None or not math.isclose(value, found[name], rel_tol=1e-12, abs_tol=1e-12)
    }


def test_report_holds_what_it_promises(demo):
    assert demo["transactions"] > 0
    assert demo["frauds"] > 0
    for metric in ("auc_roc", "average_precision", "card_precision_100"):
        assert 0 < demo["fraud"][metric] <= 1
    assert demo["churn"]["auc_roc"] >= 0.84
    assert demo["fraud"]["champion_version"] == 1
    assert demo["churn"]["champion_version"] == 1
    assert demo["recommendation"]["champion_version"] == 1
    assert demo["recommendation"]["ndcg_at_10"] > 0
    assert demo["seconds"]
    assert all(seconds >= 0 for seconds in demo["seconds"].values())
    assert 0 < demo["peak_rss_mb"] < 6000
    for one in demo["decisions"]:
        assert {"request", "score", "decision", "reason_codes", "latency_ms"} <= set(one)


def test_counts_equal_the_landed_files(demo, history):
    assert demo["transactions"] == len(history)
    assert demo["frauds"] == int(history["is_fraud"].sum())


def test_dense_days_equal_the_oracles(demo, history):
    last = history["tx_datetime"].max().normalize() + pd.Timedelta(days=1)
    for key, name in (("customer_id", "customer days"), ("terminal_id", "terminal days")):
        first = history.groupby(key)["tx_datetime"].min().dt.normalize()
        assert demo["rows"][name] == int(((last - first).dt.days).sum()), name


@pytest.fixture(scope="module")
def records(demo: dict[str, Any], env: dict[str, str]) -> list[dict[str, Any]]:
    """The decision records the demo left behind, read before any test asks for a decision of its own.

    The recorder writes within seconds of the reply: after 30 s a record that is missing stays missing.
    """
    statement = "select request_id, score, decision, features from decisions.decision_records"
    asked = {one["request_id"] for one in demo["decisions"]}
    deadline = time.monotonic() + 30
    while True:
        rows = query(env, "DECISIONS_DB", statement)
        if asked <= {row["request_id"] for row in rows} or time.monotonic() > deadline:
            return rows
        time.sleep(0.2)


@pytest.fixture
def deployment(
    env: dict[str, str], records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What asks the demo's services as a deployment's smoke test asks those of a server."""
    assert records, "the demo's records are read first: these decisions are none of the demo's"
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/demo_api_key").write_text(env["DEMO_API_KEY"])
    monkeypatch.setenv("MLOPS_SERVERS_DIR", str(tmp_path))
    at = [part for name, variable in SERVICES.items() for part in ("--at", f"{name}={env[variable]}")]
    return ["smoke", "--server", "server3", "--wait", "20", "--only", ",".join(SERVICES), *at]


def test_the_smoke_test_of_a_deployment_passes(deployment, capsys):
    code, said = smoke.main(deployment), capsys.readouterr().out
    assert code == 0, said
    assert [line.split()[:3] for line in said.splitlines()] == [
        ["ok", probe.service, probe.path] for probe in smoke.PROBES if probe.service in SERVICES
    ]


def test_the_smoke_test_of_a_deployment_sees_a_wrong_key(deployment, tmp_path, capsys):
    (tmp_path / "secrets/demo_api_key").write_text("wrong")
    assert smoke.main([*deployment, "--wait", "0"]) == 1
    assert "FAILS fraud-detection-api /predict status 401" in capsys.readouterr().out


def test_every_subscriber_is_decided_and_every_viewer_gets_movies(demo, env):
    assert sum(demo["batch"]["churn_decisions"].values()) == demo["rows"]["subscribers"]
    ((viewers,),) = [
        row.values()
        for row in query(
            env, "FEATURE_STORE_DB", "select count(distinct viewer_id) from labels.fct_movie_ratings"
        )
    ]
    assert demo["batch"]["viewers_with_recommendations"] == viewers > 0


def test_batch_scores_rest_on_the_oracles_features(env, history, oracle):
    scored = query(
        env,
        "DECISIONS_DB",
        "select entity_key, data_date, features from scoring.batch_scores"
        " where model_name = 'fraud-detection-model'",
    )
    day = pd.Timestamp(scored[0]["data_date"], tz="UTC")
    of_day = history[history["tx_datetime"].dt.normalize() == day].set_index("transaction_id")
    assert {int(row["entity_key"]) for row in scored} == set(of_day.index)
    wrong = {}
    for row in scored:
        one = of_day.loc[int(row["entity_key"])]
        expected = oracle.features(
            one["customer_id"], one["terminal_id"], one["tx_datetime"], one["tx_amount"]
        )
        if found := mismatches(expected, row["features"]):
            wrong[row["entity_key"]] = found
    assert wrong == {}


def test_served_vectors_equal_the_oracles(demo, records, oracle):
    features = {row["request_id"]: row["features"] for row in records}
    served = [one for one in demo["decisions"] if one["service"] == "fraud"]
    assert len(served) >= 8
    for one in served:
        request = one["request"]
        at = pd.Timestamp(request["tx_datetime"])
        expected = oracle.features(request["customer_id"], request["terminal_id"], at, request["tx_amount"])
        assert mismatches(expected, features[one["request_id"]]) == {}, one["known_as"]


@pytest.mark.parametrize(
    ("model", "service"),
    [("fraud-detection-model", "fraud_detection_v1"), ("churn-prediction-model", "customer_churn_v1")],
)
def test_signature_bundle_and_contract_name_the_same_features(env, tmp_path, monkeypatch, model, service):
    monkeypatch.setenv("NO_PROXY", env["NO_PROXY"])
    mlflow.set_tracking_uri(env["MLFLOW_TRACKING_URI"])
    uri = f"models:/{model}@champion"
    contract = yaml.safe_load((CONTRACTS / f"{service}.yaml").read_text())
    names = [feature["name"] for feature in contract["features"]]
    assert mlflow.models.get_model_info(uri).signature.inputs.input_names() == names
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path))) / "artifacts/bundle"
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert [feature["name"] for feature in preprocessing["features"]] == names
    bundled = json.loads((folder / "feature_service.json").read_text())
    assert [feature["name"] for feature in bundled["features"]] == names
    assert set(json.loads((folder / "reference.json").read_text())) == {*names, "score"}


def test_every_decision_has_exactly_one_record(demo, records):
    recorded = {row["request_id"]: row for row in records}
    of_the_stream = [demo["stream"][when]["request_id"] for when in ("before", "after")]
    assert len(records) == len(recorded)
    assert set(recorded) == {one["request_id"] for one in demo["decisions"]} | set(of_the_stream)
    for one in demo["decisions"]:
        assert recorded[one["request_id"]]["score"] == one["score"]
        assert recorded[one["request_id"]]["decision"] == one["decision"]
        assert one["explanation"]["reproduced"], one["known_as"]
        assert one["explanation"]["replayed_score"] == pytest.approx(one["score"], abs=1e-9)


def test_the_movies_of_the_service_are_those_of_the_batch(demo, env):
    (asked,) = [one for one in demo["decisions"] if one["service"] == "recommendation"]
    viewer, movies = asked["request"]["viewer_id"], [movie["movie_id"] for movie in asked["movies"]]
    picked = query(
        env,
        "DECISIONS_DB",
        "select movie_id, score from scoring.batch_recommendations"
        f" where viewer_id = {viewer} order by data_date desc, rank limit {len(movies)}",
    )
    assert [row["movie_id"] for row in picked] == movies
    assert [row["score"] for row in picked] == pytest.approx(
        [movie["score"] for movie in asked["movies"]], abs=1e-4
    )
    assert all(movie["because_of"] for movie in asked["explanation"]["movies"])


def test_large_amounts_score_above_genuine_ones(demo):
    fraud = [one for one in demo["decisions"] if one["service"] == "fraud"]
    large = [one["score"] for one in fraud if one["known_as"] == "fraud: amount over 220"]
    genuine = [one["score"] for one in fraud if one["known_as"] == "genuine"]
    assert large
    assert min(large) > max(genuine)


def test_a_payment_is_a_served_feature_seconds_later(demo, oracle):
    stream = demo["stream"]
    for when, known in (("before", []), ("after", stream["payments"])):
        features = stream[when]["features"]
        at = pd.Timestamp(stream["payments"][-1]["tx_datetime"]) + pd.Timedelta(seconds=1)
        customer, terminal = stream["customer_id"], stream["terminal_id"]
        expected = oracle.features(customer, terminal, at, stream["payments"][0]["tx_amount"])
        for days in (1, 7, 30):
            count, mean = f"customer_tx_count_{days}d", f"customer_tx_amount_mean_{days}d"
            total = expected[count] * expected[mean] + sum(one["tx_amount"] for one in known)
            assert features[count] == expected[count] + len(known)
            assert features[mean] == pytest.approx(total / (expected[count] + len(known)), rel=1e-9)
            assert features[f"terminal_tx_count_{days}d"] == expected[f"terminal_tx_count_{days}d"] + len(
                known
            )


def test_strangers_are_answered_and_flagged(demo):
    (stranger,) = [one for one in demo["decisions"] if one["known_as"].startswith("unknown")]
    assert set(stranger["feature_status"].values()) == {"missing"}


def test_second_demo_compares_with_the_first_champion(demo, instance, env):
    again = run_demo()
    assert again["transactions"] == demo["transactions"]
    same_day = date.fromisoformat(again["today"]) == date.fromisoformat(demo["today"])
    if same_day:
        assert again["rows"] == demo["rows"]
    for model in ("fraud", "churn", "recommendation"):
        assert again[model]["challenger_version"] == 2
        assert again[model]["gate"]["reasons"]
        if same_day:
            assert again[model]["gate"]["verdict"] == "refuse"
            assert again[model]["champion_version"] == 1
