"""Fixtures for every test. Each test has a folder of its own, and no variable of the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from support.notes import Base
from tenancy_core import Tenancy, TenancyConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

# Real servers; none starts before a test asks for it.
pytest_plugins = ["support.services.fixtures"]

# A machine that is busy makes no test fail.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("patient")


@pytest.fixture
def anyio_backend() -> str:
    """Run ``@pytest.mark.anyio`` tests on asyncio; a test for both overrides it."""
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Take the machine's own settings away, and any ``.env`` of the working folder."""
    for name in list(os.environ):
        ours = name.startswith("TENANCY_") and not name.startswith("TENANCY_TEST_")
        if ours or name == "LOG_LEVEL":
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("in_checkout") is None:
        monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """Fail a test whose event loop is blocked by our code."""
    guard = BlockBuster(
        scanned_modules=["tenancy_core", "tenancy_sqlite", "tenancy_postgres", "tenancy_fastapi"]
    )
    # SQLAlchemy calls it for every new SQLite engine; for an absolute path it only joins strings.
    del guard.functions["os.path.abspath"]
    for function in guard.functions.values():
        # Building a Tenancy reads entry points and imports drivers: once, at start-up.
        function.can_block_in("tenancy_core/_plugins/loader.py", "load_plugins")
        function.can_block_in("tenancy_core/_build.py", "build")
        # So does reading the settings.
        function.can_block_in("tenancy_core/config/_model.py", "from_env")
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Control database of this test, on SQLite."""
    return f"sqlite+aiosqlite:///{tmp_path / 'data' / 'control.db'}"


@pytest.fixture
def make_config(database_url: str) -> Callable[..., TenancyConfig]:
    """Make settings for this test's database."""

    def make(**settings: object) -> TenancyConfig:
        return TenancyConfig(**{"database_url": database_url, **settings})

    return make


@pytest.fixture
async def tenancy(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[Tenancy]:
    """An open ``Tenancy`` on SQLite with the tenants ``acme`` and ``beta``."""
    async with Tenancy(make_config(), metadata=Base.metadata) as opened:
        await opened.tenants.create("acme", name="Acme Ltd")
        await opened.tenants.create("beta", name="Beta Inc")
        yield opened
