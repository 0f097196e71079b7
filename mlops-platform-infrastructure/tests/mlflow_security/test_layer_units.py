"""The layer's parts without a server: paths, formats, roles, passwords, settings."""

from __future__ import annotations

import asyncio
import io
import json
import posixpath
import zipfile
from pathlib import Path
from urllib.parse import quote, unquote

import attacks
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_guard import bodies, command_line, formats, paths, routes, settings, users
from mlflow_guard.errors import ConfigurationError, RefusedError
from mlflow_guard.layer import Layer
from mlflow_guard.routes import Role
from mlflow_security_client import basic

ENVIRONMENT = {
    "MLFLOW_BACKEND_STORE_URI": "sqlite://",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
    "MLFLOW_SERVER_ALLOWED_HOSTS": "server2:5000",
}
PASSWORDS = {
    "MLFLOW_ADMIN_PASSWORD": "a-generated-password-1",
    "MLFLOW_TRAINER_PASSWORD": "a-generated-password-2",
    "MLFLOW_SERVICE_PASSWORD": "a-generated-password-3",
}


@pytest.mark.parametrize("path", attacks.ESCAPES.values())
def test_a_path_that_could_lead_out_is_refused_as_target_and_as_parameter(path):
    target = f"/api/2.0/mlflow-artifacts/artifacts/{path}".encode()

    def read() -> str:
        decoded = paths.request_path(target)
        return paths.artifact_path(decoded.removeprefix("/api/2.0/mlflow-artifacts/artifacts/"))

    with pytest.raises(RefusedError):
        read()
    if "%c0" not in path:  # a query's bytes are read strictly by the layer itself
        with pytest.raises(RefusedError):
            paths.artifact_path(unquote(path))


@pytest.mark.parametrize("encoded", ["a%2fb", "a%2Eb", "a%5cb", "a%25b", "a%00b", "a%7fb", "a b", "\u00e9"])
def test_what_has_no_reason_to_be_encoded_or_must_be_is_refused_on_every_route(encoded):
    with pytest.raises(RefusedError):
        paths.request_path(f"/{encoded}".encode())


_TRICKS = st.sampled_from(
    ["..", ".", "/", "\\", "%", "2e", "2f", "25", "5c", "00", ":", "file", "a", " ", ";", "?"]
)


@given(st.lists(_TRICKS, min_size=1, max_size=12).map("".join))
def test_what_is_accepted_stays_inside_however_often_it_is_decoded(text):
    try:
        accepted = paths.artifact_path(text)
    except RefusedError:
        return
    for _ in range(4):
        inside = posixpath.normpath(posixpath.join("/store", accepted))
        assert inside == "/store" or inside.startswith("/store/")
        assert "\\" not in accepted
        accepted = unquote(accepted)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="/\\%:"), min_size=1, max_size=8), max_size=5
    )
)
def test_ordinary_names_pass_and_come_back_as_they_were_sent(names):
    plain = [name for name in names if name.isprintable() and name.strip(" .") == name and name.strip()]
    path = "/".join(["runs", *plain])
    assert paths.request_path(quote(f"/{path}").encode()) == f"/{path}"
    assert paths.artifact_path(path, file=True) == path


@pytest.mark.parametrize("address", attacks.LOCAL_ADDRESSES)
def test_no_other_address_is_a_model_source(address):
    with pytest.raises(RefusedError):
        paths.model_source(address)


@pytest.mark.parametrize("address", ["models:/m-" + "a1" * 16, "mlflow-artifacts:/1/models/m-1/artifacts"])
def test_our_own_addresses_are(address):
    assert paths.model_source(address) == address


@pytest.mark.parametrize(("path", "content"), attacks.PICKLED_FILES.values(), ids=attacks.PICKLED_FILES)
def test_a_pickle_is_known_by_name_head_or_content(path, content):
    def check() -> None:
        formats.check_name(path)
        formats.check_head(content[: formats.HEAD_BYTES])
        if formats.must_be_read_whole(path, content):
            formats.check_content(path, io.BytesIO(content))

    with pytest.raises(RefusedError):
        check()


