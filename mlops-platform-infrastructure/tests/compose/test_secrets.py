"""The generator: once, private, never over what stands."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest

from server_tools import secrets


def test_every_secret_is_made_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "servers" / "secrets"
    assert sorted(secrets.create(folder)) == sorted(secrets.NAMES)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in secrets.NAMES:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert ((folder / name).stat().st_uid, (folder / name).stat().st_gid) == secrets.owner()


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secrets.create(folder)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert secrets.create(folder) == []
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_two_sets_share_no_secret(tmp_path: Path) -> None:
    for name in ("a", "b"):
        secrets.create(tmp_path / name)
    for name in secrets.GENERATED:
        assert (tmp_path / "a" / name).read_text() != (tmp_path / "b" / name).read_text()
        assert len((tmp_path / "a" / name).read_text().strip()) >= 20


def test_what_is_derived_follows_a_changed_password(tmp_path: Path) -> None:
    secrets.create(tmp_path / "s")
    (tmp_path / "s" / "redis_password").write_text("another-one\n")
    assert set(secrets.create(tmp_path / "s")) == {"redis_auth.conf", "redis_exporter_passwords.json"}
    assert (tmp_path / "s" / "redis_auth.conf").read_text() == "requirepass another-one\n"


def test_the_key_file_holds_hashes_and_is_kept_as_people_changed_it(tmp_path: Path) -> None:
    secrets.create(tmp_path / "s")
    key = (tmp_path / "s" / "demo_api_key").read_text()
    (entry,) = json.loads((tmp_path / "s" / "api_keys.json").read_text())
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert key not in (tmp_path / "s" / "api_keys.json").read_text()
    (tmp_path / "s" / "api_keys.json").write_text("[]")
    (tmp_path / "s" / "jenkins_git_token").write_text("given by others")
    assert secrets.create(tmp_path / "s") == []
    assert (tmp_path / "s" / "jenkins_git_token").read_text() == "given by others"


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701])
def test_a_folder_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    folder.chmod(mode)
    with pytest.raises(secrets.SecretsError, match="others can read"):
        secrets.create(folder)
    assert list(folder.iterdir()) == []


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secrets.create(tmp_path / "s")
    (tmp_path / "s" / "redis_password").chmod(0o640)
    with pytest.raises(secrets.SecretsError, match="redis_password"):
        secrets.create(tmp_path / "s")


def test_a_link_in_the_folder_is_refused(tmp_path: Path) -> None:
    secrets.create(tmp_path / "s")
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "s" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(secrets.SecretsError, match="linked"):
        secrets.create(tmp_path / "s")


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    secrets.create(tmp_path / "s")
    (tmp_path / "s" / "redis_password").write_text("")
    with pytest.raises(secrets.SecretsError, match="empty"):
        secrets.create(tmp_path / "s")
