"""Take the screenshots of the documentation from the real page: `python tests/screenshots.py [TIME]`.

Run in `services/decision_page`, with the settings of a running stack, and with the root and its `tests` on
PYTHONPATH.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import httpx
from browser_kit import Visitor, browser, running_page, running_services
from PIL import Image
from service_testkit import KEY, REPOSITORY

IMAGES = REPOSITORY / "ml-model-services" / "docs" / "images"
MOST_BYTES = 150_000
WIDTH, HEIGHT = 1280, 900
SETTLED_MS = 1200
COLOURS = 128


def traffic(address: str, when: str | None) -> None:
    """Have a hundred transactions decided, so that there is something to see."""
    with httpx.Client(base_url=address, headers={"X-API-Key": KEY}, trust_env=False) as http:
        for i in range(110):
            case = {"customer_id": i * 7 % 400, "terminal_id": i * 13 % 900, "tx_amount": 5.0 + i * i % 190}
            case |= {} if when is None or i % 12 == 0 else {"tx_datetime": when}
            http.post("/predict", json=case).raise_for_status()


def take(visitor: Visitor, name: str) -> None:
    """Write a screenshot of the whole page."""
    visitor.page.wait_for_timeout(SETTLED_MS)
    visitor.page.mouse.move(2, 2)
    path = IMAGES / f"page-{name}.png"
    picture = Image.open(io.BytesIO(visitor.page.screenshot(full_page=True)))
    # A page has few colours: a palette is a third of the size, and nobody sees the difference.
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        sys.exit(f"{path.name} is larger than {MOST_BYTES / 1000:.0f} kB")


def fraud(visitor: Visitor, when: str | None) -> None:
    """A transaction with its what-if curves."""
    visitor.fill("when", (when or "").replace("T", " ").removesuffix("Z"))
    number = visitor.page.locator("#amount input[type=number]")
    number.fill("128.5")
    number.press("Tab")
    visitor.page.click("#score")
    visitor.page.wait_for_selector("#fraud-card .verdict")
    visitor.page.click("#explore")
    visitor.page.wait_for_selector("#by-hour .scatterlayer .point")
    visitor.page.wait_for_selector("#fraud-contributions .bar")


def main() -> None:
    """Take all of them; the first argument is a time on which the stack's features are up to date."""
    when = sys.argv[1] if len(sys.argv) > 1 else None
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as name,
        running_services(Path(name)) as services,
        running_page(Path(name), services) as process,
        browser() as chromium,
    ):
        traffic(services["FRAUD_API_URL"].url, when)
        visitor = Visitor(chromium, process.url, viewport={"width": WIDTH, "height": HEIGHT})
        fraud(visitor, when)
        take(visitor, "fraud")
        visitor.tab("Churn")
        visitor.fill("other", "12")
        visitor.page.click("#compare")
        visitor.page.wait_for_selector("#churn-contributions .bar")
        take(visitor, "churn")
        visitor.tab("Movies")
        visitor.page.click("#recommend")
        visitor.page.wait_for_selector("#movie-list .movie")
        take(visitor, "movies")
        visitor.recent_decisions()
        visitor.page.locator("#decisions [role=gridcell]").first.click()
        visitor.page.wait_for_selector("#detail .facts")
        take(visitor, "decisions")
        visitor.tab("Models in service")
        visitor.page.wait_for_selector("#models .model")
        take(visitor, "models")
        phone = Visitor(chromium, process.url, viewport={"width": 390, "height": 844})
        fraud(phone, when)
        take(phone, "phone")


if __name__ == "__main__":
    main()
