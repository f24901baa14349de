"""Threat L1: a role that could step around the policies is not used."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from support.postgres_store import store_on
from support.scoped import Note, rls, tenant, two_tenants
from tenancy_core.errors import ConfigurationError, UnsafeRoleError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.services.databases import PostgresDatabase

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def role(database: PostgresDatabase, suffix: str, rights: str = "") -> AsyncIterator[str]:
    """Make a role besides those that the database has."""
    name = f"{database.name}_{suffix}"
    await database.admin(f"CREATE ROLE {name} NOLOGIN {rights}")
    try:
        yield name
    finally:
        await database.admin(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def refusal(database: PostgresDatabase, **options: Any) -> str:
    with pytest.raises(UnsafeRoleError) as caught:
        async with rls(database, **options):
            raise AssertionError("It was opened.")
    assert database.app in str(caught.value)
    assert database.password not in str(caught.value)
    return str(caught.value)


@pytest.fixture
async def database(postgres_database: PostgresDatabase) -> PostgresDatabase:
    """With the tables of the application, and a note of each of two tenants."""
    async with two_tenants(postgres_database):
        pass
    return postgres_database


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        ("SUPERUSER", "it is a superuser"),
        ("BYPASSRLS", "it has BYPASSRLS"),
        ("REPLICATION", "it has REPLICATION"),
    ],
)
async def test_L1_the_role_itself(database: PostgresDatabase, attribute: str, why: str) -> None:
    await database.admin(f"ALTER ROLE {database.app} {attribute}")
    found = await refusal(database)
    assert why.removeprefix("it ") in found
    assert "NOSUPERUSER NOBYPASSRLS" in found


@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
@pytest.mark.parametrize("attribute", ["SUPERUSER", "BYPASSRLS", "REPLICATION"])
async def test_L1_a_member_of_such_a_role(
    database: PostgresDatabase, attribute: str, inherits: str
) -> None:
    await database.admin(f"ALTER ROLE {database.app} {inherits}")
    async with role(database, "above", attribute) as above, role(database, "between") as between:
        await database.admin(f"GRANT {above} TO {between}", f"GRANT {between} TO {database.app}")
        assert f"a member of '{above}'" in await refusal(database)


async def test_L1_a_member_of_the_owner(database: PostgresDatabase) -> None:
    await database.admin(
        f"ALTER ROLE {database.app} NOINHERIT", f"GRANT {database.owner} TO {database.app}"
    )
    found = await refusal(database)
    assert f"a member of '{database.owner}'" in found
    assert "owns tables of tenants and can switch row-level security off" in found


async def test_L1_a_member_of_the_role_that_will_own_the_tables(
    postgres_database: PostgresDatabase,
) -> None:
    """Before there is a table."""
    database = postgres_database
    await database.admin(f"GRANT {database.owner} TO {database.app}")
    assert f"a member of '{database.owner}'" in await refusal(database)


@pytest.mark.parametrize("forced", ["FORCE", "NO FORCE"])
async def test_L1_the_owner(database: PostgresDatabase, forced: str) -> None:
    """Held by the policies or not: it can change that."""
    await database.admin(
        f"ALTER TABLE notes OWNER TO {database.app}",
        f"ALTER TABLE notes {forced} ROW LEVEL SECURITY",
    )
    assert "owns tables of tenants" in await refusal(database)


async def test_L1_the_role_that_logged_in_counts(database: PostgresDatabase) -> None:
    """``ALTER ROLE … SET role`` makes it another one until somebody says RESET ROLE."""
    async with role(database, "plain") as plain:
        await database.admin(
            f"GRANT {plain} TO {database.app}",
            f"ALTER ROLE {database.app} BYPASSRLS",
            f"ALTER ROLE {database.app} SET role = '{plain}'",
            f"GRANT USAGE ON SCHEMA public TO {plain}",
        )
        with pytest.raises(UnsafeRoleError, match="has BYPASSRLS"):
            async with rls(database):
                pass


@pytest.mark.parametrize(
    ("above", "why"),
    [
        ("pg_execute_server_program", "reaches the server's files"),
        ("pg_read_server_files", "reaches the server's files"),
        ("pg_write_server_files", "reaches the server's files"),
        # Policies hold these two, and not what has none: statistics, passwords, the tenant store.
        ("pg_read_all_data", "reads statistics of all tenants' rows"),
        ("pg_write_all_data", "writes to the tenant store"),
    ],
)
async def test_L1_a_member_of_what_is_nearly_a_superuser(
    database: PostgresDatabase, above: str, why: str
) -> None:
    await database.admin(f"GRANT {above} TO {database.app}")
    assert f"a member of '{above}', which {why}" in await refusal(database)


async def test_L1_whoever_can_drop_the_tables(database: PostgresDatabase) -> None:
    """The owner of their schema; the owner of the database, who owns ``public`` from 15 on."""
    owner = await database.fetchval(
        "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'"
    )
    await database.admin(
        f"ALTER SCHEMA public OWNER TO {database.app}",
        f"GRANT ALL ON SCHEMA public TO {database.owner}",
    )
    assert "owns tables of tenants" in await refusal(database)
    await database.admin(f"ALTER SCHEMA public OWNER TO {owner}")
    await database.admin(
        f"ALTER DATABASE {database.name} OWNER TO {database.app}",
        f"GRANT CONNECT ON DATABASE {database.name} TO {database.owner}, {database.control}",
    )
    assert "owns the database, and can drop what is in it" in await refusal(database)


async def test_L1_whoever_can_read_the_tenant_store(database: PostgresDatabase) -> None:
    async with store_on(database.control_url):
        pass
    async with rls(database):
        pass
    async with role(database, "between") as between:
        await database.admin(
            f"ALTER ROLE {database.app} NOINHERIT",
            f"GRANT {database.control} TO {between}",
            f"GRANT {between} TO {database.app}",
        )
        found = await refusal(database)
        assert f"a member of '{database.control}', which has rights on the tenant store" in found


@pytest.mark.parametrize(
    "right",
    [
        "SELECT (value) ON tenancy.tenancy_keys",
        "TRUNCATE ON tenancy.tenancy_secrets",
        "TRIGGER ON tenancy.tenancy_audit",
    ],
)
async def test_L1_whoever_has_any_right_on_the_tenant_store(
    database: PostgresDatabase, right: str
) -> None:
    async with store_on(database.control_url):
        pass
    await database.admin(f"GRANT USAGE ON SCHEMA tenancy TO {database.app}")
    async with rls(database):
        pass
    await database.admin(f"GRANT {right} TO {database.app}")
    assert "it has rights on the tenant store" in await refusal(database)


@pytest.mark.parametrize("change", ["ALTER ROLE {app} BYPASSRLS", "GRANT {owner} TO {app}"])
async def test_L1_a_role_that_changes_while_it_is_open_gets_no_more_tenants(
    database: PostgresDatabase, change: str
) -> None:
    async with rls(database) as isolation:
        await database.admin(change.format(app=database.app, owner=database.owner))
        with pytest.raises(UnsafeRoleError):
            await isolation.provision(tenant("gamma"))


@pytest.mark.parametrize(
    "place", ["ROLE {app}", "DATABASE {name}", "ROLE {app} IN DATABASE {name}"]
)
async def test_L3_a_role_that_is_a_tenant_without_being_told(
    database: PostgresDatabase, place: str
) -> None:
    where = place.format(app=database.app, name=database.name)
    await database.admin(f"ALTER {where} SET app.tenant_id = '{tenant('acme').id}'")
    assert "app.tenant_id is set for" in await refusal(database)


async def test_L2_a_role_that_nobody_named_sees_nothing(database: PostgresDatabase) -> None:
    """Policies are for the sessions' role: a right on the table alone shows no rows."""
    async with role(database, "reports") as reports:
        await database.admin(
            f"GRANT USAGE ON SCHEMA public TO {reports}",
            f"GRANT SELECT ON notes TO {reports}",
        )
        owner = await database.fetchval("SELECT tenant_id::text FROM notes LIMIT 1")
        async with database.connection() as connection:
            await connection.execute(f"SET ROLE {reports}; SET app.tenant_id = '{owner}'")
            assert await connection.fetch("SELECT * FROM notes") == []
            await connection.execute(f"RESET ROLE; SET ROLE {database.app}")
            assert len(await connection.fetch("SELECT * FROM notes")) == 1


