"""Rendering: strict, deterministic, and checks that fail when something is not right."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from local_stack import wheels
from server_tools import places, render, render_files, render_templates
from server_tools.render_templates import File, Manifest, RenderError

ADDRESSES = "SERVER1_HOST=10.0.0.1\nSERVER2_HOST=10.0.0.2\nSERVER3_HOST=10.0.0.3\n"
MANIFEST = render_templates.read_manifest(render.TEMPLATES / "manifest.yml")
TAKING_ADDRESSES = Manifest(
    tuple(
        file
        for file in MANIFEST.files
        if file.output.startswith(("kibana", "alloy", "grafana/provisioning/d"))
    ),
    MANIFEST.settings,
)


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of servers that has its settings and nothing else."""
    monkeypatch.setenv("MLOPS_SERVERS_DIR", str(tmp_path))
    (tmp_path / "servers.env").write_text(ADDRESSES)
    return tmp_path


@pytest.fixture
def templates(tmp_path: Path, servers: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the templates that a test may break."""
    copy = tmp_path / "templates"
    shutil.copytree(render.TEMPLATES, copy)
    monkeypatch.setattr(render, "TEMPLATES", copy)
    return copy


def check() -> int:
    return render.main(["render", "--check"])


def rendered(name: str, **changes: Any) -> str:
    known = render_templates.values(MANIFEST, render_settings()) | changes
    return render_templates.render(render.TEMPLATES, MANIFEST, known)[0][name]


def render_settings() -> dict[str, str]:
    return dict(line.split("=") for line in ADDRESSES.split())


def test_rendering_twice_writes_once_and_the_check_agrees(servers: Path, capsys: pytest.CaptureFixture[str]):
    assert render.main(["render"]) == 0
    before = {path: path.read_bytes() for path in (servers / "config").rglob("*") if path.is_file()}
    assert len(before) == len(MANIFEST.files)
    capsys.readouterr()
    assert render.main(["render"]) == 0
    assert f"0 written, {len(before)} kept, 0 removed" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert check() == 0


def test_without_settings_the_error_says_how_to_get_them(servers: Path, capsys: pytest.CaptureFixture[str]):
    (servers / "servers.env").unlink()
    assert render.main(["render"]) == 1
    assert "make secrets writes it" in capsys.readouterr().err


def test_a_check_before_the_first_rendering_fails_and_writes_nothing(servers: Path):
    assert check() == 1
    assert not (servers / "config").exists()


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda folder: (folder / "redis/redis.conf").unlink(), "redis/redis.conf: not rendered"),
        (
            lambda folder: (folder / "loki/loki.yml").write_text("x: 1\n"),
            "loki/loki.yml: not what the templates and settings give now",
        ),
        (lambda folder: (folder / "redis/old.conf").write_text(""), "redis/old.conf: left over"),
        (lambda folder: (folder / "loki/loki.yml").chmod(0o666), "loki/loki.yml: mode 0666"),
        (
            lambda folder: (folder.parent / "servers.env").write_text(ADDRESSES + "REDIS_MAXMEMORI=2gb\n"),
            "servers.env sets REDIS_MAXMEMORI, which no template and no Compose file uses",
        ),
        (
            lambda folder: (folder.parent / "servers.env").write_text(ADDRESSES + "REDIS_MAXMEMORY=2gb\n"),
            "redis/redis.conf: not what",
        ),
    ],
)
def test_the_check_names_what_is_not_right(
    servers: Path, capsys: pytest.CaptureFixture[str], damage: Any, finding: str
):
    assert render.main(["render"]) == 0
    damage(servers / "config")
    capsys.readouterr()
    assert check() == 1
    assert finding in capsys.readouterr().err


def test_rendering_puts_right_what_the_check_names(servers: Path):
    render.main(["render"])
    (servers / "config/redis/old.conf").write_text("")
    (servers / "config/redis/redis.conf").write_text("changed by hand\n")
    (servers / "config/loki/loki.yml").chmod(0o600)
    assert render.main(["render"]) == 0
    assert check() == 0
    assert not (servers / "config/redis/old.conf").exists()


@pytest.mark.parametrize(
    "case",
    [
        (
            "redis/redis.conf.j2",
            "{{ NOT_DECLARED }}\n",
            "uses NOT_DECLARED, which manifest.yml does not declare",
        ),
        ("redis/redis.conf.j2", "{{ REDIS_MAXMEMORY.nothing }}\n", "has no attribute"),
        ("redis/redis.conf.j2", "{% if %}\n", "redis/redis.conf.j2:"),
        ("redis/redis.conf.j2", "maxmemory {{ '{{ REDIS }}' }}\n", "left over: {{"),
        ("redis/redis.conf.j2", "port 6379\nport 6380\n", "port stands twice"),
        ("redis/redis.conf.j2", "maxclients\n", "no directive with a value"),
        ("loki/loki.yml.j2", "a: [1\n", "is no yaml file"),
        ("loki/loki.yml.j2", "a: 1\nb: 2\na: 3\n", "the key 'a' stands twice"),
        ("airflow/airflow.cfg.j2", "[core]\nx = 1\nx = 2\n", "is no ini file"),
        ("postgresql/postgresql.conf.j2", "port 5432\n", "is no `name = value`"),
        ("postgresql/pg_hba.conf.j2", "host all all all trust\n", "trust is not allowed here"),
        ("postgresql/pg_hba.conf.j2", "host a a 10.0.0.0/8 scram-sha-256\n", "must reject everybody else"),
        ("filebeat/ilm_policy.json.j2", '{"a": 1,}\n', "is no json file"),
        ("alloy/config.alloy.j2", 'a "b" {\n', "a block is not closed"),
        ("redis/redis.conf.j2", "port 6379\n", "declares REDIS_MAXMEMORY, which no template uses"),
        ("redis/notes.j2", "port 6379\n", "redis/notes.j2 is in no entry of manifest.yml"),
    ],
)
def test_a_broken_template_writes_nothing(
    servers: Path, templates: Path, capsys: pytest.CaptureFixture[str], case: tuple[str, str, str]
):
    file, text, finding = case
    (templates / file).write_text(text)
    assert render.main(["render"]) == 1
    assert finding in capsys.readouterr().err
    assert not (servers / "config").exists()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("SERVER1_HOST=db.example.org", "no IP address"),
        ("REDIS_MAXMEMORY=", "REDIS_MAXMEMORY is empty"),
        ("AIRFLOW_PARALLELISM=many", "a whole number is needed"),
        ("ALERT_WEBHOOK=yes", "true or false"),
        ("GRAFANA", "no KEY=value"),
        ("REDIS_MAXMEMORY='1gb", "No closing quotation"),
        ("KIBANA_PUBLIC_URL={{x}}", "would break the files"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(
    servers: Path, capsys: pytest.CaptureFixture[str], line: str, cause: str
):
    (servers / "servers.env").write_text(ADDRESSES + line + "\n")
    assert render.main(["render"]) == 1
    assert cause in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30))
def test_no_text_setting_can_break_a_file(text: str):
    """Whatever is given is refused, or every file still reads as what it is."""
    given_settings = render_settings() | {
        "KIBANA_PUBLIC_URL": text,
        "ELASTICSEARCH_URL": text,
        "LOKI_URL": text,
    }
    try:
        known = render_templates.values(MANIFEST, given_settings)
    except RenderError:
        return
    texts, _ = render_templates.render(render.TEMPLATES, TAKING_ADDRESSES, known)
    assert render.findings_of_texts(TAKING_ADDRESSES, texts) == []


def test_no_secret_can_reach_a_file(servers: Path):
    """Files may be read by anybody, so none may take a value that is a secret: they name its file instead."""
    words = ("PASSWORD", "SECRET", "TOKEN", "_KEY")
    assert [name for name in MANIFEST.settings if any(word in name for word in words)] == []
    assert render.main(["render"]) == 0
    for path in (servers / "config").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


def test_prometheus_asks_every_server_and_every_service():
    config = yaml.safe_load(rendered("prometheus/prometheus.yml"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    nodes = {entry["labels"]["server"]: entry["targets"] for entry in jobs["node"]["static_configs"]}
    assert nodes == {"server1": ["server1:9101"], "server2": ["server2:9102"], "server3": ["server3:9103"]}
    services = {entry["labels"]["service"] for entry in jobs["model-services"]["static_configs"]}
    assert services == {"fraud-api", "churn-api", "recommendation-api"}


def test_what_prometheus_asks_is_what_compose_starts_or_publishes():
    config = yaml.safe_load(rendered("prometheus/prometheus.yml"))
    targets = {
        target
        for job in config["scrape_configs"]
        for entry in job["static_configs"]
        for target in entry["targets"]
        if not target.startswith("localhost")
    }
    services: set[str] = set()
    published: set[str] = set()
    for path in places.SETUPS.rglob("*.yml"):
        content = yaml.safe_load(path.read_text()) or {}
        services_here = content.get("services") if isinstance(content, dict) else None
        for name, service in (services_here or {}).items():
            services.add(name)
            for port in service.get("ports") or []:
                words = str(port).rsplit(":", 2)
                published.add(f"server{words[0][8:9]}:{words[1]}" if words[0].startswith("${SERVER") else "")
    for target in targets:
        name = target.split(":")[0]
        assert (target in published) if name.startswith("server") else (name in services), target


def test_alerts_say_what_to_do_and_keep_prometheus_own_expressions():
    rules = yaml.safe_load(rendered("prometheus/rules/platform.yml", ALERT_DISK_FREE_PERCENT=7))["groups"][0][
        "rules"
    ]
    names = {rule["alert"] for rule in rules}
    assert {"ServerDown", "DiskNearlyFull", "BackupTooOld", "BackupFailed"} <= names
    disk = next(rule for rule in rules if rule["alert"] == "DiskNearlyFull")
    assert disk["expr"].endswith("< 7")
    assert "{{ $labels.mountpoint }}" in disk["annotations"]["summary"]
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["runbook"] == "docs/operations.md"


def test_alerts_reach_the_webhook_only_when_one_is_set():
    quiet = yaml.safe_load(rendered("alertmanager/alertmanager.yml"))
    loud = yaml.safe_load(rendered("alertmanager/alertmanager.yml", ALERT_WEBHOOK=True))
    assert quiet["route"]["receiver"] == "page"
    assert loud["route"]["receiver"] == "webhook"
    assert loud["receivers"][1]["webhook_configs"][0]["url_file"] == "/run/secrets/alert_webhook_url"


def test_postgresql_lets_servers_in_by_password_and_each_role_to_its_own_database():
    lines = [
        line.split() for line in rendered("postgresql/pg_hba.conf").splitlines() if line[:1] not in {"#", ""}
    ]
    assert ["host", "mlflow", "mlflow", "10.0.0.2/32", "scram-sha-256"] in lines
    assert ["host", "mlflow", "mlflow_backup", "10.0.0.2/32", "scram-sha-256"] in lines
    assert {database for _, database, user, *_ in lines if user == "mlflow_backup"} == {"mlflow"}
    assert ["host", "replication", "backup", "10.0.0.1/32", "scram-sha-256"] in lines
    assert lines[-1] == ["host", "all", "all", "all", "reject"]
    for kind, database, user, *_ in lines[:-1]:
        if user in {"feature_store", "decisions", "mlflow", "airflow"}:
            assert (kind, database) == ("host", user)
        if database == "all":
            assert user == "postgres"


def test_every_airflow_option_is_one_that_airflow_knows():
    """Compared with the list that the orchestration root's Airflow brings."""
    environment = Path(os.environ.get("LOCAL_DIR") or places.REPOSITORY / ".local") / "venvs"
    known = list(
        environment.glob(
            "mlops-orchestration-pipelines/lib/python*/site-packages/airflow/config_templates/config.yml"
        )
    )
    if not known:
        pytest.skip("the orchestration root is not set up here")
    options = {
        (section, option): entry
        for section, content in yaml.safe_load(known[0].read_text()).items()
        for option, entry in content["options"].items()
    }
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(rendered("airflow/airflow.cfg"))
    given_options = {(section, option) for section in parser.sections() for option in parser[section]}
    assert len(given_options) > 20
    assert sorted(given_options - set(options)) == []
    assert sorted(name for name in given_options if options[name].get("deprecation_reason")) == []


def test_redis_starts_with_its_file_and_refuses_what_it_should(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "auth.conf").write_text("requirepass secret-of-the-test\n")
    text = rendered("redis/redis.conf", REDIS_MAXMEMORY="64mb")
    for old, new in (
        ("port 6379", f"port {port}"),
        ("bind * -::*", "bind 127.0.0.1"),
        ("/run/secrets/redis_auth.conf", str(tmp_path / "auth.conf")),
        ("dir /data", f"dir {tmp_path}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "redis.conf").write_text(text)
    server = subprocess.Popen(
        [str(wheels.valkey()), str(tmp_path / "redis.conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        client = redis.Redis(port=port, password="secret-of-the-test", retry=Retry(ConstantBackoff(0.1), 50))
        assert client.ping()
        told = client.info()
        assert (told["maxmemory"], told["aof_enabled"]) == (64 * 2**20, 1)
        with pytest.raises(redis.ResponseError, match="protected config"):
            client.config_set("dir", "/tmp")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, retry=Retry(NoBackoff(), 0)).ping()
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_postgresql_reads_both_its_files(tmp_path: Path):
    for name in ("postgresql.conf", "pg_hba.conf"):
        (tmp_path / name).write_text(rendered(f"postgresql/{name}", POSTGRES_SHARED_BUFFERS="128MB"))

    # `-C` reads the whole file and refuses a name or value that this version doesn't know.
    def ask(setting: str, file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [wheels.postgres("postgres"), "-C", setting, "-c", f"config_file={file}"],
            env={"PGDATA": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    answer = ask("max_slot_wal_keep_size", tmp_path / "postgresql.conf")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "8192"  # MB
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("max_wall_size = '4GB'\n")
    assert ask("max_connections", wrong).returncode != 0


def test_leftovers_are_found_where_they_matter():
    file = File("a.j2", "a.yml", "yaml")
    rules = File("r.j2", "r.yml", "yaml", "promtool-rules")
    assert render_files.leftovers(file, "a: {b: {c: 1}}\n") == []
    assert render_files.leftovers(file, "a: x\nb: {{ NAME }}\n") == [(2, "{{")]
    assert render_files.leftovers(rules, "summary: {{ $labels.server }} has {{ $value | humanize }}\n") == []
    assert render_files.leftovers(rules, "summary: {{ SERVER }}\n") == [(1, "{{")]
