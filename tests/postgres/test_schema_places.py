"""Tenants' schemas: whose they are, what is in them, and who may do what there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DDL

from support.postgres import Note, opened, provisioned
from support.services.databases import fresh_database
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    IdentifierCollision,
    IsolationError,
)
from tenancy_core.tenant import Placement
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from support.services.databases import PostgresDatabase
    from support.services.postgres import Postgres

pytestmark = pytest.mark.anyio


def named(identifier: str, place: str) -> Any:
    """Return a tenant whose schema has a certain name."""
    return replace(make_tenant(identifier, isolation="schema"), placement=Placement(name=place))


async def schemas(database: PostgresDatabase) -> list[str]:
    rows = await database.fetch(
        "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'tenant%' ORDER BY 1"
    )
    return [name for (name,) in rows]


# -- whose it is -----------------------------------------------------------------------------------


async def test_I1_two_tenants_whose_names_agree_never_share_a_schema(
    postgres_database: PostgresDatabase,
) -> None:
    one, other = named("acme", "tenant_same"), named("beta", "tenant_same")
    async with opened(postgres_database) as isolation:
        await isolation.provision(one)
        async with isolation.session(one) as session:
            session.add(Note(text="acme's"))
        for refused in (isolation.provision, isolation.exists, isolation.destroy):
            with pytest.raises(IdentifierCollision, match="tenant_same"):
                await refused(other)
        async with isolation.session(one) as session:
            assert (await session.scalars(select(Note.text))).all() == ["acme's"]


@pytest.mark.parametrize("place", ["tenant_stranger", "information_schema", "public", "pg_toast"])
async def test_I4_a_schema_that_tenancy_did_not_make_is_not_touched(
    postgres_database: PostgresDatabase, place: str
) -> None:
    if place == "tenant_stranger":
        await postgres_database.admin(
            f'CREATE SCHEMA {place} AUTHORIZATION "{postgres_database.control}"',
            f"CREATE TABLE {place}.precious (id integer)",
        )
    async with opened(postgres_database) as isolation:
        tenant = named("acme", place)
        for refused in (isolation.provision, isolation.destroy):
            with pytest.raises((IdentifierCollision, ConfigurationError)):
                await refused(tenant)
    if place == "tenant_stranger":
        assert await postgres_database.fetch(f"TABLE {place}.precious") == []


@pytest.mark.parametrize(
    "place", ['a"; drop schema public; --', "semi;colon", "it's", "back\\slash", "%s", ":x", "{}"]
)
async def test_I5_whatever_is_in_a_name_it_is_quoted(
    postgres_database: PostgresDatabase, place: str
) -> None:
    """Names are derived and harmless. This is what a lax validator would let through."""
    for mode in ("search_path", "qualified"):
        tenant = named("acme", f"{place} {mode[:4]}")
        async with opened(postgres_database, settings={"schema_mode": mode}) as isolation:
            await isolation.provision(tenant)
            assert await isolation.exists(tenant)
            for read_only in (False, True):
                async with isolation.session(tenant, read_only=read_only) as session:
                    assert (await session.scalars(select(Note.text))).all() == []
            await isolation.destroy(tenant)
            assert not await isolation.exists(tenant)


async def test_a_table_that_the_tenant_does_not_have_is_nobody_elses(
    postgres_database: PostgresDatabase,
) -> None:
    """The search path holds the tenant's schema only: nothing falls through to public."""
    await postgres_database.admin(
        "CREATE TABLE public.notes (id integer, text text)",
        "CREATE TABLE public.only_here (id integer)",
        "GRANT USAGE ON SCHEMA public TO PUBLIC",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC",
        "INSERT INTO public.notes VALUES (1, 'everybody''s')",
    )
    for mode in ("search_path", "qualified"):
        async with opened(postgres_database, settings={"schema_mode": mode}) as isolation:
            (acme,) = await provisioned(isolation, f"acme-{mode[:4]}")
            for read_only in (False, True):
                async with isolation.session(acme, read_only=read_only) as session:
                    assert (await session.scalars(select(Note.text))).all() == []
                with pytest.raises(DBAPIError, match=r'"only_here" does not exist'):
                    async with isolation.session(acme, read_only=read_only) as session:
                        await session.execute(text("SELECT * FROM only_here"))


