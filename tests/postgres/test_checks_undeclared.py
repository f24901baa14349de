"""The checklist on tables that nobody declared: with their own policies, and with keys to ours."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from support.checks import ERROR, found, mend, shop, the_one
from support.scoped import Note, rls
from tenancy_core.errors import ConfigurationError, CrossTenantWrite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenancy

pytestmark = pytest.mark.anyio

TENANTS_OWN = "tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid)"


@asynccontextmanager
async def role(database: PostgresDatabase, suffix: str) -> AsyncIterator[str]:
    """Make a role besides those that the database has."""
    name = f"{database.name}_{suffix}"
    await database.admin(f"CREATE ROLE {name} NOLOGIN", f"GRANT USAGE ON SCHEMA public TO {name}")
    try:
        yield name
    finally:
        await database.admin(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.fixture
async def tenancy(postgres_database: PostgresDatabase) -> AsyncIterator[Tenancy]:
    """A service under ``rls``, with a note of each of two tenants."""
    async with shop(postgres_database) as opened:
        for name in ("acme", "beta"):
            await opened.tenants.create(name)
            async with opened.scope(name), opened.session() as session:
                session.add(Note(id=1, text=name))
        yield opened


async def as_owner(database: PostgresDatabase, *statements: str) -> None:
    async with database.connection(database.owner) as owner:
        for statement in statements:
            await owner.execute(statement.format(app=database.app))


async def read(tenancy: Tenancy, query: str, *before: str) -> list[str]:
    async with tenancy.scope("acme"), tenancy.session() as session:
        for line in before:
            await session.execute(text(line))
        return sorted(await session.scalars(text(query)))


async def refusal(database: PostgresDatabase) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with rls(database):
            raise AssertionError("It was opened.")
    return str(caught.value)


# -- a tenant in each row --------------------------------------------------------------------------


@pytest.fixture
async def extras(tenancy: Tenancy, postgres_database: PostgresDatabase) -> PostgresDatabase:
    """With a table that nobody declared, and row-level security on it."""
    await postgres_database.admin("CREATE TABLE extras AS SELECT tenant_id, text FROM notes")
    await postgres_database.admin(
        f"ALTER TABLE extras OWNER TO {postgres_database.owner}",
        "ALTER TABLE extras ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON extras TO {postgres_database.app}",
    )
    return postgres_database


@pytest.mark.parametrize("roles", ["PUBLIC", "{app}"])
async def test_L2_a_table_that_nobody_declared_with_a_policy_for_all_is_found(
    tenancy: Tenancy, extras: PostgresDatabase, roles: str
) -> None:
    assert await read(tenancy, "SELECT text FROM extras") == []
    assert await found(tenancy, "policies") == []
    await as_owner(extras, f"CREATE POLICY all_of_it ON extras TO {roles} USING (true)")
    assert await read(tenancy, "SELECT text FROM extras") == ["acme", "beta"]
    assert "not in metadata=: public.extras" in await refusal(extras)
    finding = await the_one(tenancy, "policies", ERROR, "not in metadata=: public.extras")
    await mend(extras, finding, role=extras.owner)
    assert await found(tenancy, "policies") == []
    async with rls(extras):
        pass


async def test_L2_a_table_that_nobody_declared_with_our_floor_is_no_finding(
    tenancy: Tenancy, extras: PostgresDatabase
) -> None:
    """Such as another service's, whose sessions have the same role."""
    await as_owner(
        extras,
        f"CREATE POLICY tenancy_access ON extras TO {{app}} USING ({TENANTS_OWN})",
        f"CREATE POLICY tenancy_floor ON extras AS RESTRICTIVE TO {{app}} USING ({TENANTS_OWN})",
    )
    assert await read(tenancy, "SELECT text FROM extras") == ["acme"]
    assert await found(tenancy, "policies") == []
    # One that lets in is no floor, and one for others holds nobody.
    for floor in ("AS PERMISSIVE TO {app}", "AS RESTRICTIVE TO CURRENT_USER"):
        await as_owner(
            extras,
            "DROP POLICY tenancy_floor ON extras",
            f"CREATE POLICY tenancy_floor ON extras {floor} USING ({TENANTS_OWN})",
        )
        await the_one(tenancy, "policies", ERROR, "public.extras")


