from __future__ import annotations

import base64
import hashlib
import json
import stat
from pathlib import Path

from local_stack import credentials


def test_secrets_are_generated_once_distinct_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = credentials.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(first) == set(credentials.GENERATORS)
    assert len(set(first.values())) == len(first)
    assert min(len(value) for value in first.values()) >= 20
    assert credentials.load_or_create(path) == first


def test_two_instances_share_no_secret(tmp_path: Path) -> None:
    one = credentials.load_or_create(tmp_path / "one.json")
    two = credentials.load_or_create(tmp_path / "two.json")
    assert not set(one.values()) & set(two.values())


def test_a_new_kind_of_secret_is_added_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"redis": "kept"}))
    made = credentials.load_or_create(path)
    assert made["redis"] == "kept"
    assert json.loads(path.read_text()) == made
    assert set(made) == set(credentials.GENERATORS)


def test_airflow_key_is_a_fernet_key(tmp_path: Path) -> None:
    key = credentials.load_or_create(tmp_path / "secrets.json")["airflow_fernet"]
    assert len(base64.urlsafe_b64decode(key)) == 32


def test_the_key_file_of_the_services_holds_hashes_only() -> None:
    document = credentials.api_keys_document("the-demo-key")
    assert "the-demo-key" not in document
    (entry,) = json.loads(document)
    assert entry["sha256"] == hashlib.sha256(b"the-demo-key").hexdigest()
    assert set(entry) == {"name", "sha256", "scopes"}
    assert {"fraud:predict", "churn:predict", "recommendation:predict"} <= set(entry["scopes"])
