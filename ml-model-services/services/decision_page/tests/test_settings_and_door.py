from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from app.core.config import PageConfig
from app.core.guard import FAILURES, Password, hosts_of
from app.core.services import Services
from app.main import create_app, main
from conftest import KEY
from fastapi.testclient import TestClient
from pydantic import ValidationError

DIGEST = hashlib.sha256(b"open sesame").hexdigest()
GUARDED = {"page_user": "ann", "page_password_sha256": DIGEST}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PageConfig.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("DEMO_API_KEY", raising=False)


def config(**changes: object) -> PageConfig:
    return PageConfig(**({"page_api_key": KEY, "movies_file": None} | changes))


def test_the_demo_key_stands_in_for_the_pages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_API_KEY", "demo")
    assert PageConfig().page_api_key.get_secret_value() == "demo"
    monkeypatch.setenv("PAGE_API_KEY", "own")
    settings = PageConfig()
    assert settings.page_api_key.get_secret_value() == "own"
    assert "own" not in repr(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_host": "0.0.0.0"}, "needed to bind to other than loopback"),
        ({"page_host": "pages.example"}, "needed to bind to other than loopback"),
        ({"page_user": "ann"}, "together or not at all"),
        ({"page_password_sha256": DIGEST}, "together or not at all"),
        ({"page_user": "ann", "page_password_sha256": "open sesame"}, "no SHA-256"),
        ({"fraud_api_url": "ftp://x"}, "string should match pattern"),
        ({"fraud_api_url": "http://user:secret@x"}, "string should match pattern"),
    ],
)
def test_unsafe_settings_are_refused_without_their_values(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**changes)
    assert message.lower() in str(caught.value).lower()
    assert "sesame" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("page_password", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_password(host: str) -> None:
    assert config(page_host=host).on_loopback
    assert config(page_host="0.0.0.0", **GUARDED).page_user == "ann"


def test_without_a_key_the_start_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="PAGE_API_KEY field required"):
        main()


def test_a_file_of_titles_that_is_not_there_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGE_API_KEY", KEY)
    monkeypatch.setenv("MOVIES_FILE", str(tmp_path / "nowhere.csv.gz"))
    with pytest.raises(SystemExit, match=r"cannot start: .*nowhere"):
        main()


def test_after_some_wrong_passwords_nobody_comes_in_for_a_minute() -> None:
    now = [0.0]
    password = Password("ann", DIGEST, clock=lambda: now[0])
    assert password("ann", "open sesame")
    assert not password("bob", "open sesame")
    for _ in range(FAILURES - 1):
        assert not password("ann", "guess")
    assert not password("ann", "open sesame")
    now[0] = 61.0
    assert password("ann", "open sesame")


@pytest.fixture(scope="module")
def app_on_loopback() -> TestClient:
    settings = PageConfig(page_api_key=KEY, movies_file=None)
    return TestClient(
        create_app(settings, Services.from_settings(settings)), base_url="http://127.0.0.1:7860"
    )


def test_the_page_is_served_with_its_headers_and_without_the_key(app_on_loopback: TestClient) -> None:
    found = app_on_loopback.get("/")
    assert found.status_code == 200
    policy = found.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    for path in ("/", "/config", "/theme.css", "/livez"):
        assert KEY not in app_on_loopback.get(path).text, path


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/openapi.json",
        "/gradio_api/info",
        "/gradio_api/call/score",
        "/gradio_api/run/predict",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/gradio_api/dev/reload",
    ],
)
def test_what_the_page_does_not_need_is_not_there(app_on_loopback: TestClient, path: str) -> None:
    assert app_on_loopback.get(path).status_code == 404
    assert app_on_loopback.post(path).status_code == 404


def test_another_host_name_an_odd_method_and_a_large_body_are_refused(app_on_loopback: TestClient) -> None:
    assert app_on_loopback.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert app_on_loopback.get("/", headers={"Host": "localhost:7860"}).status_code == 200
    assert app_on_loopback.put("/").status_code == 405
    large = b"x" * 70_000
    assert app_on_loopback.post("/gradio_api/queue/join", content=large).status_code == 413
    unknown = (part for part in (b"x",))
    assert app_on_loopback.post("/gradio_api/queue/join", content=unknown).status_code == 413


def test_with_a_password_only_those_who_know_it_see_anything() -> None:
    settings = PageConfig(page_host="0.0.0.0", page_api_key=KEY, movies_file=None, **GUARDED)
    assert hosts_of(settings) is None
    client = TestClient(create_app(settings), base_url="https://page.example")
    assert client.get("/config").status_code == 401
    assert client.post("/gradio_api/queue/join", json={"fn_index": 0, "data": []}).status_code == 401
    wrong = client.post("/login", data={"username": "ann", "password": "guess"})
    assert wrong.status_code == 400
    assert client.post("/login", data={"username": "ann", "password": "open sesame"}).status_code == 200
    assert client.get("/config").status_code == 200
