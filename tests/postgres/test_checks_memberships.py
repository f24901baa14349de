"""The checklist on memberships: what tenants' logins get at as members of other roles."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from support.checks import ERROR, found, lines_of, mend, shop
from support.databases import KEY
from support.hybrid import hybrid_database
from support.scoped import Note

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres
    from tenancy_core import Tenancy
    from tenancy_core.contract import Finding

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(postgres_server: Postgres) -> Iterator[PostgresDatabase]:
    """One whose control role may make roles and databases."""
    with hybrid_database(postgres_server) as database:
        yield database


@pytest.fixture
async def tenancy(database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service with a database for each of two tenants, and a note in each."""
    async with shop(database, "database", enable_encryption=True, encryption_keys=(KEY,)) as opened:
        for name in ("acme", "beta"):
            await opened.tenants.create(name)
            async with opened.scope(name), opened.session() as session:
                session.add(Note(text=f"{name}'s"))
        yield opened


async def places(tenancy: Tenancy) -> tuple[str, str]:
    """Return the names of the two databases, which are those of their roles."""
    acme, beta = [await tenancy.tenants.get(name) for name in ("acme", "beta")]
    return acme.placement.name, beta.placement.name


async def errors(tenancy: Tenancy) -> list[Finding]:
    # Databases of the server that everybody may open are a warning.
    return [one for one in await found(tenancy, "connect") if one.severity is ERROR]


async def read_as_acme(tenancy: Tenancy, database: PostgresDatabase, place: str) -> list[str]:
    """Return what acme's login reads in a database."""
    acme = await tenancy.tenants.get("acme")
    isolation: Any = tenancy.parts.isolation
    (server,) = isolation.servers.values()
    login = await server.login(acme.id)
    connection = await asyncpg.connect(
        host=database.server.host,
        port=database.server.port,
        user=acme.placement.name,
        password=login.password,
        database=place,
    )
    try:
        return [row[0] for row in await connection.fetch("SELECT text FROM notes")]
    finally:
        await connection.close()


@asynccontextmanager
async def between(database: PostgresDatabase) -> AsyncIterator[str]:
    """Make a role that is nobody's."""
    name = f"{database.name}_between"
    await database.admin(f"CREATE ROLE {name} NOLOGIN")
    try:
        yield name
    finally:
        await database.admin(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_L1_tenants_with_a_login_each_have_no_finding(tenancy: Tenancy) -> None:
    assert await errors(tenancy) == []


async def test_L1_a_login_that_is_a_member_of_another_tenants_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(f'GRANT "{beta}" TO "{acme}"')
    assert await read_as_acme(tenancy, database, beta) == ["beta's"]
    (finding,) = await errors(tenancy)
    assert f"{acme!r} of tenants is a member of {beta!r}, and so may connect" in finding.message
    await mend(database, finding)
    assert await errors(tenancy) == []
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await read_as_acme(tenancy, database, beta)


async def test_L1_a_membership_over_other_roles_is_found_whoever_gave_it(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    async with between(database) as name:
        await database.admin(f'GRANT "{beta}" TO {name}', f'GRANT {name} TO "{acme}"')
        await database.admin(f"GRANT {name} TO {database.owner} WITH ADMIN OPTION")
        async with database.connection(database.owner) as owner:
            await owner.execute(f'GRANT {name} TO "{acme}"')
        (finding,) = await errors(tenancy)
        assert f"is a member of {name!r}, and so may connect to {beta}" in finding.message
        assert all(line.startswith(f'REVOKE "{name}" FROM "{acme}"') for line in lines_of(finding))
        await mend(database, finding)
        assert await errors(tenancy) == []
        await database.admin(f"REVOKE {name} FROM {database.owner}")


async def test_L1_a_membership_that_opens_a_database_of_nobody_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, _ = await places(tenancy)
    async with between(database) as name:
        await database.admin(f'GRANT {name} TO "{acme}"')
        assert await errors(tenancy) == []
        await database.admin(f'GRANT CONNECT ON DATABASE "{acme}" TO {name}')
        assert await errors(tenancy) == []
        await database.admin(f"GRANT CONNECT ON DATABASE {database.name} TO {name}")
        (finding,) = await errors(tenancy)
        assert f"may connect to {database.name}, which is not its own" in finding.message
        await mend(database, finding)
        assert await errors(tenancy) == []


async def test_L1_what_the_group_of_all_tenants_may_open_is_told_once(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    group = f"{database.control}_tenants"
    await database.admin(f"GRANT {database.app} TO {group}")
    (finding,) = await errors(tenancy)
    assert f"the role {group!r} of tenants is a member of {database.app!r}" in finding.message
    await mend(database, finding)
    assert await errors(tenancy) == []


async def test_L1_a_role_of_a_tenant_that_may_not_connect_yet_is_found(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    await database.admin(
        f'REVOKE CONNECT ON DATABASE "{beta}" FROM "{beta}"', f'GRANT "{beta}" TO "{acme}"'
    )
    (finding,) = await errors(tenancy)
    assert f"has the rights of {beta}, or can take them" in finding.message
    await mend(database, finding)
    assert await errors(tenancy) == []


async def test_L1_a_tenant_that_becomes_the_role_that_makes_databases_is_told_by_another_item(
    tenancy: Tenancy, database: PostgresDatabase
) -> None:
    acme, beta = await places(tenancy)
    # Whoever makes a role is its member, and nobody may be a member of himself.
    await database.admin(
        f'REVOKE "{acme}" FROM {database.control} CASCADE',
        f'GRANT {database.control} TO "{acme}"',
    )
    assert await errors(tenancy) == []
    # Before PostgreSQL 16 its CREATEROLE is another finding.
    findings = await found(tenancy, "role")
    assert any("opens all of them" in one.message for one in findings)
    assert not any(beta in one.message for one in findings)
    await mend(database, *findings)
    await database.admin(f'GRANT "{acme}" TO {database.control} WITH ADMIN OPTION')
    assert await found(tenancy, "role") == []
