"""Fixtures of the library tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from service_testkit import FakeRedis, fraud_bundle, known_store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny fraud model, for tests that only read it."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    fraud_bundle(folder)
    return folder


@pytest.fixture
async def redis_server() -> AsyncIterator[FakeRedis]:
    server = FakeRedis(known_store(), password="secret")
    await server.start()
    yield server
    await server.stop()
