"""What Spark is started with, and the arithmetic of days around its jobs; no JVM here."""

import os
import stat
import subprocess
from datetime import date
from pathlib import Path

import pytest

from data_source_connectors.settings import SettingsError, read_settings
from data_transformation_pipelines.spark_jobs_feast.build_daily_windows import (
    asked_span,
    main,
    span_to_build,
)
from data_transformation_pipelines.spark_jobs_feast.command_errors import one_line
from data_transformation_pipelines.spark_jobs_feast.daily_windows import Span, first_raw_day
from data_transformation_pipelines.spark_jobs_feast.raw_sources import SourceError, date_of, day_number
from data_transformation_pipelines.spark_jobs_feast.spark_session import (
    MISSING,
    SparkSettings,
    configuration,
    java_home,
    java_script,
    postgresql_driver,
)


def test_javas_arguments_pass_but_for_those_it_lacks(tmp_path: Path):
    java = tmp_path / "the java's"
    java.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    java.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(java_script(java))
    script.chmod(0o755)
    given = ["-Xmx1g", MISSING[0], "-Dname=a b", MISSING[1], "Main", "'quoted'"]
    printed = subprocess.run([script, *given], capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed[-4:] == ["-Xmx1g", "-Dname=a b", "Main", "'quoted'"]
    assert not set(MISSING) & set(printed)


def test_a_machines_own_java_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAVA_HOME", "/usr/lib/jvm/java-21")
    assert java_home(tmp_path) == Path("/usr/lib/jvm/java-21")
    assert not list(tmp_path.iterdir())


def test_without_java_a_runnable_one_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    java = java_home(tmp_path) / "bin" / "java"
    assert java.stat().st_mode & stat.S_IXUSR
    assert [path.name for path in java.parent.iterdir()] == ["java"]


def test_local_sessions_listen_on_loopback_alone_and_in_bounded_memory(tmp_path: Path):
    conf = configuration(SparkSettings(master="local[2]", driver_memory="1g"), tmp_path)
    assert conf["spark.driver.bindAddress"] == conf["spark.driver.host"] == "127.0.0.1"
    assert conf["spark.ui.enabled"] == "false"
    assert conf["spark.driver.memory"] == "1g"
    assert conf["spark.sql.session.timeZone"] == "UTC"
    assert conf["spark.jars"] == str(postgresql_driver())


def test_a_clusters_driver_can_be_reached_by_its_executors(tmp_path: Path):
    conf = configuration(SparkSettings(master="spark://host:7077", jars="/jars/a.jar,/jars/b.jar"), tmp_path)
    assert not {"spark.driver.bindAddress", "spark.driver.host", "spark.local.dir"} & conf.keys()
    assert conf["spark.jars"].split(",") == [str(postgresql_driver()), "/jars/a.jar", "/jars/b.jar"]


def test_configuration_holds_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It stands on a command line, where every user of the machine can read it."""
    for name in list(os.environ):
        if "PASSWORD" in name or "SECRET" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("FEATURE_STORE_DB_PASSWORD", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert "hunter2" not in str(configuration(SparkSettings(), tmp_path))


def test_a_wrong_master_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARK_MASTER", "localhost:7077")
    with pytest.raises(SettingsError, match="SPARK_MASTER"):
        read_settings(SparkSettings)


def test_days_and_numbers_are_each_others_inverse():
    assert day_number(date(2018, 4, 1)) == 17_622
    assert date_of(17_622) == date(2018, 4, 1)


def test_a_span_reaches_as_far_back_as_its_oldest_label():
    assert first_raw_day(Span(100, 200), 7) == 63


@pytest.mark.parametrize(
    ("from_date", "to_date", "expected"),
    [
        (None, None, Span(11, 21)),
        (date_of(15), None, Span(15, 21)),
        (None, date_of(15), Span(11, 15)),
        (date_of(1), date_of(300), Span(11, 21)),
    ],
)
def test_rows_are_built_from_the_second_day_to_the_one_after_the_last(
    from_date: date | None, to_date: date | None, expected: Span
):
    assert span_to_build((10, 20), from_date, to_date) == expected


def test_days_without_rows_are_refused():
    with pytest.raises(SourceError, match="make rows from 1970-01-12 to 1970-01-22"):
        span_to_build((10, 20), date_of(22), None)


def test_days_asked_for_are_replaced_also_where_they_have_no_rows_now():
    assert asked_span(Span(11, 21), date_of(5), date_of(30)) == Span(5, 30)
    whole = asked_span(Span(11, 21), None, None)
    assert whole.first <= 0
    assert date_of(whole.last + 1) == date.max


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--source", "x"], "nothing to do"),
        (["--source", "x", "--out", "y", "--from-date", "2026-02-02", "--to-date", "2026-02-01"], "is after"),
        (["--source", "x", "--out", "postgresql:no;such"], "no schema's name"),
        (["--source", "x", "--out", "y", "--from-date", "yesterday"], "no date"),
    ],
)
def test_bad_options_are_told_in_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as left:
        main(options)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert complaint in told
    assert told.count("\n") == 1


def test_a_missing_setting_is_told_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("REPORTS_DIR", "reports")
    for name in ("HOST", "PORT", "NAME", "USER", "PASSWORD"):
        monkeypatch.delenv(f"FEATURE_STORE_DB_{name}", raising=False)
    assert main(["--source", "postgresql", "--out", "somewhere"]) == 2
    assert "FEATURE_STORE_DB_PASSWORD is not set" in capsys.readouterr().err


def test_a_javas_stack_becomes_its_first_line_and_its_cause():
    error = Exception(
        "An error occurred.\n: org.Outer: broke\n\tat a.b(C)\nCaused by: org.Inner: refused\n\tat d"
    )
    assert one_line(error) == "An error occurred. Caused by: org.Inner: refused"
