"""Threats C2 and C3: tenants' databases are made and removed while others are at work."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from support.databases import KeptSecrets, database_isolation
from support.killing import MADE
from support.places import connected, places, until_seen
from support.postgres import Base, Note, provisioned
from support.services.databases import fresh_database
from support.services.postgres import Postgres as PostgresService
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    IdentifierCollision,
    IsolationError,
)
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = pytest.mark.anyio

COPYING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE usename = $1 AND state = 'active' AND query LIKE 'CREATE DATABASE%'
"""
VACUUMING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = $1 AND backend_type = 'autovacuum worker'
"""
FILL = "INSERT INTO notes SELECT n, repeat('x', 500) FROM generate_series(1, 3000) AS n"
INVALID = "UPDATE pg_catalog.pg_database SET datconnlimit = -2 WHERE datname = $1"
"""What the server notes while it removes a database, and of one whose removal it had to break off,
because whoever asked for it was cancelled or it crashed."""


async def who(isolation: DatabaseIsolation, tenant: Tenant) -> str:
    async with isolation.session(tenant) as session:
        await session.scalars(select(Note.text))
        return str(await session.scalar(text("SELECT session_user")))


# -- C2 --------------------------------------------------------------------------------------------


async def test_C2_whoever_makes_one_tenant_at_once_makes_it_once(
    database: PostgresDatabase,
) -> None:
    """Each has a loop, a pool and a thread of its own; the store is one."""
    secrets = KeptSecrets()
    tenants = [make_tenant(f"tenant-{number}") for number in range(3)]
    start = threading.Barrier(4)

    async def one() -> list[str]:
        async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
            start.wait(60)
            for tenant in tenants:
                await isolation.provision(tenant)
            return [await who(isolation, tenant) for tenant in tenants]

    answers = await asyncio.gather(*(asyncio.to_thread(asyncio.run, one()) for _ in range(4)))
    assert answers == [[tenant.placement.name for tenant in tenants]] * 4
    made = await places(database)
    # One template and one role of all tenants, whoever was first.
    assert len(made["databases"]) == len(made["roles"]) == len(tenants) + 1


async def test_C2_making_and_removing_at_once_ends_in_one_of_the_two(
    database: PostgresDatabase,
) -> None:
    secrets = KeptSecrets()
    async with (
        database_isolation(database, Base.metadata, secrets=secrets) as one,
        database_isolation(database, Base.metadata, secrets=secrets) as other,
    ):
        (acme,) = await provisioned(one, "acme")
        await one.destroy(acme)
        nothing = await places(database)
        for _ in range(5):
            async with asyncio.TaskGroup() as group:
                group.create_task(one.provision(acme))
                group.create_task(other.destroy(acme))
            assert await one.exists(acme) == await other.exists(acme)
            if await one.exists(acme):
                assert await who(other, acme) == acme.placement.name
            else:
                assert await places(database) == nothing
            await one.destroy(acme)
            assert await places(database) == nothing


# -- whose it is -----------------------------------------------------------------------------------

ROLES = "SELECT count(*) FROM pg_roles WHERE rolname = $1"
CLOSED = "ALTER DATABASE {} ALLOW_CONNECTIONS false"


@pytest.mark.parametrize("one_role", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        ("CREATE DATABASE {} OWNER {owner}",),
        # Closed and without a mark, as one that is half made: somebody else's all the same.
        ("CREATE DATABASE {} OWNER {owner}", CLOSED),
        # Of the role that makes databases, which makes some for other purposes as well.
        ("CREATE DATABASE {} OWNER {control}",),
        ("CREATE DATABASE {} OWNER {control}", "COMMENT ON DATABASE {} IS 'tenancy template'"),
        ("CREATE DATABASE {} OWNER {control}", "COMMENT ON DATABASE {} IS 'theirs'", CLOSED),
    ],
)
async def test_a_database_of_somebody_elses_is_not_touched(
    database: PostgresDatabase, one_role: bool, theirs: tuple[str, ...]
) -> None:
    acme = make_tenant("acme")
    name = f'"{acme.placement.name}"'
    who_owns = {"owner": f'"{database.owner}"', "control": f'"{database.control}"'}
    await database.admin(*(line.format(name, **who_owns) for line in theirs))
    mine = "SELECT oid, datallowconn, datacl::text, shobj_description(oid, 'pg_database')"
    query = f"{mine} FROM pg_database WHERE datname = $1"
    before = await database.fetch(query, acme.placement.name)
    async with database_isolation(database, Base.metadata, one_role=one_role) as isolation:
        for work in (isolation.provision, isolation.exists, isolation.destroy):
            with pytest.raises(IdentifierCollision, match="not made for tenant 'acme'"):
                await work(acme)
    assert await database.fetch(query, acme.placement.name) == before
    assert await database.fetchval(ROLES, acme.placement.name) == 0
    await database.admin(f"DROP DATABASE {name}")


async def test_who_may_not_change_a_password_is_told_and_who_has_none(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(database, Base.metadata) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        await database.admin(f'ALTER ROLE "{database.control}" NOCREATEROLE')
        with pytest.raises(ConfigurationError, match="CREATEDB CREATEROLE"):
            await isolation.rotate_credentials(acme)
        await database.admin(f'ALTER ROLE "{database.control}" CREATEROLE')
        await isolation.rotate_credentials(acme)
        await isolation.destroy(acme)
        with pytest.raises(IsolationError, match="has no database"):
            await isolation.rotate_credentials(acme)


async def test_a_role_of_somebody_elses_is_not_touched(database: PostgresDatabase) -> None:
    acme = make_tenant("acme")
    name = acme.placement.name
    await database.admin(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'theirs'")
    query = "SELECT rolpassword, rolcanlogin FROM pg_authid WHERE rolname = $1"
    before = await database.fetch(query, name)
    async with database_isolation(database, Base.metadata) as isolation:
        for work in (isolation.provision, isolation.exists, isolation.destroy):
            with pytest.raises(IdentifierCollision, match="not made for tenant 'acme'"):
                await work(acme)
        with pytest.raises(IdentifierCollision):
            await isolation.rotate_credentials(acme)
    assert await database.fetch(query, name) == before
    assert not await database.fetch("SELECT 1 FROM pg_database WHERE datname = $1", name)
    await database.admin(f'DROP ROLE "{name}"')


# -- C3 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["base", "template"])
async def test_C3_what_is_copied_is_copied_when_nobody_is_connected_to_it(
    database: PostgresDatabase, what: str
) -> None:
    await database.admin(f'GRANT "{database.owner}" TO "{database.control}"')
    how: dict[str, Any] = {"settings": {"database_template": database.name}}
    busy, secrets = database.name, KeptSecrets()
    if what == "template":
        async with database_isolation(database, Base.metadata, secrets=secrets, **how) as isolation:
            await provisioned(isolation, "beta")
        ((busy,),) = await database.fetch(MADE, database.control)
        # Somebody looks what is in it. What was closed by us is not opened by itself.
        await database.admin(f'ALTER DATABASE "{busy}" ALLOW_CONNECTIONS true')
    acme = make_tenant("acme")
    async with database_isolation(
        database, Base.metadata, secrets=secrets, database_pool_timeout=60, **how
    ) as isolation:
        async with asyncio.TaskGroup() as group, connected(database, busy):
            if what == "template":
                await database.admin(f'ALTER DATABASE "{busy}" ALLOW_CONNECTIONS false')
            group.create_task(isolation.provision(acme))
            async with connected(database, "postgres") as watching:
                await until_seen(watching, COPYING, database.control)
                if what == "base":
                    # The server itself waits for five seconds; then it is asked again.
                    await until_seen(watching, COPYING, database.control, gone=True)
        assert await who(isolation, acme) == acme.placement.name


async def test_C3_whoever_stays_connected_to_what_is_copied_is_told_of(
    database: PostgresDatabase,
) -> None:
    """The server itself waits for five seconds."""
    await database.admin(f'GRANT "{database.owner}" TO "{database.control}"')
    nothing = await places(database)
    async with (
        database_isolation(
            database,
            Base.metadata,
            settings={"database_template": database.name},
            database_pool_timeout=1,
        ) as isolation,
    ):
        acme = make_tenant("acme")
        async with connected(database, database.name):
            with pytest.raises(BackendUnavailable, match="Somebody is connected") as caught:
                await isolation.provision(acme)
            assert database.name in str(caught.value)
        assert (await places(database))["databases"] == nothing["databases"]
        await isolation.provision(acme)
        assert await who(isolation, acme) == acme.placement.name


# -- what was begun by the server and not finished -------------------------------------------------


async def test_C5_a_database_whose_removal_the_server_did_not_finish(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(database, Base.metadata) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        await database.fetch(INVALID, acme.placement.name)
        assert not await isolation.exists(acme)
        await isolation.destroy(acme)
        assert not await isolation.exists(acme)
        await isolation.provision(acme)
        await database.fetch(INVALID, acme.placement.name)
        await isolation.provision(acme)
        for tenant in (acme, beta):
            assert await who(isolation, tenant) == tenant.placement.name


async def test_C1_a_template_whose_removal_the_server_did_not_finish(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(database, Base.metadata) as isolation:
        await provisioned(isolation, "acme")
    ((template,),) = await database.fetch(MADE, database.control)
    await database.fetch(INVALID, template)
    async with database_isolation(database, Base.metadata) as isolation:
        (beta,) = await provisioned(isolation, "beta")
        assert await who(isolation, beta) == beta.placement.name


async def test_C5_a_database_that_is_being_vacuumed_is_removed() -> None:
    """The server's own worker is no role's, and who is no superuser may not end it by force."""
    config = {
        "autovacuum_naptime": "1s",
        "autovacuum_vacuum_cost_delay": "100ms",
        "autovacuum_vacuum_cost_limit": 1,
        "autovacuum_vacuum_threshold": 1,
        "autovacuum_vacuum_scale_factor": 0,
        "vacuum_cost_page_dirty": 100,
    }
    server = PostgresService(config=config)
    try:
        server.start()
        with fresh_database(server, createrole=True, createdb=True) as database:
            secrets = KeptSecrets()
            async with (
                database_isolation(database, Base.metadata, secrets=secrets) as isolation,
                database_isolation(database, Base.metadata, secrets=secrets) as other,
            ):
                (acme,) = await provisioned(isolation, "acme")
                # Another process keeps a connection, which may be ended.
                assert await who(other, acme) == acme.placement.name
                async with isolation.session(acme) as session:
                    await session.execute(text(FILL))
                    await session.execute(text("UPDATE notes SET text = repeat('y', 500)"))
                    # Else it tells of it when it has been idle for ten seconds.
                    await session.execute(text("SELECT pg_stat_force_next_flush()"))
                async with database.connection() as connection:
                    await until_seen(connection, VACUUMING, acme.placement.name)
                await isolation.destroy(acme)
                assert not await isolation.exists(acme)
                with pytest.raises((BackendUnavailable, IsolationError)):
                    await who(other, acme)
    finally:
        server.close()


async def test_C5_whoever_may_not_be_sent_away_is_told_of(database: PostgresDatabase) -> None:
    async with database_isolation(database, Base.metadata) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with connected(database, acme.placement.name):
            with pytest.raises(BackendUnavailable, match="may not end") as caught:
                await isolation.destroy(acme)
            assert "TENANCY_CONTROL_DATABASE_URL" in str(caught.value)
            # Nobody comes to it any more.
            assert not await isolation.exists(acme)
        await isolation.destroy(acme)
        assert len((await places(database))["databases"]) == 1


async def test_C5_one_role_of_all_tenants_is_sent_away_by_its_member(
    database: PostgresDatabase,
) -> None:
    """Another process has a connection left, which nobody uses."""
    async with (
        database_isolation(database, Base.metadata, one_role=True) as isolation,
        database_isolation(database, Base.metadata, one_role=True) as other,
    ):
        (acme,) = await provisioned(isolation, "acme")
        async with other.session(acme) as session:
            await session.execute(text("SELECT 1"))
        with pytest.raises(BackendUnavailable, match="grant that role membership"):
            await isolation.destroy(acme)
        await database.admin(f'GRANT "{database.app}" TO "{database.control}"')
        await isolation.destroy(acme)
        assert not await isolation.exists(acme)
