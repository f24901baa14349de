"""What a tenant's own login opens, and what it does not."""

from __future__ import annotations

import logging
import re
import traceback
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from support.databases import KeptSecrets, database_isolation
from support.places import connected, places
from support.postgres import Base, Note, provisioned
from support.services.databases import fresh_database
from support.services.postgres import Postgres as PostgresService
from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_postgres.database.credentials import Credentials

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from support.services.databases import PostgresDatabase
    from tenancy_core import Tenant
    from tenancy_postgres import DatabaseIsolation

pytestmark = pytest.mark.anyio


@contextmanager
def private_server(**config: object) -> Generator[PostgresService]:
    """A server of a test's own, which may be set up as no other test wants it."""
    server = PostgresService(config=config)
    try:
        server.start()
        yield server
    finally:
        server.close()


@asynccontextmanager
async def logged_in(
    database: PostgresDatabase, secrets: KeptSecrets, tenant: Tenant, name: str | None = None
) -> AsyncGenerator[asyncpg.Connection]:
    """Log in past the library, with what it keeps of a tenant."""
    login = await Credentials(secrets).get(tenant.id)
    assert login is not None
    connection = await asyncpg.connect(
        host=database.server.host,
        port=database.server.port,
        user=tenant.placement.name,
        password=login.password,
        database=name or tenant.placement.name,
        timeout=60,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=60)


async def write(isolation: DatabaseIsolation, tenant: Tenant, words: str) -> None:
    async with isolation.session(tenant) as session:
        session.add(Note(text=words))


async def read(isolation: DatabaseIsolation, tenant: Tenant) -> list[str]:
    async with isolation.session(tenant) as session:
        return list(await session.scalars(select(Note.text)))


# -- nothing else ----------------------------------------------------------------------------------

PUBLIC = ("postgres", "template1")


