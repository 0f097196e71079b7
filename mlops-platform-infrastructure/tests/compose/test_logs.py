"""Logs of every server go to Elasticsearch: who sends them, with which right, to where; nothing is run."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from server_tools import places, policy, render, render_templates

ACCOUNTS = places.SETUPS / "monitoring_stack/set_accounts.sh"
ADDRESSES = {f"SERVER{number}_HOST": f"10.0.0.{number}" for number in "123"}
Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def servers() -> dict[str, Services]:
    environment = policy.sample_environment() | ADDRESSES
    return {n: policy.resolve(places.SETUPS / f"server{n}.yml", environment)["services"] for n in "123"}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What Filebeat is told, as it is rendered for three servers."""
    manifest = render_templates.read_manifest(render.TEMPLATES / "manifest.yml")
    values = render_templates.values(manifest, ADDRESSES)
    texts, _ = render_templates.render(render.TEMPLATES, manifest, values)
    read: dict[str, Any] = yaml.safe_load(texts["filebeat/filebeat.yml"])
    return read


def test_every_server_sends_its_logs_under_its_own_name(
    servers: dict[str, Services], told: dict[str, Any]
) -> None:
    senders = [dict(servers[number]["filebeat"]) for number in "123"]
    names = [sender.pop("environment")["SERVER_NAME"] for sender in senders]
    assert names == ["server1", "server2", "server3"]
    assert senders[0] == senders[1] == senders[2]
    assert told["name"] == "${SERVER_NAME}"


def test_logs_are_sent_where_elasticsearch_is_published(
    servers: dict[str, Services], told: dict[str, Any]
) -> None:
    (port,) = servers["3"]["elasticsearch"]["ports"]
    assert (port["host_ip"], port["published"]) == (ADDRESSES["SERVER3_HOST"], "9200")
    assert told["output.elasticsearch"]["hosts"] == ["http://server3:9200"]
    for services in servers.values():
        assert "server3=10.0.0.3" in services["filebeat"]["extra_hosts"]
        assert "edge" in services["filebeat"]["networks"]


def test_the_senders_have_the_account_that_writes_and_no_other(
    servers: dict[str, Services], told: dict[str, Any]
) -> None:
    output = told["output.elasticsearch"]
    assert (output["username"], output["password"]) == ("filebeat", "${FILEBEAT_PASSWORD}")
    for services in servers.values():
        assert [secret["source"] for secret in services["filebeat"]["secrets"]] == ["filebeat_password"]
        assert "export FILEBEAT_PASSWORD=" in services["filebeat"]["entrypoint"][2]


def test_how_far_it_read_outlives_the_container(servers: dict[str, Services], told: dict[str, Any]) -> None:
    """The file system is read-only, and there is no capability to write where it is not the owner."""
    for services in servers.values():
        sender, owner = services["filebeat"], services["filebeat-volumes"]
        volumes = {each["target"]: each["source"] for each in sender["volumes"] if each["type"] == "volume"}
        assert volumes == {told["path.data"]: "filebeat-data"}
        assert owner["entrypoint"] == ["chown", sender["user"]]


class Asked(NamedTuple):
    """One request that the stand-in for Elasticsearch got."""

    call: str
    user: str
    body: Any


@pytest.fixture
def elasticsearch() -> Iterator[tuple[str, list[Asked]]]:
    """Keep what is asked, and agree to all of it."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            user = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
            asked.append(Asked(f"{self.command} {self.path}", user, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script asks with curl, which is not here")
def test_accounts_get_their_passwords_and_filebeat_may_write_logs_alone(
    tmp_path: Path, elasticsearch: tuple[str, list[Asked]]
) -> None:
    url, asked = elasticsearch
    for name in ("elastic_password", "kibana_system_password", "filebeat_password"):
        (tmp_path / name).write_text(f"{name}-x_1\n")
    script = ACCOUNTS.read_text().replace("/run/secrets", str(tmp_path))
    script = script.replace("http://elasticsearch:9200", url)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "password-x_1" not in done.stdout
    assert {request.user for request in asked} == {"elastic:elastic_password-x_1"}
    bodies = {request.call: request.body for request in asked}
    role = bodies.pop("PUT /_security/role/filebeat")
    assert bodies == {
        "POST /_security/user/kibana_system/_password": {"password": "kibana_system_password-x_1"},
        "PUT /_security/user/filebeat": {"password": "filebeat_password-x_1", "roles": ["filebeat"]},
    }
    assert role["indices"] == [
        {"names": ["filebeat-*"], "privileges": ["auto_configure", "create_doc", "manage"]}
    ]
    assert not re.search(r'"(all|manage|manage_security)"', json.dumps(role["cluster"]))
