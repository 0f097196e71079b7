"""Settings, choices, metrics, targets and refusals of backup and restore."""

import doctest
import importlib
import pkgutil

import pytest

import server_tools.backup
from server_tools.backup import command_line, drill, drill_data, logical, metrics, postgres, targets
from server_tools.backup.errors import AmbiguousError, BackupError, DamagedError, NotEmptyError
from server_tools.backup.restic import Repository, Snapshot, damage, retention
from server_tools.backup.settings import Settings
from server_tools.backup.targets import Wanted

MODULES = [f"server_tools.backup.{each.name}" for each in pkgutil.iter_modules(server_tools.backup.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", ["agent", "logical", "postgres", "parts", "redis_stream", "restic"])
def test_what_the_image_runs_needs_the_standard_library_alone(name):
    import ast  # noqa: PLC0415
    import sys  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    source = Path(server_tools.backup.__path__[0], f"{name}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            assert module.split(".")[0] in sys.stdlib_module_names or module.startswith("server_tools.backup")


@pytest.mark.parametrize(
    ("name", "value"), [("BACKUP_PARTS", "postgres disks"), ("BACKUP_INTERVAL_SECONDS", "often"),
                        ("BACKUP_KEEP_DAILY", "0")],
)  # fmt: skip
def test_a_setting_that_can_t_be_is_named(name, value):
    with pytest.raises(BackupError, match=name):
        Settings.from_environment({name: value})


def test_nothing_is_stored_without_a_password(settings):
    with pytest.raises(BackupError, match="unencrypted"):
        Repository(settings)


def test_retention_follows_the_settings():
    words = retention(Settings.from_environment({"BACKUP_KEEP_DAILY": "3", "BACKUP_KEEP_WEEKLY": "9"}))
    assert words[words.index("--keep-daily") + 1] == "3"
    assert words[words.index("--keep-weekly") + 1] == "9"


def test_the_damaged_file_of_a_repository_is_named():
    pack = "ab" + "0" * 62
    assert damage(f"error: pack {pack} contains errors") == f"data/ab/{pack}"


def base(time: str, name: str) -> Snapshot:
    return Snapshot("f" * 64, time, {"part": "postgres", "incarnation": name, "wal": "0" * 24})


def test_the_newest_base_before_the_wanted_moment_is_taken():
    bases = [base(f"2026-11-{day}T00:00:00Z", "1-00000001") for day in (20, 21, 22)]
    assert postgres.choose_base(bases, None, None) == bases[2]
    assert postgres.choose_base(bases, "2026-11-21T12:00:00Z", None) == bases[1]
    with pytest.raises(BackupError, match="no base backup before"):
        postgres.choose_base(bases, "2026-11-19T00:00:00Z", None)


def test_an_empty_database_in_the_place_of_a_lost_one_is_not_restored():
    bases = [base("2026-11-20T00:00:00Z", "1-00000001"), base("2026-11-21T00:00:00Z", "2-00000001")]
    with pytest.raises(AmbiguousError, match="1-00000001"):
        postgres.choose_base(bases, None, None)
    assert postgres.choose_base(bases, None, "1-00000001") == bases[0]
    restored = [bases[0], base("2026-11-21T00:00:00Z", "1-00000002")]
    assert postgres.choose_base(restored, None, None) == restored[1]


def test_a_full_target_is_refused_and_put_aside_only_when_asked(tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "precious").write_text("rows")
    with pytest.raises(NotEmptyError, match="precious"):
        targets.work_folder(Wanted(target))
    assert (target / "precious").read_text() == "rows"
    work = targets.work_folder(Wanted(target, replace=True))
    (work / "content").mkdir()
    (work / "content" / "restored").touch()
    aside = targets.hand_over(work, work / "content", target)
    assert [path.name for path in target.iterdir()] == ["restored"]
    assert aside is not None
    assert (aside / "precious").read_text() == "rows"


def test_a_failed_backup_keeps_the_age_of_the_last_good_one(tmp_path):
    state = metrics.updated({}, "wal", {"time": 100.0, "bytes": 5.0})
    state = metrics.updated(state, "wal", None)
    metrics.write(tmp_path, state)
    text = (tmp_path / metrics.FILE).read_text()
    assert 'mlops_backup_success{part="wal"} 0' in text
    assert 'mlops_backup_last_success_timestamp_seconds{part="wal"} 100' in text
    assert metrics.load(tmp_path) == state


def test_a_missed_target_is_a_miss():
    found = drill.result("lost", 1, "rows", {"lost": "<= 0"})
    assert (found["met"], found["target"]) == (False, "<= 0")
    assert drill.result("other", 1, "rows", {})["met"] is None


def test_seconds_lost_reach_from_the_last_kept_write_to_the_last_acknowledged():
    assert drill_data.lost_seconds([1.0, 1.4, 2.5], 2) == pytest.approx(1.1)
    assert drill_data.lost_seconds([1.0, 1.4, 2.5], 0) == pytest.approx(1.5)


def test_a_sealed_dump_opens_with_its_key_alone_and_damage_is_found(tmp_path):
    dump, sealed = tmp_path / "dump", tmp_path / "dump.age"
    key = logical.new_key()
    dump.write_bytes(b"rows" * 1000)
    logical.seal(dump, sealed, key)
    assert sealed.stat().st_mode & 0o777 == 0o600
    assert b"rows" not in sealed.read_bytes()
    assert logical.unseal(sealed, key) == b"rows" * 1000
    with pytest.raises(DamagedError, match=r"dump\.age"):
        logical.unseal(sealed, logical.new_key())
    content = bytearray(sealed.read_bytes())
    content[-10] ^= 1
    sealed.write_bytes(content)
    with pytest.raises(DamagedError, match=r"dump\.age"):
        logical.unseal(sealed, key)


def test_a_logical_backup_names_the_setting_that_is_missing():
    with pytest.raises(BackupError, match="MLFLOW_DB_PASSWORD"):
        logical.back_up_mlflow({"MLFLOW_DB_HOST": "h", "MLFLOW_DB_PORT": "1", "MLFLOW_DB_NAME": "n",
                                "MLFLOW_DB_USER": "u", "DATA_DIR": "/nowhere"})  # fmt: skip


def test_every_part_has_a_place():
    from server_tools.backup.settings import PARTS  # noqa: PLC0415

    assert set(command_line.PLACES) == set(PARTS)
