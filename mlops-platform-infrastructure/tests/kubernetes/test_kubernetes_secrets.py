"""The Secrets of a cluster hold what the files hold, and nothing goes missing silently."""

from __future__ import annotations

import pytest
import yaml

from server_tools import kubernetes_secrets
from server_tools.kubernetes_secrets import SECRETS, MissingSecretError, manifests


@pytest.fixture
def folder(tmp_path):
    for each in SECRETS.values():
        for keys in each.values():
            for file in keys.values():
                (tmp_path / file).write_text(f"value of {file}\n")
    return tmp_path


def test_every_value_is_that_of_its_file_without_the_line_end(folder):
    documents = manifests(folder, SECRETS)
    assert len(documents) == sum(map(len, SECRETS.values()))
    for document in documents:
        space, name = document["metadata"]["namespace"], document["metadata"]["name"]
        expected = {key: f"value of {file}" for key, file in SECRETS[space][name].items()}
        assert document["stringData"] == expected


def test_a_service_gets_the_services_password_and_a_task_the_trainers():
    assert (
        SECRETS["mlops-services"]["platform-passwords"]["MLFLOW_TRACKING_PASSWORD"]
        == "mlflow_service_password"
    )
    assert (
        SECRETS["mlops-tasks"]["platform-passwords"]["MLFLOW_TRACKING_PASSWORD"] == "mlflow_trainer_password"
    )
    assert "FEATURE_STORE_DB_PASSWORD" not in SECRETS["mlops-services"]["platform-passwords"]


def test_a_text_of_several_lines_stays_as_it_is(folder):
    (folder / "api_keys.json").write_text("[\n {}\n]\n")
    found = manifests(folder, {"mlops-services": SECRETS["mlops-services"]})
    keys = next(d for d in found if d["metadata"]["name"] == "decision-service-api-keys")
    assert keys["stringData"] == {"api_keys.json": "[\n {}\n]\n"}


def test_files_that_are_missing_are_named_and_nothing_is_printed(folder, capsys, monkeypatch):
    monkeypatch.setattr(kubernetes_secrets.places, "secrets_dir", lambda: folder)
    (folder / "redis_password").unlink()
    with pytest.raises(MissingSecretError, match="redis_password"):
        manifests(folder, SECRETS)
    assert kubernetes_secrets.main(["kubernetes-secrets"]) == 1
    assert capsys.readouterr().out == ""


def test_the_command_prints_manifests_of_one_namespace(folder, capsys, monkeypatch):
    monkeypatch.setattr(kubernetes_secrets.places, "secrets_dir", lambda: folder)
    assert kubernetes_secrets.main(["kubernetes-secrets", "--namespace", "mlops-mlflow"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [d["metadata"]["name"] for d in printed] == ["mlflow-secrets", "mlflow-users"]
