"""What a tenant's login reaches under ``database``: its own database, and nothing beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import literal, make_url, select, text
from sqlalchemy.exc import DBAPIError

from support.databases import KeptSecrets, database_isolation
from support.places import connected
from support.postgres import Base, Note, provisioned
from support.services.databases import fresh_database
from support.services.postgres import Postgres
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    IdentifierCollision,
    TenancyError,
)
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


# -- what a tenant leaves for those who come after it ----------------------------------------------


async def test_L8_what_a_tenant_makes_is_not_called_by_whoever_completes_its_database(
    database: PostgresDatabase,
) -> None:
    secrets = KeptSecrets()
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with connected(database, acme.placement.name) as connection:
            await connection.execute(
                f'GRANT CREATE ON SCHEMA public TO "{acme.placement.name}"; DROP TABLE notes'
            )
        async with isolation.session(acme) as session:
            for kind in ("varchar", "text", "name"):
                await session.execute(
                    text(f"""
                    CREATE FUNCTION public.trap(name, {kind}) RETURNS boolean LANGUAGE plpgsql AS $$
                    BEGIN
                      IF current_user = '{database.control}' THEN
                        EXECUTE 'GRANT "{beta.placement.name}" TO "{acme.placement.name}"';
                      END IF;
                      RETURN $1::text OPERATOR(pg_catalog.=) $2::text;
                    END $$""")
                )
                await session.execute(
                    text(
                        f"CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = {kind},"
                        " PROCEDURE = public.trap)"
                    )
                )
        await isolation.provision(acme)
        members = await database.fetchval(
            "SELECT count(*) FROM pg_auth_members WHERE roleid = $1::regrole AND"
            " member = $2::regrole",
            f'"{beta.placement.name}"',
            f'"{acme.placement.name}"',
        )
        assert members == 0


async def test_L8_nobody_makes_anything_in_public_unless_they_are_let(
    database: PostgresDatabase,
) -> None:
    base = f"base_{database.name}"
    async with connected(database, "postgres") as connection:
        await connection.execute(f'CREATE DATABASE "{base}" OWNER "{database.control}"')
    async with connected(database, base) as connection:
        await connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    async with database_isolation(
        database, Base.metadata, settings={"database_template": base}
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(DBAPIError, match="permission denied for schema public"):
            async with isolation.session(acme) as session:
                await session.execute(text("CREATE TABLE public.mine (id int)"))


OF_A_ROLE = (
    "standard_conforming_strings = off",
    "default_transaction_isolation = 'read uncommitted'",
    "default_transaction_isolation = 'serializable'",
    "search_path = pg_temp",
)


@pytest.mark.parametrize("setting", OF_A_ROLE)
async def test_L13_what_the_first_tenant_of_a_process_has_set_is_nobody_elses(
    database: PostgresDatabase, secrets: KeptSecrets, setting: str
) -> None:
    async with database_isolation(database, Base.metadata, secrets=secrets) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(acme) as session:
            await session.execute(text(f"ALTER ROLE CURRENT_USER SET {setting}"))
    async with database_isolation(
        database, Base.metadata, secrets=secrets, database_pool_size=1
    ) as isolation:
        async with isolation.session(acme) as session:
            await session.execute(text("SELECT 1"))
        async with isolation.session(beta) as session:
            written = select(literal("a\\b", literal_execute=True))
            assert await session.scalar(written) == "a\\b"
            assert await session.scalar(select(literal("a_b").contains("_", autoescape=True)))
        async with isolation.session(beta) as session:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            level = await session.scalar(text("SHOW transaction_isolation"))
            assert level == "repeatable read"
        async with isolation.session(beta) as session:
            level = await session.scalar(text("SHOW transaction_isolation"))
            assert level == "read committed"


# -- what is in the way of removing ----------------------------------------------------------------


async def test_C5_a_prepared_transaction_is_told_of_before_the_database_is_closed() -> None:
    with (
        Postgres(config={"max_prepared_transactions": 2}) as server,
        fresh_database(server, createrole=True, createdb=True) as database,
    ):
        async with database_isolation(database, Base.metadata) as isolation:
            (acme,) = await provisioned(isolation, "acme")
            async with isolation.connection(acme) as connection:
                raw = await connection.get_raw_connection()
                driver: Any = raw.driver_connection
                await driver.execute("ROLLBACK; BEGIN; PREPARE TRANSACTION 'acme''s'")
            with pytest.raises(BackendUnavailable, match=r"ROLLBACK PREPARED 'acme''s'"):
                await isolation.destroy(acme)
            assert await isolation.exists(acme)
            async with connected(database, acme.placement.name) as connection:
                await connection.execute("ROLLBACK PREPARED 'acme''s'")
            await isolation.destroy(acme)
            assert not await isolation.exists(acme)


# -- what the databases are copies of --------------------------------------------------------------


async def test_C3_others_tables_in_the_base_stay_theirs(database: PostgresDatabase) -> None:
    base = f"base_{database.name}"
    async with connected(database, "postgres") as connection:
        await connection.execute(f'CREATE DATABASE "{base}" OWNER "{database.control}"')
    async with connected(database, base) as connection:
        await connection.execute(
            "CREATE TABLE public.of_an_extension (id int); CREATE TABLE public.ours (id int);"
            f'ALTER TABLE ours OWNER TO "{database.control}"'
        )
    async with database_isolation(
        database, Base.metadata, settings={"database_template": base}
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        await isolation.provision(acme)
        async with isolation.session(acme) as session:
            assert (await session.execute(text("SELECT * FROM ours"))).all() == []
        with pytest.raises(DBAPIError, match="permission denied for table of_an_extension"):
            async with isolation.session(acme) as session:
                await session.execute(text("SELECT * FROM of_an_extension"))


async def test_C3_a_base_that_cannot_be_copied_is_told(database: PostgresDatabase) -> None:
    base = f"base_{database.name}"
    async with connected(database, "postgres") as connection:
        await connection.execute(f'CREATE DATABASE "{base}"')
    acme = make_tenant("acme")
    for named, words in ((base, f'ALTER DATABASE "{base}" WITH IS_TEMPLATE true'), ("no", "'no'")):
        async with database_isolation(
            database, Base.metadata, settings={"database_template": named}
        ) as isolation:
            with pytest.raises(ConfigurationError, match=words):
                await isolation.provision(acme)
    async with connected(database, "postgres") as connection:
        await connection.execute(f'ALTER DATABASE "{base}" WITH IS_TEMPLATE true')
    async with database_isolation(
        database, Base.metadata, settings={"database_template": base}
    ) as isolation:
        await isolation.provision(acme)
        assert await notes_of(isolation, acme) == []
    async with connected(database, "postgres") as connection:
        await connection.execute(f'ALTER DATABASE "{base}" WITH IS_TEMPLATE false')


async def test_a_database_in_the_query_of_the_admin_url_is_not_where_tables_are_made(
    database: PostgresDatabase,
) -> None:
    admin = make_url(database.control_url)
    admin = admin.set(username=None, database="postgres").update_query_dict(
        {"user": database.control, "database": database.name}
    )
    async with database_isolation(
        database,
        Base.metadata,
        settings={"admin_url": admin.render_as_string(hide_password=False)},
    ) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        await isolation.provision(acme)
        assert await notes_of(isolation, acme) == []
    assert await database.fetchval("SELECT to_regclass('public.notes')") is None
    there = "SELECT count(*) FROM pg_roles WHERE rolname = $1"
    assert await database.fetchval(there, f"{database.control}_tenants") == 1
