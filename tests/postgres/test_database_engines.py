"""Threats P7, P9, P10 and P11: an engine for each tenant's database, under one ceiling."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import func, insert, select, text

from support.databases import KeptSecrets, database_isolation, template_url
from support.places import connected, places, until_seen
from support.postgres import Base, Note, provisioned
from support.services.databases import fresh_database
from support.waiting import WITHIN, until
from tenancy_core.errors import BackendUnavailable
from tenancy_core.testing import make_tenant
from tenancy_postgres.database.credentials import Credentials
from tenancy_postgres.database.server import Server
from tenancy_postgres.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = pytest.mark.anyio


OURS = """
    SELECT count(*) FROM pg_catalog.pg_stat_activity AS a
     WHERE a.usename = $1 OR EXISTS (
           SELECT FROM pg_catalog.pg_auth_members AS m
            WHERE m.member = a.usesysid
              AND pg_catalog.pg_get_userbyid(m.roleid) = $1 || '_tenants')
"""
"""Connections of the role that makes databases, and of tenants' roles."""


@asynccontextmanager
async def watched(database: PostgresDatabase) -> AsyncGenerator[list[int]]:
    """Ask the server again and again how many connections there are."""
    seen: list[int] = []

    async def watch(connection: asyncpg.Connection) -> None:
        while True:
            seen.append(await connection.fetchval(OURS, database.control))

    async with connected(database, "postgres") as connection:
        watching = asyncio.create_task(watch(connection))
        try:
            yield seen
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


async def write(isolation: DatabaseIsolation, tenant: Tenant, words: str) -> None:
    async with isolation.session(tenant) as session:
        await session.execute(insert(Note).values(text=words))


async def read(isolation: DatabaseIsolation, tenant: Tenant) -> list[str]:
    async with isolation.session(tenant) as session:
        return sorted(await session.scalars(select(Note.text)))


# -- P5 --------------------------------------------------------------------------------------------