def test_arrays_of_data_pass_and_archives_that_are_cut_do_not():
    buffer = io.BytesIO()
    np.savez(
        buffer, a=np.zeros(3, "<f4"), b=np.zeros(2, [("x", "<i8")]), c=np.array(["text"]), d=np.array(True)
    )
    formats.check_content("model.npz", io.BytesIO(buffer.getvalue()))
    single = io.BytesIO()
    np.save(single, np.zeros((2, 2)))
    single.seek(0)
    formats.check_content("model.npy", single)
    for size in (20, len(buffer.getvalue()) - 30):
        with pytest.raises(RefusedError):
            formats.check_content("model.npz", io.BytesIO(buffer.getvalue()[:size]))
    with zipfile.ZipFile(io.BytesIO(), "w"), pytest.raises(RefusedError):
        formats.check_content("model.npy", io.BytesIO(b"\x93NUMPY"))


def test_the_platforms_own_mlmodel_passes():
    formats.check_mlmodel(
        attacks.MLMODEL.format(
            loader="mlflow.pyfunc.loaders.code_model",
            more="    code: code\n    model_code_path: /app/common_ml_utils/bundle_model.py\n"
            "    cloudpickle_version: 3.1.2\n",
        ).encode()
    )


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/api/2.0/mlflow/registered-models/alias", Role.SERVICE),
        ("HEAD", "/api/2.0/mlflow/registered-models/alias", Role.SERVICE),
        ("POST", "/api/2.0/mlflow/registered-models/alias", Role.TRAINER),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/a", Role.TRAINER),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/1/a", Role.ADMIN),
        ("POST", "/api/2.0/mlflow/experiments/delete", Role.ADMIN),
        ("POST", "/api/2.0/mlflow/webhooks", None),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/1/a", None),
        ("GET", "/api/2.0/mlflow-artifacts/presigned/1/a", None),
        ("TRACE", "/", None),
        ("GET", "/a/route/of/a/later/version", None),
    ],
)
def test_a_route_is_open_from_one_role_on_or_closed(method, path, role):
    assert routes.least_role(method, path) is role


def test_both_names_of_a_field_are_read_and_only_text_is_taken():
    assert bodies.field({"artifactLocation": "x"}, "artifact_location") == "x"
    for wrong in ({"source": 1}, {"source": "a", "Source": "b"}):
        with pytest.raises(RefusedError):
            bodies.field(wrong, "source")


@pytest.mark.parametrize("weak", ["", "password1234", "admin", "short", "aaaaaaaaaaaaaaaaaaaa", "service"])
def test_a_weak_or_missing_password_stops_init(tmp_path, weak):
    table = users.UserTable(f"sqlite:///{tmp_path}/users.db")
    for name in PASSWORDS:
        with pytest.raises(ConfigurationError):
            users.put_platform_users(table, {**PASSWORDS, name: weak})
    with pytest.raises(ConfigurationError, match="share"):
        users.put_platform_users(table, dict.fromkeys(PASSWORDS, "a-generated-password-1"))


def test_init_writes_once_and_takes_over_a_changed_password(tmp_path):
    table = users.UserTable(f"sqlite:///{tmp_path}/users.db")
    assert users.put_platform_users(table, PASSWORDS) == ["ops", "trainer", "service"]
    assert users.put_platform_users(table, PASSWORDS) == []
    changed = {**PASSWORDS, "MLFLOW_SERVICE_PASSWORD": "another-password-4"}
    assert users.put_platform_users(table, changed) == ["service"]
    directory = users.UserDirectory(table)
    assert directory.verify("service", "a-generated-password-3") is None
    assert directory.remembered("service", "another-password-4") is None
    found = directory.verify("service", "another-password-4")
    assert found is not None
    assert found.role is Role.SERVICE
    assert directory.remembered("service", "another-password-4") == found
    assert directory.remembered("service", "another-password-5") is None
    assert directory.remembered("ops", "another-password-4") is None
    assert b"another" not in Path(tmp_path, "users.db").read_bytes()


