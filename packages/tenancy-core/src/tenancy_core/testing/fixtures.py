"""Fixtures for applications and plugins.

They are loaded where somebody asks for them::

    # conftest.py
    pytest_plugins = ["tenancy_core.testing.fixtures"]

A test that uses ``tenancy`` runs on anyio's pytest plugin: mark it with ``@pytest.mark.anyio``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tenancy_core import Tenancy, TenancyConfig
from tenancy_core.testing.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sqlalchemy import MetaData

__all__ = [
    "anyio_backend",
    "fake_clock",
    "tenancy",
    "tenancy_config",
    "tenancy_identifiers",
    "tenancy_metadata",
    "tenancy_options",
    "tenancy_settings",
]


@pytest.fixture
def anyio_backend() -> str:
    """Run tests on asyncio, which SQLAlchemy needs."""
    return "asyncio"


@pytest.fixture
def tenancy_settings() -> dict[str, Any]:
    """Settings of the test's ``TenancyConfig``; override it, and nothing else is needed."""
    return {}


@pytest.fixture
def tenancy_config(tmp_path: Path, tenancy_settings: dict[str, Any]) -> TenancyConfig:
    """Settings with a control database in the test's own folder.

    No variable of the machine is read. The folder is for SQLite and needs ``tenancy-sqlite``; set
    ``database_url`` in ``tenancy_settings`` for another database.
    """
    url = f"sqlite+aiosqlite:///{tmp_path / 'tenancy' / 'control.db'}"
    return TenancyConfig(**{"database_url": url, **tenancy_settings})


@pytest.fixture
def tenancy_metadata() -> MetaData | None:
    """The application's tables; override it: ``return Base.metadata``."""
    return None


@pytest.fixture
def tenancy_options() -> dict[str, Any]:
    """Objects for ``Tenancy(...)``, such as ``resolver`` or ``membership``; override it."""
    return {}


@pytest.fixture
def tenancy_identifiers() -> Sequence[str]:
    """Tenants that are there at the start; override it."""
    return ("acme", "beta")


@pytest.fixture
async def tenancy(
    tenancy_config: TenancyConfig,
    tenancy_metadata: MetaData | None,
    tenancy_options: dict[str, Any],
    tenancy_identifiers: Sequence[str],
) -> AsyncIterator[Tenancy]:
    """An open ``Tenancy`` with tenants, of this test alone."""
    async with Tenancy(tenancy_config, metadata=tenancy_metadata, **tenancy_options) as opened:
        for identifier in tenancy_identifiers:
            await opened.tenants.create(identifier)
        yield opened


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that the test moves."""
    return FakeClock()
