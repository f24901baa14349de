"""Fixtures for the tests of the core."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from support.control import Places
from support.key_server import key_server
from support.later import Later
from support.notes import Base
from support.plugins import site_folder
from support.tokens import jwk, rsa_key
from tenancy_core import Tenancy
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.tenants import identifiers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from support.key_server import KeyServer
    from tenancy_core import TenancyConfig


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; the modules of the plugins in it are forgotten afterwards."""
    with site_folder(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> type[Later]:
    """The clock by which identifiers are reserved."""
    monkeypatch.setattr(Later, "by", timedelta())
    monkeypatch.setattr(identifiers, "datetime", Later)
    return Later


@pytest.fixture(params=["memory", "sql"])
async def logs(
    request: pytest.FixtureRequest, make_config: Callable[..., TenancyConfig]
) -> AsyncIterator[Tenancy]:
    """An open ``Tenancy`` with acme and beta, on each store."""
    store = MemoryTenantStore() if request.param == "memory" else None
    async with Tenancy(make_config(), store=store, metadata=Base.metadata) as opened:
        await opened.tenants.create("acme")
        await opened.tenants.create("beta")
        yield opened


@pytest.fixture
def places() -> Places:
    """A strategy that keeps where its tenants are, and fails or stops when it is told to."""
    return Places()


@pytest.fixture
def issuer() -> Iterator[KeyServer]:
    """A server that publishes the key ``one``."""
    with key_server() as server:
        server.publish(jwk(rsa_key(), "one"))
        yield server