def test_the_server_does_not_start_without_users_or_with_a_well_known_password(tmp_path, monkeypatch, capsys):
    table = users.UserTable(f"sqlite:///{tmp_path}/users.db")
    with pytest.raises(ConfigurationError, match="no user"):
        users.check_before_start(table.read())
    users.put_platform_users(table, PASSWORDS)
    users.check_before_start(table.read())
    planted = users.User("admin", Role.ADMIN, users.hashed("password1234"))
    with pytest.raises(ConfigurationError, match="well-known"):
        users.check_before_start({**table.read(), "admin": planted})
    for name, value in {**ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/empty.db"}.items():
        monkeypatch.setenv(name, value)
    assert command_line.main(["serve"]) == 2
    assert "mlflow_guard init" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        {"MLFLOW_SERVER_ALLOWED_HOSTS": ""},
        {"MLFLOW_SERVER_ALLOWED_HOSTS": "*"},
        {"MLFLOW_SERVER_ALLOWED_HOSTS": "server2:5000,*.example.org"},
        {"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "*"},
        {"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://*.example.org"},
        {"MLFLOW_ARTIFACTS_DESTINATION": ""},
        {"MLFLOW_BACKEND_STORE_URI": ""},
        {"MLFLOW_MAX_UPLOAD_BYTES": "0"},
        {"MLFLOW_PORT": "-1"},
    ],
)
def test_unsafe_settings_are_refused(changed):
    settings.read(ENVIRONMENT)
    with pytest.raises(ConfigurationError):
        settings.read({**ENVIRONMENT, **changed})


def test_the_database_may_be_given_in_parts_whatever_its_password():
    parts = {"HOST": "server1", "PORT": "5432", "NAME": "mlflow", "USER": "mlflow", "PASSWORD": "a/b@c:d"}
    found = settings.database_uri({f"MLFLOW_DB_{name}": value for name, value in parts.items()})
    assert found == "postgresql+psycopg2://mlflow:a%2Fb%40c%3Ad@server1:5432/mlflow"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    table = users.UserTable(f"sqlite:///{tmp_path_factory.mktemp('users')}/users.db")
    users.put_platform_users(table, PASSWORDS)
    return users.UserDirectory(table)


def _ask(directory, headers, target=b"/api/2.0/mlflow/registered-models/search", method="GET"):
    """Ask the layer before an application that answers everything: status, whether it was asked, headers."""
    passed: list[str] = []
    sent: list = []

    async def application(scope, receive, send):
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"x")]})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    layer = Layer(application, settings.read(ENVIRONMENT), directory, lambda source: None)
    scope = {"type": "http", "method": method, "path": unquote(target.decode()), "raw_path": target,
             "query_string": b"", "headers": headers, "client": ("10.0.0.9", 1)}  # fmt: skip
    asyncio.run(layer(scope, receive, send))
    return sent[0]["status"], bool(passed), dict(sent[0]["headers"])


OURS = (b"host", b"server2:5000")
SERVICE = (b"authorization", basic("service", PASSWORDS["MLFLOW_SERVICE_PASSWORD"]).encode())


def test_only_what_is_right_in_every_respect_reaches_mlflow(directory):
    status, passed, headers = _ask(directory, [OURS, SERVICE])
    assert (status, passed) == (200, True)
    assert b"server" not in headers
    assert headers[b"x-content-type-options"] == b"nosniff"
    refused = {
        "no user": ([OURS], 401),
        "no host": ([SERVICE], 403),
        "another host": ([(b"host", b"evil.test"), SERVICE], 403),
        "two hosts": ([OURS, OURS, SERVICE], 400),
        "another origin": ([OURS, SERVICE, (b"origin", b"http://localhost:3000")], 403),
        "two users": ([OURS, SERVICE, SERVICE], 400),
        "a body": ([OURS, SERVICE, (b"content-length", b"2")], 400),
        "a chunked body": ([OURS, SERVICE, (b"transfer-encoding", b"chunked")], 400),
    }
    for name, (sent, expected) in refused.items():
        assert _ask(directory, sent)[:2] == (expected, False), name
    assert _ask(directory, [OURS, SERVICE], b"/api/2.0/mlflow/webhooks")[:2] == (403, False)
    assert _ask(directory, [OURS, SERVICE], b"/api/2.0/mlflow/runs/create", "POST")[:2] == (403, False)


def test_a_refusal_is_logged_without_secrets(directory, caplog):
    caplog.set_level("INFO")
    wrong = basic("service", "not-the-password-of-it").encode()
    _ask(directory, [OURS, (b"authorization", wrong)])
    (record,) = [json.loads(record.message) for record in caplog.records if record.name == "mlflow_guard"]
    assert record["status"] == 401
    assert record["client"] == "10.0.0.9"
    assert "not-the-password" not in caplog.text
    assert wrong.decode().split()[1] not in caplog.text