async def test_L2_a_table_that_nobody_declared_and_sessions_own_is_found(
    tenancy: Tenancy, extras: PostgresDatabase
) -> None:
    """Row-level security holds its owner only where it is forced."""
    await extras.admin(f"ALTER TABLE extras OWNER TO {extras.app}")
    assert await read(tenancy, "SELECT text FROM extras") == ["acme", "beta"]
    finding = await the_one(tenancy, "policies", ERROR, "public.extras")
    await mend(extras, finding)
    assert await found(tenancy, "policies") == []


async def test_L2_a_table_that_may_only_be_emptied_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    await as_owner(
        postgres_database,
        "CREATE TABLE extras (tenant_id uuid)",
        "GRANT TRUNCATE ON extras TO {app}",
    )
    finding = await the_one(tenancy, "policies", ERROR, "public.extras")
    await mend(postgres_database, finding, role=postgres_database.owner)
    assert await found(tenancy, "policies") == []


@pytest.mark.parametrize("protected", [False, True])
async def test_L2_a_table_for_a_role_that_sessions_can_take_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase, *, protected: bool
) -> None:
    """Its rights are not the sessions' own, until they take it."""
    database = postgres_database
    async with role(database, "taken") as taken, role(database, "between") as between:
        await database.admin(
            f"ALTER ROLE {database.app} NOINHERIT",
            f"GRANT {between} TO {database.app}",
            "CREATE TABLE extras AS SELECT tenant_id, text FROM notes",
            f"GRANT SELECT ON extras TO {taken}",
        )
        if protected:
            await database.admin(
                "ALTER TABLE extras ENABLE ROW LEVEL SECURITY",
                f"CREATE POLICY all_of_it ON extras TO {taken} USING (true)",
            )
        assert await found(tenancy, "policies") == []
        await database.admin(f"GRANT {taken} TO {between}")
        texts = await read(tenancy, "SELECT text FROM extras", f"SET LOCAL ROLE {taken}")
        assert texts == ["acme", "beta"]
        finding = await the_one(tenancy, "policies", ERROR, "public.extras")
        await mend(database, finding)
        assert await found(tenancy, "policies") == []


# -- keys to tenants' tables -----------------------------------------------------------------------


@pytest.fixture
async def probe(tenancy: Tenancy, postgres_database: PostgresDatabase) -> PostgresDatabase:
    """With a table that nobody declared, and a key to one of tenants'."""
    await as_owner(
        postgres_database,
        "CREATE TABLE probe (tenant_id uuid, note int, word text,"
        " CONSTRAINT asking FOREIGN KEY (tenant_id, note) REFERENCES notes (tenant_id, id))",
        # Strangers are another finding.
        "ALTER TABLE probe RENAME tenant_id TO whose",
        "GRANT SELECT, DELETE, UPDATE (word) ON probe TO {app}",
    )
    return postgres_database


@pytest.mark.parametrize("right", ["INSERT", "INSERT (note, whose)", "UPDATE (note)"])
async def test_L9_a_foreign_key_from_what_is_no_tenants_is_found(
    tenancy: Tenancy, probe: PostgresDatabase, right: str
) -> None:
    assert await found(tenancy, "keys") == []
    await as_owner(probe, f"GRANT {right} ON probe TO {{app}}")
    words = "notes: the foreign key asking of public.probe"
    finding = await the_one(tenancy, "keys", ERROR, words, f"the role '{probe.app}' may write")
    assert "the foreign key asking of public.probe" in await refusal(probe)
    await mend(probe, finding, role=probe.owner)
    assert await found(tenancy, "keys") == []
    async with rls(probe):
        pass