async def test_L1_a_role_with_CREATEROLE_is_told_by_version(database: PostgresDatabase) -> None:
    """From PostgreSQL 16 on it gives no membership in roles that somebody else made."""
    await database.admin(f"ALTER ROLE {database.app} CREATEROLE")
    version = await database.fetchval("SELECT current_setting('server_version_num')::int")
    if version < 160_000:
        assert "CREATEROLE" in await refusal(database)
    else:
        async with rls(database):
            pass


async def test_L1_the_way_out_is_logged_each_time(
    database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    await database.admin(f"ALTER ROLE {database.app} BYPASSRLS")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tenancy"):
            async with rls(database, section={"allow_unsafe_role": True}):
                pass
        (record,) = caplog.records
        assert "TENANCY_POSTGRES_ALLOW_UNSAFE_ROLE" in record.getMessage()
        assert "has BYPASSRLS" in record.getMessage()


async def test_the_way_out_opens_for_a_superuser_that_does_everything(
    postgres_database: PostgresDatabase,
) -> None:
    """Such as a container has that somebody tries this in."""
    url = postgres_database.superuser_url
    async with rls(
        postgres_database,
        database_url=url,
        control_database_url=None,
        section={"allow_unsafe_role": True, "admin_url": None},
    ) as isolation:
        acme = tenant("acme")
        await isolation.provision(acme)
        async with isolation.session(acme) as session:
            session.add(Note(text="served"))
    with pytest.raises(ConfigurationError, match="a role of its own"):
        async with rls(
            postgres_database,
            database_url=url,
            control_database_url=None,
            section={"admin_url": None},
        ):
            pass


async def test_the_role_that_makes_tables_is_not_the_sessions(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    with pytest.raises(ConfigurationError, match="which makes the tables") as caught:
        async with rls(database, database_url=database.owner_url):
            pass
    assert "Give TENANCY_DATABASE_URL a role of its own" in str(caught.value)


async def test_the_role_that_keeps_the_tenant_store_is_not_the_sessions(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    with pytest.raises(ConfigurationError, match="which could read it") as caught:
        async with rls(database, control_database_url=None):
            pass
    assert "Set TENANCY_CONTROL_DATABASE_URL with another role" in str(caught.value)
