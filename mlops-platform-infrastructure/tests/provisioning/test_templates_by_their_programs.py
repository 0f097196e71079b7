"""The rendered files as their own programs see them: promtool, amtool, Debian's Redis."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_engine.base_images import PYTHON
from server_tools import render, render_templates

pytestmark = pytest.mark.engine
ADDRESSES = {"SERVER1_HOST": "10.0.0.1", "SERVER2_HOST": "10.0.0.2", "SERVER3_HOST": "10.0.0.3"}


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, apt_cache: str) -> Iterator[str]:
    """A Debian container with the programs, and the files of a set of servers in /config."""
    manifest = render_templates.read_manifest(render.TEMPLATES / "manifest.yml")
    values = render_templates.values(manifest, ADDRESSES)
    folder = tmp_path_factory.mktemp("config")
    for name, text in render_templates.render(render.TEMPLATES, manifest, values)[0].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    name = f"provisioning-{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            "docker", "run", "--detach", "--rm", "--init", "--name", name, "--volume", f"{folder}:/given:ro",
            "--volume", apt_cache, PYTHON, "sleep", "3600",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    done = run(
        name,
        "apt-get update -q && cp -r /given /config && apt-get install -q -y --no-install-recommends "
        "prometheus prometheus-alertmanager redis-server",
    )
    assert done.returncode == 0, done.stderr
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


def run(container: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "exec", container, "bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "command",
    [
        "promtool check config /config/prometheus/prometheus.yml",
        "promtool check rules /config/prometheus/rules/platform.yml",
        "amtool check-config /config/alertmanager/alertmanager.yml",
    ],
)
def test_the_services_own_tool_finds_nothing(container: str, command: str):
    done = run(container, command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong", "command"),
    [
        ("prometheus/prometheus.yml", "static_configs", "static_config", "promtool check config"),
        ("prometheus/rules/platform.yml", "time() -", "time( -", "promtool check rules"),
        ("alertmanager/alertmanager.yml", "- name: page", "- name: pages", "amtool check-config"),
    ],
)
def test_a_broken_file_is_found(container: str, file: str, right: str, wrong: str, command: str):
    copy = f"/config/{Path(file).parent}/broken"
    done = run(
        container,
        f"sed 's/{right}/{wrong}/' /config/{file} > {copy}; {command} {copy}; e=$?; rm {copy}; exit $e",
    )
    assert done.returncode != 0


# A disk that fills, a server that goes, a backup that is late: what comes after how long.
ALERTS = """
rule_files: [/config/prometheus/rules/platform.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="node",server="server2",instance="server2:9102"}', values: '1x4 0x30'}
      - {series: 'up{job="redis",server="server2",instance="redis-exporter:9121"}', values: '1x40'}
      - {series: 'node_filesystem_avail_bytes{server="server1",mountpoint="/"}', values: '10x60'}
      - {series: 'node_filesystem_size_bytes{server="server1",mountpoint="/"}', values: '100x60'}
      - {series: 'mlops_backup_last_success_timestamp_seconds{part="wal"}', values: '0x1700'}
      - {series: 'mlops_backup_last_success_timestamp_seconds{part="postgres"}', values: '0x1700'}
      - {series: 'mlops_backup_success{part="redis"}', values: '1x9 0x60'}
    alert_rule_test:
      - {eval_time: 4m, alertname: ServerDown, exp_alerts: []}
      - eval_time: 7m
        alertname: ServerDown
        exp_alerts:
          - exp_labels: {severity: critical, job: node, server: server2, instance: "server2:9102"}
            exp_annotations:
              summary: "server2 does not answer: machine, network or node exporter"
              runbook: docs/operations.md
      - {eval_time: 9m, alertname: DiskNearlyFull, exp_alerts: []}
      - eval_time: 11m
        alertname: DiskNearlyFull
        exp_alerts:
          - exp_labels: {severity: warning, server: server1, mountpoint: /}
            exp_annotations: {summary: "/ of server1 has 10 % left", runbook: docs/operations.md}
      - {eval_time: 180m, alertname: BackupTooOld, exp_alerts: []}
      - eval_time: 190m
        alertname: BackupTooOld
        exp_alerts:
          - exp_labels: {severity: critical, part: wal}
            exp_annotations: {summary: wal was last backed up 3h 10m 0s ago, runbook: docs/operations.md}
      - eval_time: 1630m
        alertname: BackupTooOld
        exp_alerts:
          - exp_labels: {severity: critical, part: wal}
            exp_annotations: {summary: wal was last backed up 1d 3h 10m 0s ago, runbook: docs/operations.md}
          - exp_labels: {severity: critical, part: postgres}
            exp_annotations:
              summary: postgres was last backed up 1d 3h 10m 0s ago
              runbook: docs/operations.md
      - {eval_time: 9m, alertname: BackupFailed, exp_alerts: []}
      - eval_time: 20m
        alertname: BackupFailed
        exp_alerts:
          - exp_labels: {severity: critical, part: redis}
            exp_annotations: {summary: "the newest backup of redis failed", runbook: docs/operations.md}
"""


def test_alerts_come_when_they_should_and_not_before(container: str):
    done = run(
        container, f"cat > /tmp/alerts.yml <<'END'\n{ALERTS}\nEND\npromtool test rules /tmp/alerts.yml"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    late = run(
        container,
        "sed 's/3 \\* 3600/9 * 3600/' -i /config/prometheus/rules/platform.yml; "
        "promtool test rules /tmp/alerts.yml; e=$?; "
        "cp /given/prometheus/rules/platform.yml /config/prometheus/rules/; exit $e",
    )
    assert late.returncode != 0, "an alert that comes hours later goes unnoticed"


def test_debians_redis_starts_with_the_file(container: str):
    done = run(
        container,
        "mkdir -p /run/secrets /data && echo 'requirepass of-the-test' > /run/secrets/redis_auth.conf && "
        "(redis-server /config/redis/redis.conf & echo $! > /tmp/pid) && sleep 1 && "
        "REDISCLI_AUTH=of-the-test redis-cli ping; redis-cli ping; kill $(cat /tmp/pid)",
    )
    assert "PONG" in done.stdout, done.stdout + done.stderr
    assert "NOAUTH" in done.stdout