async def test_L9_such_a_key_tells_what_another_tenant_has(
    tenancy: Tenancy, probe: PostgresDatabase
) -> None:
    await as_owner(probe, "GRANT INSERT ON probe TO {app}")
    beta = (await tenancy.tenants.get("beta")).id
    asked = text("INSERT INTO probe (whose, note) VALUES (:tenant, :note)")
    async with tenancy.scope("acme"), tenancy.session() as session:
        await session.execute(asked, {"tenant": beta, "note": 1})
    with pytest.raises(IntegrityError):
        async with tenancy.scope("acme"), tenancy.session() as session:
            await session.execute(asked, {"tenant": beta, "note": 2})


async def test_L9_a_key_that_the_floor_holds_is_no_finding(
    tenancy: Tenancy, probe: PostgresDatabase
) -> None:
    await as_owner(
        probe,
        "ALTER TABLE probe RENAME whose TO tenant_id",
        "ALTER TABLE probe ENABLE ROW LEVEL SECURITY",
        "GRANT INSERT ON probe TO {app}",
    )
    # Without a policy nobody writes.
    assert await found(tenancy, "keys") == []
    await as_owner(
        probe,
        f"CREATE POLICY tenancy_access ON probe TO {{app}} USING ({TENANTS_OWN})",
        f"CREATE POLICY tenancy_floor ON probe AS RESTRICTIVE TO {{app}} USING ({TENANTS_OWN})",
    )
    assert await found(tenancy, "keys") == []
    beta = (await tenancy.tenants.get("beta")).id
    asked = text("INSERT INTO probe (tenant_id, note) VALUES (:tenant, 1)")
    with pytest.raises(CrossTenantWrite):
        async with tenancy.scope("acme"), tenancy.session() as session:
            await session.execute(asked, {"tenant": beta})
    # One that does not hold the tenant asks all the same.
    await as_owner(
        probe,
        "ALTER TABLE probe ADD COLUMN whose uuid, DROP CONSTRAINT asking,"
        " ADD CONSTRAINT asking FOREIGN KEY (whose, note) REFERENCES notes (tenant_id, id)",
    )
    finding = await the_one(tenancy, "keys", ERROR, "the foreign key asking of public.probe")
    await mend(probe, finding, role=probe.owner)
    assert await found(tenancy, "keys") == []


async def test_L9_a_key_of_what_a_role_that_sessions_can_take_may_write_to_is_found(
    tenancy: Tenancy, probe: PostgresDatabase
) -> None:
    async with role(probe, "taken") as taken:
        await probe.admin(f"ALTER ROLE {probe.app} NOINHERIT", f"GRANT INSERT ON probe TO {taken}")
        assert await found(tenancy, "keys") == []
        await probe.admin(f"GRANT {taken} TO {probe.app}")
        finding = await the_one(tenancy, "keys", ERROR, f"'{taken}', whom it can become, may write")
        await mend(probe, finding)
        assert await found(tenancy, "keys") == []


async def test_L9_a_key_that_follows_what_a_role_that_sessions_can_take_may_change_is_found(
    tenancy: Tenancy, postgres_database: PostgresDatabase
) -> None:
    database = postgres_database
    await as_owner(
        database,
        "ALTER TABLE notes ADD COLUMN code text, ADD CONSTRAINT one FOREIGN KEY (code) "
        "REFERENCES currencies ON DELETE CASCADE ON UPDATE SET NULL",
    )
    async with role(database, "taken") as taken:
        await database.admin(
            f"ALTER ROLE {database.app} NOINHERIT",
            f"GRANT DELETE, UPDATE (code) ON currencies TO {taken}",
        )
        assert await found(tenancy, "keys") == []
        await database.admin(f"GRANT {taken} TO {database.app}")
        finding = await the_one(tenancy, "keys", ERROR, f"'{taken}' has the right DELETE and UPD")
        await mend(database, finding)
        assert await found(tenancy, "keys") == []
