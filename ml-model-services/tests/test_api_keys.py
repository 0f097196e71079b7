from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common_service_libs.auth_utils import ApiKeys, RateLimit, read_clients
from common_service_libs.errors import Forbidden, Unauthenticated
from common_service_libs.security.key_file import key_id, moment, new_key, revoke, rotate

ROOT = Path(__file__).parents[1]
HOUR = timedelta(hours=1)


def command(*arguments: str, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common_service_libs.auth_utils", *arguments],
        env={"PYTHONPATH": str(ROOT), "API_KEYS_FILE": str(file)}, cwd=file.parent,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_prints_a_key_once_and_the_file_holds_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    done = command("new-key", "--name", "desk", "--scope", "fraud:predict", "--expires", "90d", file=path)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert len(key) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key not in path.read_text() + done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["keys.json"]
    [client] = read_clients(path)
    assert client.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert client.expires_at is not None
    assert abs(client.expires_at - datetime.now(UTC) - timedelta(days=90)) < HOUR
    assert ApiKeys(path).authorize(key, "fraud:predict").name == "desk"

    listed = command("list", file=path)
    assert key_id(client) in listed.stdout
    assert key not in listed.stdout
    wrong = command("revoke", "--id", "0" * 12, file=path)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert command("revoke", "--name", "desk", file=path).returncode == 0
    assert json.loads(path.read_text()) == []


def test_a_file_that_others_can_read_is_closed_to_them_by_the_next_change(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("[]")
    path.chmod(0o644)
    new_key(path, "desk", ["fraud:read"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_good_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    path, now = tmp_path / "keys.json", datetime.now(UTC)
    early, _ = new_key(path, "early", ["s"], not_before=now + HOUR)
    good, _ = new_key(path, "good", ["s"], not_before=now - HOUR, expires_at=now + HOUR)
    late, client = new_key(path, "late", ["s"])
    entries = json.loads(path.read_text())
    entries[2]["expires_at"] = (now - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps(entries))
    keys = ApiKeys(path)
    assert keys.authorize(good, "s").name == "good"
    for key in (early, late):
        with pytest.raises(Unauthenticated, match="expired or is not valid yet"):
            keys.authorize(key, "s")
    with pytest.raises(ValueError, match="never be valid"):
        new_key(path, "x", ["s"], expires_at=now - HOUR)
    assert client.name == "late"


def test_rotation_leaves_the_old_key_valid_for_a_while_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    old, _ = new_key(path, "desk", ["fraud:read"], rate_limit=RateLimit(5, 10))
    other, _ = new_key(path, "other", ["fraud:read"])
    new, client = rotate(path, "desk", HOUR)
    keys = ApiKeys(path)
    assert keys.authorize(old, "fraud:read").name == keys.authorize(new, "fraud:read").name == "desk"
    assert client.rate_limit == RateLimit(5, 10)
    ends = {entry.name: entry.expires_at for entry in read_clients(path) if entry.sha256 != client.sha256}
    assert ends["other"] is None
    assert ends["desk"] is not None
    assert abs(ends["desk"] - datetime.now(UTC) - HOUR) < timedelta(minutes=1)

    first = next(entry for entry in read_clients(path) if entry.name == "desk")
    assert revoke(path, identity=key_id(first)) == [first]
    os.utime(path, ns=(1, 1))
    keys.reload()
    with pytest.raises(Unauthenticated):
        keys.authorize(old, "fraud:read")
    assert keys.authorize(new, "fraud:read")
    assert keys.authorize(other, "fraud:read")
    with pytest.raises(Forbidden):
        keys.authorize(new, "fraud:predict")


def test_two_editors_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=new_key, args=(path, f"c{n}", ["s"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {client.name for client in read_clients(path)} == {f"c{n}" for n in range(8)}


def test_a_file_is_left_alone_if_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{broken")
    with pytest.raises(ValueError, match="Expected `array`"):
        new_key(path, "x", ["s"])
    assert path.read_text() == "{broken"


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00", "soon", "12", "-3d"])
def test_a_time_is_unmistakable(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        moment(text)


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": "2030-01-31T12:00:00"},
        {"rate_limit": {"per_second": -1, "burst": 1}},
        {"scopes": "fraud"},
    ],
)
def test_an_entry_that_is_not_as_documented_is_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "keys.json"
    new_key(path, "x", ["s"])
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=r".+"):
        ApiKeys(path)
