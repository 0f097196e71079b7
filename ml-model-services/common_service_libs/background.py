"""Background work that outlives its own mistakes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


async def forever(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and again after an unforeseen error or an end; the error is logged. Ends when cancelled."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("background work failed and is begun again")
        await asyncio.sleep(PAUSE_SECONDS)
