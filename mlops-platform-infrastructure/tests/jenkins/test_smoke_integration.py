"""The smoke test against services that really run: well as they are, and not well without a key."""

from __future__ import annotations

import os

import pytest

from server_tools import smoke

pytestmark = pytest.mark.integration
VARIABLES = {
    "fraud-detection-api": "FRAUD_API_URL",
    "customer-churn-api": "CHURN_API_URL",
    "movie-recommendation-api": "RECOMMENDATION_API_URL",
    "decision-page": "DECISION_PAGE_URL",
}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    if not all(name in os.environ for name in VARIABLES.values()):
        pytest.skip("the settings of a running stack with the services are not loaded")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/demo_api_key").write_text(os.environ["DEMO_API_KEY"])
    monkeypatch.setenv("MLOPS_SERVERS_DIR", str(tmp_path))
    at = [part for name, variable in VARIABLES.items() for part in ("--at", f"{name}={os.environ[variable]}")]
    return ["smoke", "--server", "server3", "--wait", "20", "--only", ",".join(VARIABLES), *at]


def test_running_services_pass(arguments, capsys):
    said = ""
    code = smoke.main(arguments)
    said = capsys.readouterr().out
    assert code == 0, said
    assert [line.split()[:3] for line in said.splitlines()] == [
        ["ok", probe.service, probe.path] for probe in smoke.PROBES if probe.service in VARIABLES
    ]


def test_a_wrong_key_is_seen(arguments, tmp_path, capsys):
    (tmp_path / "secrets/demo_api_key").write_text("wrong")
    assert smoke.main([*arguments, "--wait", "0"]) == 1
    assert "FAILS fraud-detection-api /predict status 401" in capsys.readouterr().out