async def test_a_tenants_login_opens_its_own_database_only() -> None:
    with (
        private_server() as server,
        fresh_database(server, createrole=True, createdb=True) as database,
    ):
        # As docs/guides/postgres.md has it: every role may connect to these on a new server.
        await database.admin(*(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC" for name in PUBLIC))
        secrets = KeptSecrets()
        async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
            tenants = await provisioned(isolation, "acme", "beta")
            everything = {
                name for (name,) in await database.fetch("SELECT datname FROM pg_database")
            }
            # Two tenants', their template, the store's, and the server's own three.
            assert len(everything) == 7
            for tenant in tenants:
                opened = set[str]()
                for name in everything:
                    try:
                        async with logged_in(database, secrets, tenant, name):
                            opened.add(name)
                    except (
                        asyncpg.InsufficientPrivilegeError,
                        asyncpg.ObjectNotInPrerequisiteStateError,
                    ):
                        pass
                assert opened == {tenant.placement.name}


async def test_a_tenants_login_does_nothing_to_others(database: PostgresDatabase) -> None:
    secrets = KeptSecrets()
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        await write(isolation, beta, "beta's")
        before = await places(database)
        other, group = beta.placement.name, f"{database.control}_tenants"
        mine = acme.placement.name
        async with logged_in(database, secrets, acme) as connection:
            for attack in (
                f'SET ROLE "{other}"',
                f'SET ROLE "{database.control}"',
                f'SET SESSION AUTHORIZATION "{other}"',
                f'SET SESSION AUTHORIZATION "{group}"',
                f"ALTER ROLE \"{other}\" PASSWORD 'mine'",
                f"ALTER ROLE \"{group}\" LOGIN PASSWORD 'mine'",
                f'ALTER ROLE "{mine}" CREATEDB',
                f'ALTER ROLE "{mine}" CREATEROLE',
                f'ALTER ROLE "{mine}" SUPERUSER',
                f'ALTER ROLE "{mine}" RENAME TO "{mine}_x"',
                "CREATE ROLE stranger LOGIN",
                "CREATE DATABASE stranger",
                f'CREATE DATABASE stranger TEMPLATE "{mine}"',
                f'GRANT "{group}" TO "{other}"',
                f'GRANT "{other}" TO "{mine}"',
                f'GRANT CONNECT ON DATABASE "{mine}" TO PUBLIC',
                f'GRANT CONNECT ON DATABASE "{other}" TO "{mine}"',
                f'ALTER DATABASE "{mine}" OWNER TO "{mine}"',
                f'ALTER DATABASE "{mine}" SET search_path = pg_temp',
                f'ALTER DATABASE "{other}" ALLOW_CONNECTIONS false',
                f"COMMENT ON DATABASE \"{mine}\" IS 'nobody''s'",
                f"COMMENT ON ROLE \"{mine}\" IS 'nobody''s'",
                f'DROP DATABASE "{other}"',
                f'DROP ROLE "{other}"',
                "CREATE EXTENSION dblink",
                "CREATE SCHEMA mine",
                "CREATE TABLE mine (id integer)",
                "DROP TABLE notes",
                "TRUNCATE notes",
                "COPY notes FROM PROGRAM 'id'",
                "SELECT pg_read_file('pg_hba.conf')",
                "SELECT rolpassword FROM pg_authid",
                "SELECT umoptions FROM pg_user_mapping",
            ):
                # A warning is an answer as well: nothing was granted.
                try:
                    await connection.execute(attack)
                except asyncpg.PostgresError:
                    continue
                assert await places(database) == before, attack
                assert attack.startswith("GRANT CONNECT"), attack
        assert await places(database) == before
        assert await read(isolation, beta) == ["beta's"]


async def test_the_role_of_all_tenants_reaches_one_tenants_rows(database: PostgresDatabase) -> None:
    """Its rights exist in every tenant's database; where one is connected, they are that one's."""
    secrets = KeptSecrets()
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        for tenant in (acme, beta):
            await write(isolation, tenant, tenant.identifier)
        group = f"{database.control}_tenants"
        async with logged_in(database, secrets, acme) as connection:
            await connection.execute(f'SET ROLE "{group}"')
            rows = await connection.fetch("SELECT current_database(), text FROM notes")
            assert [tuple(row) for row in rows] == [(acme.placement.name, "acme")]
            for attack in (
                "CREATE TABLE mine (id integer)",
                "DROP TABLE notes",
                "CREATE TEMPORARY TABLE mine (id integer)",
                f'SET ROLE "{beta.placement.name}"',
                f'GRANT "{group}" TO "{beta.placement.name}"',
            ):
                with pytest.raises(asyncpg.PostgresError):
                    await connection.execute(attack)
        assert not await database.fetch(
            "SELECT 1 FROM pg_database WHERE has_database_privilege($1, oid, 'CONNECT')"
            " AND pg_get_userbyid(datdba) = $2",
            group,
            database.control,
        )


# -- its own password ------------------------------------------------------------------------------


async def test_a_handler_that_changes_the_password_locks_its_own_tenant_out_until_it_is_mended(
    database: PostgresDatabase,
) -> None:
    """Every role may change its own password, and there is no right to take away for it."""
    secrets = KeptSecrets()
    async with (
        database_isolation(database, Base.metadata, secrets=secrets) as isolation,
        database_isolation(database, Base.metadata, secrets=secrets) as other,
    ):
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            await session.execute(text(f"ALTER ROLE \"{acme.placement.name}\" PASSWORD 'mine'"))
        with pytest.raises(BackendUnavailable):
            await read(other, acme)
        assert await read(other, beta) == []
        await other.provision(acme)
        for one in (isolation, other):
            assert await read(one, acme) == []
        async with isolation.session(acme) as session:
            await session.execute(text(f"ALTER ROLE \"{acme.placement.name}\" PASSWORD 'mine'"))
        await other.rotate_credentials(acme)
        assert await read(other, acme) == []


async def test_C5_what_a_role_has_in_another_database_is_told(
    database: PostgresDatabase,
) -> None:
    """A default privilege is an object that nobody needs a right to make, where one may connect."""
    secrets = KeptSecrets()
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with logged_in(database, secrets, acme, "postgres") as connection:
            await connection.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
        with pytest.raises(ConfigurationError, match=r"rights in postgres\. Run there") as caught:
            await isolation.destroy(acme)
        assert not await isolation.exists(acme)
        (line,) = re.findall(r"DROP OWNED BY \S+(?=;)", str(caught.value))
        async with connected(database, "postgres") as connection:
            await connection.execute(line)
        await isolation.destroy(acme)
        assert len((await places(database))["roles"]) == 1


# -- secrecy ---------------------------------------------------------------------------------------


async def test_the_password_is_nowhere_to_be_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets, told = KeptSecrets(), list[str]()
    with (
        private_server(log_statement="all", log_min_error_statement="debug5") as server,
        fresh_database(server, createrole=True, createdb=True) as database,
    ):
        async with database_isolation(
            database, Base.metadata, secrets=secrets, database_echo=True
        ) as isolation:
            (acme,) = await provisioned(isolation, "acme")
            passwords = [await password(secrets, acme)]
            await read(isolation, acme)
            await isolation.rotate_credentials(acme)
            passwords.append(await password(secrets, acme))
            await isolation.provision(acme)
            await database.admin(f'ALTER ROLE "{acme.placement.name}" NOLOGIN')
        async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
            told += [repr(isolation), str(vars(isolation))]
            with pytest.raises(BackendUnavailable) as caught:
                await read(isolation, acme)
            told += traceback.format_exception(caught.value)
            told.append(repr(await Credentials(secrets).get(acme.id)))
            with pytest.raises(DBAPIError) as failed:
                await database.admin(f'ALTER ROLE "{acme.placement.name}" LOGIN')
                async with isolation.session(acme) as session:
                    await session.execute(text("SELECT 1/0"))
            told += traceback.format_exception(failed.value)
        log = (server.folder / "log").read_text()
    assert "SCRAM-SHA-256$" in log
    assert len({*passwords}) == 2
    for secret in passwords:
        for where in (log, caplog.text, *told):
            assert secret not in where


async def password(secrets: KeptSecrets, tenant: Tenant) -> str:
    login: Any = await Credentials(secrets).get(tenant.id)
    return str(login.password)