async def test_P5_whoever_makes_databases_replaces_a_link_that_vanished(
    database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(database.control_url)
    async with database_isolation(
        database, Base.metadata, control_database_url=proxy.url, database_connect_timeout=1
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        proxy.half_open()
        async with asyncio.timeout(60):
            assert await isolation.exists(acme)
            proxy.half_open()
            await isolation.provision(acme)


# -- P7 --------------------------------------------------------------------------------------------


async def test_P7_an_engine_in_use_is_not_evicted(database: PostgresDatabase) -> None:
    async with database_isolation(database, Base.metadata, max_cached_engines=2) as isolation:
        tenants = await provisioned(isolation, *(f"tenant-{number}" for number in range(5)))
        everybody_is_in, held = asyncio.Barrier(5), set[int]()

        async def busy(tenant: Tenant) -> None:
            async with isolation.session(tenant) as session:
                pid = await session.scalar(text("SELECT pg_catalog.pg_backend_pid()"))
                held.add(pid)
                await session.execute(insert(Note).values(text=tenant.identifier))
                await everybody_is_in.wait()
                # The others came after this one, and each would have evicted it.
                assert await session.scalar(text("SELECT pg_catalog.pg_backend_pid()")) == pid
            assert await read(isolation, tenant) == [tenant.identifier]

        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(busy(tenant))
        assert len(held) == 5
        async with watched(database) as seen:
            # Two engines with a connection each, and the one of whoever makes databases.
            await until(lambda: bool(seen) and seen[-1] <= 3)


@pytest.mark.parametrize("engines", [2, 50])
async def test_P7_the_ceiling_holds_while_many_tenants_take_turns(
    database: PostgresDatabase, engines: int
) -> None:
    ceiling, rounds = 6, 10
    async with database_isolation(
        database,
        Base.metadata,
        max_cached_engines=engines,
        max_database_connections=ceiling,
        database_pool_size=2,
        database_pool_timeout=60,
    ) as isolation:
        tenants = await provisioned(isolation, *(f"tenant-{number}" for number in range(20)))
        async with watched(database) as seen, asyncio.TaskGroup() as group:
            for number in range(rounds):
                for tenant in tenants:
                    group.create_task(write(isolation, tenant, f"{tenant.identifier} {number}"))
        assert max(seen) <= ceiling
        assert max(seen) >= ceiling - 1
        for tenant in tenants:
            expected = [f"{tenant.identifier} {number}" for number in range(rounds)]
            assert await read(isolation, tenant) == expected


# -- P9 --------------------------------------------------------------------------------------------


async def test_P9_a_hundred_first_requests_make_one_engine(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets, made = KeptSecrets(), list[str]()
    real = Server.engine

    def counting(server: Server, tenant: Tenant) -> Any:
        made.append(tenant.placement.name)
        return real(server, tenant)

    monkeypatch.setattr(Server, "engine", counting)
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        (acme,) = await provisioned(isolation, "acme")
    async with database_isolation(
        database, Base.metadata, secrets=secrets, database_pool_timeout=60
    ) as isolation:
        async with watched(database) as seen, asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(write(isolation, acme, f"{number:03}"))
        assert made == [acme.placement.name]
        # The pool of one tenant has four, and whoever makes databases has one.
        assert max(seen) <= 5
        assert await read(isolation, acme) == [f"{number:03}" for number in range(100)]


async def test_P9_twenty_first_tenants_make_one_template(database: PostgresDatabase) -> None:
    tenants = [make_tenant(f"tenant-{number}") for number in range(20)]
    async with database_isolation(database, Base.metadata, database_pool_timeout=60) as isolation:
        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(isolation.provision(tenant))
        made = await places(database)
        assert len(made["databases"]) == len(made["roles"]) == len(tenants) + 1


# -- P10 -------------------------------------------------------------------------------------------


def all_have(done: dict[Any, int], before: dict[Any, int], more: int) -> bool:
    return all(done[each] >= before[each] + more for each in done)


async def test_P10_no_request_is_lost_while_the_password_changes(
    database: PostgresDatabase,
) -> None:
    """One of two processes changes it, and knows of it; the other learns of it when it connects."""
    secrets = KeptSecrets()
    same: dict[str, Any] = {"secrets": secrets, "database_pool_timeout": 60}
    old: list[str] = []
    async with (
        database_isolation(database, Base.metadata, **same) as one,
        database_isolation(database, Base.metadata, **same) as other,
    ):
        (acme,) = await provisioned(one, "acme")
        first, over = acme, asyncio.Event()
        done = {one: 0, other: 0}

        async def requests(isolation: DatabaseIsolation, number: int) -> None:
            while not over.is_set():
                # Each change of the record lets the next request begin with a new engine.
                await write(isolation, acme, f"{number}")
                done[isolation] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(requests((one, other)[number % 2], number))
            for _ in range(10):
                login = await Credentials(secrets).get(acme.id)
                assert login is not None
                old.append(login.password)
                before = dict(done)
                await one.rotate_credentials(acme)
                acme = replace(acme, version=acme.version + 1)
                await until(partial(all_have, done, before, 10))
            over.set()
        async with other.session(first) as session:
            written = await session.scalar(select(func.count()).select_from(Note))
        assert written == sum(done.values())
        for password in old:
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(
                    host=database.server.host,
                    port=database.server.port,
                    user=acme.placement.name,
                    password=password,
                    database=acme.placement.name,
                )


async def test_P10_a_changed_record_gets_a_new_engine_and_the_old_one_is_drained(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(database, Base.metadata) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        pid = text("SELECT pg_catalog.pg_backend_pid()")
        async with isolation.session(acme) as session:
            before = await session.scalar(pid)
            await isolation.rotate_credentials(acme)
            changed = replace(acme, version=acme.version + 1)
            async with isolation.session(changed) as another:
                after = await another.scalar(pid)
            # Whoever began before ends as they began.
            assert await session.scalar(pid) == before
        async with isolation.session(changed) as another:
            assert await another.scalar(pid) == after != before
        there = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1"
        async with connected(database, "postgres") as connection:
            await until_seen(connection, there, before, gone=True)


# -- P11 -------------------------------------------------------------------------------------------


def elsewhere(url: str, admin_url: str) -> dict[str, Any]:
    """Settings with a second server, ``eu2``."""
    return {"servers": {"eu2": ServerSettings(url=SecretStr(url), admin_url=SecretStr(admin_url))}}


@pytest.mark.parametrize("warm", [True, False])
async def test_P11_a_server_that_hangs_keeps_nobody_from_the_others(
    database: PostgresDatabase,
    postgres_victim: Postgres,
    chaos_proxy: Callable[..., ChaosProxy],
    warm: bool,
) -> None:
    with fresh_database(postgres_victim, createrole=True, createdb=True) as second:
        proxy = chaos_proxy(second.control_url)
        settings = elsewhere(proxy.through(template_url(second)), proxy.url)
        async with database_isolation(
            database, Base.metadata, settings=settings, database_pool_timeout=2
        ) as isolation:
            acme = make_tenant("acme")
            far = [isolation.place(make_tenant(name), server="eu2") for name in ("gamma", "delta")]
            for tenant in (acme, *far):
                await isolation.provision(tenant)
                if warm or tenant is acme:
                    assert await read(isolation, tenant) == []
            proxy.blackhole = True
            try:
                stuck = [asyncio.create_task(read(isolation, tenant)) for tenant in far * 5]
                for number in range(20):
                    await write(isolation, acme, f"{number:02}")
                assert not any(task.done() for task in stuck)
                async with asyncio.timeout(WITHIN):
                    answers = await asyncio.gather(*stuck, return_exceptions=True)
                assert {type(answer) for answer in answers} == {BackendUnavailable}
                async with asyncio.timeout(WITHIN):
                    with pytest.raises(BackendUnavailable):
                        await isolation.exists(far[0])
                assert len(await read(isolation, acme)) == 20
            finally:
                proxy.blackhole = False
            async with asyncio.timeout(WITHIN):
                for tenant in far:
                    while True:
                        with suppress(BackendUnavailable):  # the breaker has to see that it is back
                            assert await read(isolation, tenant) == []
                            break
                        await asyncio.sleep(0.05)


@pytest.mark.parametrize("ceiling", [7, 12])
async def test_P11_a_server_that_hangs_while_databases_are_made_holds_up_only_its_own(
    database: PostgresDatabase, postgres_victim: Postgres, ceiling: int
) -> None:
    with fresh_database(postgres_victim, createrole=True, createdb=True) as second:
        settings = elsewhere(template_url(second), second.control_url)
        async with database_isolation(
            database,
            Base.metadata,
            settings=settings,
            max_database_connections=ceiling,
            database_pool_timeout=5,
        ) as isolation:
            far = [
                isolation.place(make_tenant(f"far-{number}"), server="eu2") for number in range(6)
            ]
            await isolation.provision(far[0])
            async with second.connection() as somebody:
                await somebody.execute("BEGIN; LOCK pg_catalog.pg_database IN SHARE MODE")
                stuck = [asyncio.create_task(isolation.provision(tenant)) for tenant in far[1:]]
                async with asyncio.timeout(WITHIN):
                    near = await provisioned(isolation, "acme", "beta", "gamma")
                # Its password is nobody's database.
                await isolation.rotate_credentials(far[0])
                async with asyncio.timeout(WITHIN):
                    done, making = await asyncio.wait(stuck, return_when=asyncio.FIRST_EXCEPTION)
                    # Whoever only waits for a turn is told.
                    said = [str(task.exception()) for task in done]
                assert making
                assert all("Other databases are being made" in words for words in said)
                await somebody.execute("ROLLBACK")
            async with asyncio.timeout(WITHIN):
                await asyncio.gather(*stuck, return_exceptions=True)
            for tenant in far:
                await isolation.provision(tenant)
            for tenant in (*far, *near):
                await write(isolation, tenant, tenant.identifier)
                assert await read(isolation, tenant) == [tenant.identifier]


async def test_P11_whoever_waits_for_a_server_that_makes_no_role_is_told_in_time(
    postgres_victim: Postgres,
) -> None:
    with fresh_database(postgres_victim, createrole=True, createdb=True) as database:
        async with (
            database_isolation(
                database, Base.metadata, database_pool_timeout=1, database_connect_timeout=1
            ) as isolation,
            database.connection() as somebody,
        ):
            await provisioned(isolation, "acme")
            beta = make_tenant("beta")
            await somebody.execute("BEGIN; LOCK pg_catalog.pg_authid IN SHARE MODE")
            async with asyncio.timeout(WITHIN):
                with pytest.raises(BackendUnavailable):
                    await isolation.provision(beta)
            await somebody.execute("ROLLBACK")
            await isolation.provision(beta)
            await write(isolation, beta, "made")


async def test_P11_two_tenants_at_their_own_limits_shut_nobody_else_out(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(
        database, Base.metadata, max_database_connections=40
    ) as isolation:
        acme, beta, gamma = await provisioned(isolation, "acme", "beta", "gamma")
        for tenant in (acme, beta):
            await database.admin(f'ALTER ROLE "{tenant.placement.name}" CONNECTION LIMIT 0')
        for tenant in (acme, beta, acme, beta):
            with pytest.raises(BackendUnavailable):
                await read(isolation, tenant)
        assert await read(isolation, gamma) == []
        for tenant in (acme, acme, beta):
            with pytest.raises(BackendUnavailable):
                await read(isolation, tenant)
        # It needs a connection of its own.
        await isolation._engines.renew(gamma.placement.name)
        assert await read(isolation, gamma) == []
        with pytest.raises(BackendUnavailable, match="is tried again in"):
            await read(isolation, acme)


async def test_P5_a_link_that_vanished_is_waited_for_as_long_as_for_a_connection(
    database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    proxy = chaos_proxy(database.app_url)
    async with database_isolation(
        database,
        Base.metadata,
        database_url_template=proxy.through(template_url(database)),
        database_connect_timeout=1,
        database_pool_timeout=WITHIN * 10,
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        assert await read(isolation, acme) == []
        proxy.half_open()
        async with asyncio.timeout(WITHIN):
            with suppress(BackendUnavailable):
                await read(isolation, acme)
            assert await read(isolation, acme) == []


async def test_P11_a_server_that_is_down_stops_nobody_from_starting(
    database: PostgresDatabase,
    postgres_victim: Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fresh_database(postgres_victim, createrole=True, createdb=True) as second:
        settings = elsewhere(template_url(second), second.control_url)
        postgres_victim.kill()
        async with database_isolation(database, Base.metadata, settings=settings) as isolation:
            assert "the database server 'eu2' cannot be used now" in caplog.text
            assert str(postgres_victim.port) not in caplog.text
            (acme,) = await provisioned(isolation, "acme")
            await write(isolation, acme, "served")
            gamma = isolation.place(make_tenant("gamma"), server="eu2")
            for work in (isolation.provision, isolation.exists, isolation.destroy):
                with pytest.raises(BackendUnavailable):
                    await work(gamma)
            postgres_victim.start()
            await isolation.provision(gamma)
            await write(isolation, gamma, "back")
            assert await read(isolation, gamma) == ["back"]
            assert await read(isolation, acme) == ["served"]
