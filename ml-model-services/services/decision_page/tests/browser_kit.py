"""The page as a process on the real services, and a real browser before it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
from playwright.sync_api import Browser, Page, sync_playwright
from service_testkit import KEY
from stack_testkit import ROOT, ServiceProcess, conninfo, unique

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
APIS = {
    "FRAUD_API_URL": "fraud_detection_api",
    "CHURN_API_URL": "customer_churn_api",
    "RECOMMENDATION_API_URL": "movie_recommendation_api",
}
SCOPES = [f"{name}:{what}" for name in ("fraud", "churn", "recommendation") for what in ("predict", "read")]
PATIENCE_MS = 45_000
"""How long a step may take on a busy machine; none of them waits for so long elsewhere."""


class PageProcess:
    """The page as the stack runs it: `python -m app.main`, with nothing but its own settings."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "page.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.main"],
                cwd=ROOT / "services" / "decision_page",
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "PYTHONPATH": str(ROOT),
                    "PAGE_PORT": str(port),
                    "PAGE_API_KEY": KEY,
                    "PAGE_TIMEOUT_SECONDS": "30",
                    "LOG_LEVEL": "DEBUG",
                    **settings,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float = 150) -> None:
        """Wait until the page answers."""
        deadline = time.monotonic() + seconds
        while True:
            assert self._process.poll() is None, self.log()
            try:
                if httpx.get(self.url + "/livez", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        """Return everything the page has logged."""
        return self._log.read_text()

    def stop(self) -> int:
        """End the page as a supervisor does, and return its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise


@contextmanager
def running_services(folder: Path) -> Iterator[dict[str, ServiceProcess]]:
    """Start all services on the stack's models, under names of their own; give them by their setting."""
    keys = folder / "keys.json"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(json.dumps([{"name": "page", "sha256": digest, "scopes": [*SCOPES, "model:read"]}]))
    mark = unique("page")
    with ExitStack() as stack:
        stack.callback(_forget, mark)
        running: dict[str, ServiceProcess] = {}
        for setting, service in APIS.items():
            own = folder / service
            own.mkdir()
            running[setting] = ServiceProcess(
                service, own, api_keys_file=keys, service_name=f"{mark}-{service}"
            )
            stack.callback(running[setting].close)
        yield running


def _forget(mark: str) -> None:
    with psycopg.connect(conninfo()) as connection:
        connection.execute("delete from decisions.decision_records where starts_with(service, %s)", (mark,))


@contextmanager
def running_page(folder: Path, services: Mapping[str, ServiceProcess]) -> Iterator[PageProcess]:
    """Start the page beside the services, wait for all of them, and end the page whatever happens."""
    page = PageProcess(folder, {setting: process.url for setting, process in services.items()})
    try:
        page.wait()
        for process in services.values():
            process.wait(seconds=150)
        yield page
    finally:
        page.stop()


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the machine's own Chromium."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visitor:
    """A browser's tab on the page, and everything it asked for or complained about."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.page.set_default_timeout(PATIENCE_MS)
        self._url = url
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda line: self._complain(line.type, line.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#score")

    def _complain(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def elsewhere(self) -> list[str]:
        """Return what was asked of any other place than the page itself."""
        own = (self._url + "/", "data:", "blob:" + self._url)
        return [url for url in self.asked if not url.startswith(own)]

    def tab(self, name: str) -> None:
        """Open a tab of the page."""
        self.page.get_by_role("tab", name=name).click()

    def text(self, selector: str) -> str:
        """Return what is written there, once it is there."""
        self.page.wait_for_selector(selector)
        return self.page.inner_text(selector)

    def fill(self, name: str, value: str) -> None:
        """Write into the box of that name and leave it."""
        box = self.page.locator(f"#{name} input, #{name} textarea").first
        box.fill(value)
        box.press("Tab")

    def recent_decisions(self) -> None:
        """Open the recent decisions; ask again, as a person does, while the database is too busy."""
        self.tab("Recent decisions")
        for _ in range(10):
            self.page.wait_for_selector("#latency .js-plotly-plot, #summary .trouble")
            if self.page.locator("#summary .trouble").count() == 0:
                return
            self.page.wait_for_timeout(1000)
            self.page.click("#refresh")
            self.page.wait_for_timeout(500)
        raise AssertionError(self.text("#summary"))

    def width(self) -> tuple[int, int]:
        """Return how wide the content is, and how wide the window."""
        found = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        return found[0], found[1]