async def test_a_missing_table_is_the_applications_error_and_a_missing_schema_is_not(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        with pytest.raises(DBAPIError, match="no_such_table"):
            async with isolation.session(acme) as session:
                await session.execute(text("SELECT * FROM no_such_table"))
        with pytest.raises(IsolationError, match="not provisioned"):
            async with isolation.session(make_tenant("ghost", isolation="schema")) as session:
                await session.execute(select(Note))


# -- making it -------------------------------------------------------------------------------------


async def test_what_is_missing_in_a_schema_is_completed(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        place = acme.placement.name
        await postgres_database.admin(f'DROP TABLE "{place}".notes')
        await isolation.provision(acme)
        async with isolation.session(acme) as session:
            session.add(Note(text="works"))


async def test_a_failing_definition_leaves_nothing_behind(
    postgres_database: PostgresDatabase,
) -> None:
    metadata = MetaData()
    Table("first", metadata, Column("id", Integer, primary_key=True))
    last = Table("last", metadata, Column("id", Integer, primary_key=True))
    event.listen(last, "after_create", DDL("SELECT 1/0"))
    async with opened(postgres_database, metadata=metadata) as isolation:
        tenant = make_tenant("acme", isolation="schema")
        with pytest.raises(Exception, match="division by zero"):
            await isolation.provision(tenant)
        assert not await isolation.exists(tenant)
        assert await schemas(postgres_database) == []


async def test_a_role_that_may_not_make_schemas_is_told_what_it_lacks(
    postgres_database: PostgresDatabase,
) -> None:
    await postgres_database.admin(
        f'REVOKE CREATE ON DATABASE "{postgres_database.name}" FROM "{postgres_database.control}"'
    )
    async with opened(postgres_database) as isolation:
        with pytest.raises(ConfigurationError, match="GRANT CREATE ON DATABASE") as caught:
            await isolation.provision(make_tenant("acme", isolation="schema"))
        assert "TENANCY_CONTROL_DATABASE_URL" in str(caught.value)


async def test_a_role_that_does_not_own_a_tenants_schema_is_told_so(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        place, owner = acme.placement.name, postgres_database.owner
        await postgres_database.admin(
            f'DROP TABLE "{place}".notes', f'ALTER SCHEMA "{place}" OWNER TO "{owner}"'
        )
        with pytest.raises(ConfigurationError, match=f'ALTER SCHEMA "{place}" OWNER TO'):
            await isolation.provision(acme)


async def test_the_control_role_of_another_database_is_refused(
    postgres_database: PostgresDatabase, postgres_server: Postgres
) -> None:
    with fresh_database(postgres_server) as other:
        with pytest.raises(ConfigurationError, match="TENANCY_POSTGRES_ADMIN_URL"):
            async with opened(postgres_database, control_database_url=other.control_url):
                pass
        async with opened(
            postgres_database,
            control_database_url=other.control_url,
            settings={"admin_url": postgres_database.control_url},
        ) as isolation:
            await provisioned(isolation, "acme")
        assert len(await schemas(postgres_database)) == 1


async def test_what_a_migration_adds_is_the_sessions_to_use(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with postgres_database.connection(postgres_database.control) as migrating:
            await migrating.execute(
                f'CREATE TABLE "{acme.placement.name}".later (id serial, text text)'
            )
        async with isolation.session(acme) as session:
            await session.execute(text("INSERT INTO later (text) VALUES ('there')"))


async def test_the_sessions_role_may_neither_create_nor_drop(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        for statement in (
            "CREATE TABLE mine (id integer)",
            "DROP TABLE notes",
            "TRUNCATE notes",
            "CREATE SCHEMA mine",
            f'DROP SCHEMA "{acme.placement.name}" CASCADE',
        ):
            with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
                async with isolation.session(acme) as session:
                    await session.execute(text(statement))


async def test_C5_a_session_that_is_open_keeps_its_schema_from_being_removed(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, database_pool_timeout=0.5) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        async with isolation.session(acme) as session:
            session.add(Note(text="kept"))
            await session.flush()
            with pytest.raises(BackendUnavailable, match="lock"):
                await isolation.destroy(acme)
        async with isolation.session(acme) as session:
            assert (await session.scalars(select(Note.text))).all() == ["kept"]
        await isolation.destroy(acme)
        assert await schemas(postgres_database) == []


# -- shared tables ---------------------------------------------------------------------------------

SHARED = MetaData()
countries = Table("countries", SHARED, Column("code", String(2), primary_key=True), schema="shared")
addresses = Table(
    "addresses",
    SHARED,
    Column("id", Integer, primary_key=True),
    Column("country", ForeignKey("shared.countries.code")),
)


async def test_C2_tenants_made_and_removed_at_once_all_get_their_rights_on_what_is_shared(
    postgres_server: Postgres,
) -> None:
    pool = {"database_pool_size": 20, "max_database_connections": 24}
    names = [f"tenant-{number}" for number in range(40)]
    # No table of theirs refers to it: a foreign key would make them wait for one another.
    metadata = MetaData()
    Table("rates", metadata, Column("code", String(2), primary_key=True), schema="shared")
    with fresh_database(postgres_server, createrole=True) as database:
        async with opened(
            database, metadata=metadata, settings={"schema_roles": True}, **pool
        ) as isolation:
            await provisioned(isolation, "first")
            async with asyncio.TaskGroup() as group:
                making = [group.create_task(provisioned(isolation, name)) for name in names]
            async with asyncio.TaskGroup() as group:
                for made in making:
                    group.create_task(isolation.destroy(made.result()[0]))


@pytest.mark.parametrize("mode", ["search_path", "qualified"])
@pytest.mark.parametrize("roles", ["one", "each"])
async def test_shared_tables_stand_beside_the_tenants_own(
    postgres_server: Postgres, mode: str, roles: str
) -> None:
    settings = {"schema_mode": mode, "schema_roles": roles == "each"}
    with fresh_database(postgres_server, createrole=True) as database:
        async with (
            opened(database, metadata=SHARED, settings=settings) as isolation,
            opened(database, metadata=SHARED, settings=settings) as another_process,
        ):
            # The first tenants of two processes, which both find that the tables are missing.
            async with asyncio.TaskGroup() as group:
                first = group.create_task(provisioned(isolation, "acme"))
                second = group.create_task(provisioned(another_process, "beta"))
            tenants = [*first.result(), *second.result()]
            await database.admin("INSERT INTO shared.countries VALUES ('NL')")
            for tenant in tenants:
                async with isolation.session(tenant) as session:
                    await session.execute(insert(addresses).values(country="NL"))
                for read_only in (False, True):
                    async with isolation.session(tenant, read_only=read_only) as session:
                        query = select(addresses.c.id).join(countries)
                        assert len((await session.scalars(query)).all()) == 1
                with pytest.raises(DBAPIError, match="permission denied"):
                    async with isolation.session(tenant) as session:
                        await session.execute(insert(countries).values(code="DE"))
            for tenant in tenants:
                await isolation.destroy(tenant)
            assert await database.fetch("SELECT code FROM shared.countries") == [("NL",)]
            roles_left = await database.fetch(
                "SELECT rolname FROM pg_roles WHERE rolname = ANY ($1)",
                [tenant.placement.name for tenant in tenants],
            )
            assert roles_left == []


# -- a role for each -------------------------------------------------------------------------------


async def test_L7_with_a_role_for_each_tenant_names_are_no_way_to_another(
    postgres_server: Postgres,
) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        async with opened(database, settings={"schema_roles": True}) as isolation:
            acme, beta = await provisioned(isolation, "acme", "beta")
            async with isolation.session(beta) as session:
                session.add(Note(text="beta's"))
            with pytest.raises(DBAPIError, match="permission denied"):
                async with isolation.session(acme) as session:
                    await session.execute(text(f'TABLE "{beta.placement.name}".notes'))


async def test_without_one_names_are_a_way_as_the_documents_say(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database) as isolation:
        acme, beta = await provisioned(isolation, "acme", "beta")
        async with isolation.session(beta) as session:
            session.add(Note(text="beta's"))
        async with isolation.session(acme) as session:
            found = await session.execute(text(f'TABLE "{beta.placement.name}".notes'))
            assert [row.text for row in found] == ["beta's"]


async def test_a_role_that_may_not_make_roles_is_told_so(
    postgres_database: PostgresDatabase,
) -> None:
    async with opened(postgres_database, settings={"schema_roles": True}) as isolation:
        with pytest.raises(ConfigurationError, match="CREATEROLE"):
            await isolation.provision(make_tenant("acme", isolation="schema"))
        assert await schemas(postgres_database) == []


async def test_a_tenant_whose_role_was_removed_is_refused(postgres_server: Postgres) -> None:
    with fresh_database(postgres_server, createrole=True) as database:
        async with opened(database, settings={"schema_roles": True}) as isolation:
            (acme,) = await provisioned(isolation, "acme")
            role = f'"{acme.placement.name}"'
            await database.admin(f"DROP OWNED BY {role}", f"DROP ROLE {role}")
            with pytest.raises(IsolationError, match="no role of its own"):
                async with isolation.session(acme) as session:
                    await session.execute(select(Note))


async def test_one_role_for_everything_is_told_in_the_log(
    postgres_database: PostgresDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_database.owner_url
    async with opened(postgres_database, url=url, control_database_url=None):
        assert "name another role in TENANCY_CONTROL_DATABASE_URL" in caplog.text
    caplog.clear()
    async with opened(postgres_database):
        assert caplog.text == ""
