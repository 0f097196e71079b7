from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from service_testkit import KEY, NARROW_KEY, write_keys

from common_service_libs import errors
from common_service_libs.auth_utils import ApiKeys
from common_service_libs.background import forever
from common_service_libs.base_api_config import DecisionSettings
from common_service_libs.error_handlers import PROBLEMS
from common_service_libs.json_logs import JsonFormatter, hashed


def test_a_key_is_known_by_its_hash_and_bounded_by_its_scopes(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json")
    assert KEY not in path.read_text()
    keys = ApiKeys(path)
    assert keys.authorize(KEY, "fraud:predict").name == "tests"
    with pytest.raises(errors.Forbidden, match="fraud:predict"):
        keys.authorize(NARROW_KEY, "fraud:predict")
    for key in (None, "", "another", KEY + " ", "ключ"):
        with pytest.raises(errors.Unauthenticated):
            keys.authorize(key, "fraud:predict")


def test_keys_rotate_without_a_restart_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json")
    keys = ApiKeys(path)
    path.write_text("{")
    os.utime(path, ns=(1, 1))
    keys.reload()
    keys.authorize(KEY, "fraud:read")
    path.write_text("[]")
    os.utime(path, ns=(2, 2))
    keys.reload()
    with pytest.raises(errors.Unauthenticated):
        keys.authorize(KEY, "fraud:read")
    path.unlink()
    keys.reload()


def test_a_file_that_holds_a_key_in_place_of_its_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"name": "x", "sha256": "plain-text-key", "scopes": []}]))
    with pytest.raises(ValueError, match="holds no SHA-256"):
        ApiKeys(path)


def _leaves(root: type) -> set[type]:
    below = root.__subclasses__()
    return set().union(*(_leaves(cls) for cls in below)) if below else {root}


def test_every_error_that_a_request_can_meet_is_mapped_to_http() -> None:
    branches = (errors.RequestError, errors.AccessError, errors.Unavailable)
    assert set().union(*(_leaves(branch) for branch in branches)) == set(PROBLEMS)
    slugs = [problem.slug for problem in PROBLEMS.values()]
    assert len(set(slugs)) == len(slugs)
    assert {problem.status for cls, problem in PROBLEMS.items() if issubclass(cls, errors.Unavailable)} == {
        503
    }


def test_the_tree_at_the_head_of_the_module_is_the_tree() -> None:
    drawn = {line.split("─ ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "─ " in line}
    defined = {
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.ServiceError) and cls is not errors.ServiceError
    }
    assert drawn == defined


def test_log_lines_are_json_with_extra_fields_and_exceptions() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x",
            logging.ERROR,
            "f",
            1,
            "hello %s",
            ("you",),
            None,
            extra={"request_id": "r", "odd": {1, 2}.__class__},
        )
        record.exc_info = sys.exc_info()
    line = json.loads(JsonFormatter("service").format(record))
    assert line["message"] == "hello you"
    assert line["service"] == "service"
    assert line["request_id"] == "r"
    assert line["time"].endswith("Z")
    assert "ValueError: broken" in line["exception"]


def test_entity_ids_are_hashed_for_logs() -> None:
    assert hashed({"customer_id": 596}) == hashed({"customer_id": 596})
    assert "596" not in json.dumps(hashed({"customer_id": 596}))
    assert hashed({"customer_id": 1}) != hashed({"terminal_id": 1})


def test_a_missing_setting_is_named_and_no_secret_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SPOOL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DECISIONS_DB_PASSWORD", "a-secret-password")
    with pytest.raises(ValidationError) as caught:
        DecisionSettings()
    assert "mlflow_tracking_uri" in str(caught.value)
    assert "a-secret-password" not in str(caught.value)
    settings = DecisionSettings(mlflow_tracking_uri="http://x", spool_dir=tmp_path)
    assert "a-secret-password" not in repr(settings)
    assert "a-secret-password" in settings.decisions_conninfo()


def test_background_work_is_begun_again_after_an_unforeseen_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("common_service_libs.background.PAUSE_SECONDS", 0)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise asyncio.CancelledError
        raise ValueError("unforeseen")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(forever(work))
    assert runs == 3
    assert caplog.text.count("unforeseen") >= 2
