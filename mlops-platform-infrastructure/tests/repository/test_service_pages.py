"""The page of each service says what its Compose file says: ports, secrets, volumes; none is without one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server_tools import places, server_settings
from server_tools.compose import SERVERS, Project

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/services"
# Addresses that differ, so that a port tells by which setting it is published.
ADDRESSES = {
    "SERVER1_HOST": "10.1.0.1",
    "SERVER2_HOST": "10.1.0.2",
    "SERVER3_HOST": "10.1.0.3",
    "UI_BIND": "127.0.0.11",
    "API_BIND": "127.0.0.12",
}
BACKUP = {"1": "docker-compose.yml", "2": "jenkins.yml", "3": "spool.yml"}
HEADER = "| server | container | ports | secrets | volumes |"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Each server's services as Compose resolves them, every profile on; no engine is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOPS_SERVERS_DIR", str(tmp_path_factory.mktemp("servers")))
        for name, address in ADDRESSES.items():
            patch.setenv(name, address)
        server_settings.create(places.settings_file(), 10001, 10001)
        yield {server: services(server) for server in SERVERS}


def services(server: str) -> dict[str, Any]:
    """A server's services and those of its backup, which may be a project of its own."""
    backup = Project(f"pages-{server}", places.SETUPS / "backup" / BACKUP[server], ("*",))
    whole: dict[str, Any] = Project.of_server(server, ["*"]).config()["services"]
    return backup.config()["services"] | whole


def row(server: str, name: str, service: dict[str, Any]) -> str:
    """The line that a service's page holds about one of its containers."""
    settings = {address: setting for setting, address in ADDRESSES.items()}
    ports = [f"{port['published']} on `{settings[port['host_ip']]}`" for port in service.get("ports", [])]
    secrets = sorted({f"`{secret['source']}`" for secret in service.get("secrets", [])})
    volumes = sorted(
        {f"`{each['source']}`" for each in service.get("volumes", []) if each["type"] == "volume"}
    )
    cells = (", ".join(ports), " ".join(secrets), " ".join(volumes))
    return f"| {server} | `{name}` | " + " | ".join(cell or "-" for cell in cells) + " |"


def rows(page: Path) -> list[str]:
    """The lines of a page's table of containers."""
    lines = page.read_text(encoding="utf-8").splitlines()
    if HEADER not in lines:
        return []
    begin = lines.index(HEADER) + 2
    return [line for line in lines[begin : begin + 20] if re.match(r"\| \d \| `", line)]


def pages() -> list[Path]:
    return [page for page in sorted(PAGES.glob("*.md")) if page.name != "README.md"]


def test_every_service_has_its_line_on_one_page(models):
    expected = {
        row(server, name, service) for server, all_of in models.items() for name, service in all_of.items()
    }
    found = [line for page in pages() for line in rows(page)]
    assert len(expected) > 40
    missing, stale = sorted(expected - set(found)), sorted(set(found) - expected)
    text = "\n".join(("lines that no page holds:", *missing, "lines that no Compose file says:", *stale))
    assert (missing, stale) == ([], []), text
    assert len(found) == len(set(found)), "a line stands twice"


def test_each_page_is_named_after_what_it_describes_and_says_what_to_do():
    for page in pages():
        text = page.read_text(encoding="utf-8")
        containers = [re.findall(r"`([^`]+)`", line)[0] for line in rows(page)]
        assert any(name == page.stem or name.startswith(f"{page.stem}-") for name in containers), page.name
        for heading in ("## Health and logs", "## When"):
            assert f"\n{heading}\n" in text, f"{page.name}: {heading}"
        assert re.search(r"make logs-server[123] SERVICE=", text), page.name
        assert len(text.splitlines()) < 60, f"{page.name} is too long to be read at night"


def test_the_list_of_pages_is_complete():
    listed = set(re.findall(r"\(([a-z-]+\.md)\)", (PAGES / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in pages()}
