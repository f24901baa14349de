"""A test's database and its roles: each has the rights it is named for, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from support.services.databases import create_database, fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.services.databases import PostgresDatabase, PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def module_database(postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    with fresh_database(postgres_server) as database:
        yield database


async def refused(database: PostgresDatabase, role: str, *statements: str) -> list[str]:
    """Return those of the statements for which the role has no rights."""
    found = []
    async with database.connection(role) as connection:
        for statement in statements:
            try:
                await connection.execute(statement)
            except asyncpg.InsufficientPrivilegeError:
                found.append(statement)
    return found


def plain(url: str) -> str:
    return url.replace("+asyncpg", "")


async def test_every_url_leads_to_its_role(postgres_database: PostgresDatabase) -> None:
    urls = {
        postgres_database.owner_url: postgres_database.owner,
        postgres_database.control_url: postgres_database.control,
        postgres_database.app_url: postgres_database.app,
        postgres_database.superuser_url: postgres_database.server.user,
    }
    for url, role in urls.items():
        connection = await asyncpg.connect(plain(url))
        [row] = await connection.fetch("SELECT current_user, current_database()")
        await connection.close()
        assert tuple(row) == (role, postgres_database.name)


async def test_a_url_with_another_password_leads_nowhere(
    module_database: PostgresDatabase,
) -> None:
    server = module_database.server
    url = server.url(user=module_database.app, password="wrong", database=module_database.name)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(plain(url))


async def test_the_roles_have_no_power_of_their_own(module_database: PostgresDatabase) -> None:
    rows = await module_database.fetch(
        "SELECT rolname, rolsuper, rolbypassrls, rolcreatedb, rolreplication, rolcreaterole,"
        " rolcanlogin FROM pg_roles WHERE rolname = ANY ($1)",
        [module_database.owner, module_database.control, module_database.app],
    )
    assert len(rows) == 3
    assert {row[1:] for row in rows} == {(False, False, False, False, False, True)}
    memberships = await module_database.fetch(
        "SELECT * FROM pg_auth_members WHERE member = ANY ($1::text[]::regrole[]::oid[])",
        [module_database.owner, module_database.control, module_database.app],
    )
    assert memberships == []


async def test_the_app_role_may_connect_and_nothing_else(
    module_database: PostgresDatabase,
) -> None:
    attempts = (
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine (a int)",
        "CREATE TEMPORARY TABLE mine (a int)",
        "CREATE DATABASE mine",
        "CREATE ROLE mine",
        "SET ROLE postgres",
        f"SET ROLE {module_database.owner}",
        f"SET SESSION AUTHORIZATION {module_database.control}",
        "COPY (SELECT 1) TO '/dev/null'",
        "SELECT * FROM pg_catalog.pg_authid",
        f"ALTER ROLE {module_database.app} BYPASSRLS",
    )
    assert await refused(module_database, module_database.app, *attempts) == list(attempts)
    assert await refused(module_database, module_database.app, "SELECT 1") == []
    usable = "SELECT nspname FROM pg_namespace WHERE has_schema_privilege($1, oid, 'USAGE')"
    assert {name for (name,) in await module_database.fetch(usable, module_database.app)} == {
        "information_schema",
        "pg_catalog",
    }


async def test_the_app_role_does_not_bypass_row_level_security(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    async with database.connection(database.owner) as owner:
        await owner.execute(
            "CREATE TABLE notes AS SELECT unnest(ARRAY['a', 'b']) AS tenant;"
            "ALTER TABLE notes ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY one ON notes USING (tenant = 'a');"
            f"GRANT USAGE ON SCHEMA public TO {database.app};"
            f"GRANT SELECT ON notes TO {database.app}"
        )
        assert await owner.fetchval("SELECT count(*) FROM notes") == 2
    async with database.connection(database.app) as app:
        assert await app.fetchval("SELECT count(*) FROM notes") == 1


async def test_the_owner_creates_in_its_database_only(
    postgres_database: PostgresDatabase, module_database: PostgresDatabase
) -> None:
    database = postgres_database
    allowed = (
        "CREATE TABLE mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE TEMPORARY TABLE t (a int)",
    )
    assert await refused(database, database.owner, *allowed) == []
    forbidden = ("CREATE DATABASE mine", "CREATE ROLE mine", "SET ROLE postgres")
    assert await refused(database, database.owner, *forbidden) == list(forbidden)


async def test_the_control_role_creates_schemas_and_owns_nothing_of_others(
    postgres_database: PostgresDatabase,
) -> None:
    database = postgres_database
    allowed = (
        "CREATE SCHEMA store",
        "CREATE TABLE store.tenants (a int)",
        f"GRANT USAGE ON SCHEMA store TO {database.app}",
        "CREATE TEMPORARY TABLE t (a int)",
    )
    assert await refused(database, database.control, *allowed) == []
    await database.admin(f"CREATE SCHEMA other AUTHORIZATION {database.owner}")
    forbidden = (
        "CREATE TABLE public.mine (a int)",
        "CREATE TABLE other.mine (a int)",
        "DROP SCHEMA other",
        f"DROP DATABASE {database.name}",
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        f"SET ROLE {database.owner}",
    )
    assert await refused(database, database.control, *forbidden) == list(forbidden)


async def test_the_control_role_creates_roles_where_that_was_asked_for(
    postgres_server: PostgresServer,
) -> None:
    database = await create_database(postgres_server, createrole=True)
    role = f"{database.name}_made"
    assert await refused(database, database.control, f"CREATE ROLE {role} LOGIN") == []
    forbidden = f"ALTER ROLE {role} BYPASSRLS"
    assert await refused(database, database.control, forbidden) == [forbidden]
    assert await refused(database, database.control, f"DROP ROLE {role}") == []
    await database.drop()


async def test_nobody_from_another_test_can_connect(
    postgres_database: PostgresDatabase, module_database: PostgresDatabase
) -> None:
    for role in (module_database.owner, module_database.control, module_database.app):
        server = postgres_database.server
        url = server.url(
            user=role, password=module_database.password, database=postgres_database.name
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            await asyncpg.connect(plain(url))


async def test_drop_takes_everything_also_from_under_open_connections(
    postgres_server: PostgresServer, module_database: PostgresDatabase
) -> None:
    database = await create_database(postgres_server, prefix="gone")
    async with database.connection(database.control) as control:
        await control.execute("CREATE SCHEMA store CREATE TABLE tenants (a int)")
        await database.drop()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await control.execute("SELECT 1")
    left = await module_database.fetch(
        "SELECT datname::text FROM pg_database WHERE datname = $1"
        " UNION ALL SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, $1)",
        database.name,
    )
    assert left == []


async def test_drop_takes_rights_in_other_databases_along(
    postgres_server: PostgresServer, module_database: PostgresDatabase
) -> None:
    database = await create_database(postgres_server)
    await module_database.admin(
        f"CREATE SCHEMA given; GRANT ALL ON SCHEMA given TO {database.app}",
        f"GRANT CONNECT ON DATABASE {module_database.name} TO {database.app}",
    )
    await database.drop()
    assert not await module_database.fetchval(
        "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, $1)", database.name
    )


def test_a_password_is_in_no_repr(module_database: PostgresDatabase) -> None:
    assert module_database.password not in repr(module_database)
    assert module_database.password not in module_database.app_url  # quoted


async def test_databases_of_one_server_do_not_share_names(
    postgres_database: PostgresDatabase, module_database: PostgresDatabase
) -> None:
    assert postgres_database.name != module_database.name
    assert postgres_database.password != module_database.password
