"""What a tenant's login reaches under ``database``: its own database, and nothing beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from support.databases import KeptSecrets, database_isolation
from support.postgres import Base, Note, provisioned
from tenancy_core.errors import IdentifierCollision, TenancyError
from tenancy_core.testing import make_tenant
from tenancy_postgres.database.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant

    Shop = tuple[Any, Tenant, Tenant]

pytestmark = pytest.mark.anyio

WAYS_OUT = (
    'TABLE "{beta}".public.notes',
    "UPDATE \"{beta}\".public.notes SET text = 'taken'",
    'SET ROLE "{beta}"',
    'SET ROLE "{control}"',
    'SET SESSION AUTHORIZATION "{beta}"',
    "SELECT pg_catalog.set_config('role', '{beta}', false)",
    "SELECT pg_catalog.set_config('session_authorization', '{beta}', false)",
    "CREATE EXTENSION dblink",
    "CREATE EXTENSION postgres_fdw",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_catalog.pg_read_file('postgresql.conf')",
    "SELECT rolpassword FROM pg_catalog.pg_authid",
    'CREATE DATABASE copied TEMPLATE "{beta}"',
    'ALTER DATABASE "{beta}" RENAME TO taken',
    'DROP DATABASE "{beta}"',
    "ALTER ROLE \"{beta}\" PASSWORD 'taken'",
    'GRANT "{beta}" TO CURRENT_USER',
)


@pytest.fixture
def secrets() -> KeptSecrets:
    return KeptSecrets()


@pytest.fixture
async def shop(database: PostgresDatabase, secrets: KeptSecrets) -> AsyncIterator[Shop]:
    """The strategy with two tenants that have a note each."""
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for one in (acme, beta):
            async with isolation.session(one) as session:
                session.add(Note(id=1, text=f"{one.identifier}'s"))
        yield isolation, acme, beta


async def notes_of(isolation: Any, tenant: Tenant) -> list[str]:
    async with isolation.session(tenant) as session:
        return list(await session.scalars(text("SELECT text FROM notes")))


async def test_L7_a_tenants_login_opens_its_own_database_only(
    shop: Shop, database: PostgresDatabase, secrets: KeptSecrets
) -> None:
    _, acme, beta = shop
    login = await Credentials(secrets).get(acme.id)
    assert login is not None
    found = await database.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'tenancy\\_%'")
    templates = [row[0] for row in found]
    assert templates

    async def connect(name: str) -> None:
        connection = await asyncpg.connect(
            host=database.server.host,
            port=database.server.port,
            user=acme.placement.name,
            password=login.password,
            database=name,
            timeout=60,
        )
        await connection.close(timeout=60)

    await connect(acme.placement.name)
    for other in (beta.placement.name, database.name, *templates):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connect(other)
        assert caught.value.sqlstate in {"42501", "55000"}, other


async def test_L7_the_role_of_a_tenant_may_nothing_beside_its_tables(
    shop: Shop, database: PostgresDatabase
) -> None:
    _, acme, _ = shop
    (rights,) = await database.fetch(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
        " WHERE rolname = $1",
        acme.placement.name,
    )
    assert not any(rights)


async def test_L7_no_sql_leads_out_of_a_tenants_database(
    shop: Shop, database: PostgresDatabase
) -> None:
    isolation, acme, beta = shop
    for way in WAYS_OUT:
        statement = way.format(beta=beta.placement.name, control=database.control)
        # What needs to be outside of a transaction finds itself there the second time.
        for before in ((), ("COMMIT",)):
            with pytest.raises((DBAPIError, TenancyError)):
                async with isolation.connection(acme) as connection:
                    for one in (*before, statement):
                        await connection.exec_driver_sql(one)
                    raise AssertionError(statement)
    assert await notes_of(isolation, acme) == ["acme's"]
    assert await notes_of(isolation, beta) == ["beta's"]


async def test_L7_injected_sql_finds_the_tenants_own_database_only(shop: Shop) -> None:
    isolation, acme, beta = shop
    injected = "' OR true UNION SELECT datname FROM pg_database --"
    async with isolation.session(acme) as session:
        query = f"SELECT text FROM notes WHERE text = '{injected}'"  # noqa: S608 - so it is done
        seen = set(await session.scalars(text(query)))
    assert "acme's" in seen  # the injection itself works
    assert "beta's" not in seen
    # The names of others are no secret, as the page says.
    assert beta.placement.name in seen


async def test_L7_with_one_role_for_all_a_connection_still_has_one_database(
    database: PostgresDatabase,
) -> None:
    async with database_isolation(database, Base.metadata, one_role=True) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(beta) as session:
            session.add(Note(id=1, text="beta's"))
        for way in (f'TABLE "{beta.placement.name}".public.notes', "CREATE EXTENSION dblink"):
            with pytest.raises(DBAPIError):
                async with isolation.connection(acme) as connection:
                    await connection.exec_driver_sql(way)
        assert await notes_of(isolation, acme) == []


async def test_I1_two_tenants_whose_names_agree_never_share_a_database(shop: Shop) -> None:
    isolation, acme, _ = shop
    other = make_tenant("acme", isolation="database")
    assert other.placement.name != acme.placement.name
    same = replace(other, placement=acme.placement)
    for work in (isolation.provision, isolation.exists, isolation.destroy):
        with pytest.raises(IdentifierCollision):
            await work(same)
    assert await notes_of(isolation, acme) == ["acme's"]
