"""Threat P5: the other end of a connection is gone, and nobody has said so."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from support.databases import database_isolation
from support.postgres import Base, opened, provisioned
from support.postgres_store import store_on
from support.waiting import WITHIN
from tenancy_core.errors import BackendUnavailable
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from tenancy_postgres.server import ServerFacts

pytestmark = pytest.mark.anyio


def silence(proxy: ChaosProxy) -> None:
    proxy.blackhole = True


async def is_ended_by_the_system(connection: AsyncConnection) -> bool:
    """Whether whoever waits on it is told after a minute; then it may not be waited for."""
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    link = driver._transport.get_extra_info("socket")
    if not link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return False
    seconds = [
        link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    ]
    sent = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return seconds[0] + seconds[1] * seconds[2] == 60 and sent == 60_000


async def test_P5_the_system_ends_tenants_connections_that_are_silent(
    database: PostgresDatabase,
) -> None:
    async with opened(database) as shared, database_isolation(database, Base.metadata) as apart:
        for isolation in (shared, apart):
            (acme,) = await provisioned(isolation, "acme")
            async with isolation.session(acme) as session:
                assert await is_ended_by_the_system(await session.connection())


async def test_P5_the_system_ends_silent_connections_of_those_who_make_places(
    database: PostgresDatabase,
) -> None:
    async with opened(database) as shared, shared.administering() as connection:
        assert await is_ended_by_the_system(connection)
    async with database_isolation(database, Base.metadata) as apart:
        for server in apart.servers.values():
            async with server.administering() as connection:
                assert await is_ended_by_the_system(connection)


async def test_P5_the_system_ends_silent_connections_of_the_tenant_store(
    database: PostgresDatabase,
) -> None:
    async with store_on(database.control_url) as store, store.engine.connect() as connection:
        assert await is_ended_by_the_system(connection)


async def test_P11_opening_ends_where_a_server_lets_in_and_says_nothing_more(
    database: PostgresDatabase,
    chaos_proxy: Callable[..., ChaosProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = chaos_proxy(database.app_url)

    async def fall_silent(connection: AsyncConnection) -> ServerFacts:
        await connection.exec_driver_sql("SELECT 1")
        await asyncio.to_thread(silence, proxy)
        return await facts_of(connection)

    monkeypatch.setattr("tenancy_postgres.isolation.facts_of", fall_silent)
    async with asyncio.timeout(WITHIN):
        with pytest.raises(BackendUnavailable):
            async with opened(database, url=proxy.url, database_connect_timeout=1):
                pass
    proxy.blackhole = False


async def test_P11_whoever_makes_places_does_not_wait_for_ever_for_a_link_that_is_silent(
    database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    """The system sees no silence: a proxy takes what is sent."""
    proxy = chaos_proxy(database.control_url)
    async with opened(
        database,
        control_database_url=proxy.url,
        database_connect_timeout=1,
        database_pool_timeout=1,
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        proxy.half_open()
        async with asyncio.timeout(WITHIN):
            with pytest.raises(BackendUnavailable):
                await isolation.exists(acme)
            assert await isolation.exists(acme)
