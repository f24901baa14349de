"""Where the control tables are on PostgreSQL, who makes them, and who has no business there."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import asyncpg
import pytest

from support.postgres_store import TABLES, store_on
from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql.tables import METADATA
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer

pytestmark = pytest.mark.anyio

ALL = [("tenancy", len(METADATA.tables))]

# Of a database's own order nothing is said by tests that run where it is "C".
OTHER_ORDER = """
    SELECT a.attrelid::regclass::text, a.attname::text
      FROM pg_attribute AS a
      JOIN pg_class AS c ON c.oid = a.attrelid
     WHERE c.relnamespace = 'tenancy'::regnamespace AND c.relkind IN ('r', 'i')
       AND a.atttypid = 'varchar'::regtype AND a.attcollation <> '"C"'::regcollation
"""


async def works(url: str) -> None:
    """See that a store can be opened, written and read."""
    tenant = make_tenant("acme")
    async with store_on(url) as store:
        async with store.transaction() as transaction:
            await transaction.create(tenant)
            await transaction.enqueue(tenant.id)
        assert await store.get_by_identifier("acme") is not None


async def test_the_tables_are_in_a_schema_of_their_own(
    postgres_database: PostgresDatabase,
) -> None:
    await works(postgres_database.control_url)
    assert await postgres_database.fetch(TABLES) == ALL


async def test_names_are_in_the_order_of_bytes_whatever_that_of_the_database_is(
    postgres_database: PostgresDatabase,
) -> None:
    await works(postgres_database.control_url)
    assert await postgres_database.fetch(OTHER_ORDER) == []


# -- the first start -------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
async def test_many_that_start_at_once_make_the_tables_once(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer], *, pooled: bool
) -> None:
    url = postgres_database.control_url
    if pooled:
        bouncer = pgbouncer(pool_mode="transaction", default_pool_size=8)
        url = postgres_database.url(postgres_database.control, via=bouncer)
    # All of them find that there is nothing, before one of them makes it.
    stores = [store_on(url) for _ in range(8)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for store in stores:
            group.create_task(store.__aenter__())
    assert len({await store.instance_key() for store in stores}) == 1
    for store in stores:
        await store.__aexit__(None, None, None)
    assert await postgres_database.fetch(TABLES) == ALL


async def test_one_that_dies_half_way_leaves_nothing(postgres_database: PostgresDatabase) -> None:
    """The schema, the tables and what is in them are of one transaction."""
    await postgres_database.admin(
        "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF to_regclass('tenancy.tenancy_audit') IS NOT NULL"
        " THEN RAISE 'no more' USING ERRCODE = '53100'; END IF; END $$",
        "CREATE EVENT TRIGGER full_disk ON ddl_command_end EXECUTE FUNCTION fail()",
    )
    with pytest.raises(BackendUnavailable, match="53100"):
        await works(postgres_database.control_url)
    assert await postgres_database.fetch("SELECT 1 FROM pg_namespace WHERE nspname='tenancy'") == []
    await postgres_database.admin("DROP EVENT TRIGGER full_disk")
    await works(postgres_database.control_url)


@pytest.mark.parametrize("layout", [99, 1])
async def test_the_layout_of_another_version_is_refused_and_left_alone(
    postgres_database: PostgresDatabase, layout: int
) -> None:
    await works(postgres_database.control_url)
    await postgres_database.fetch(
        "UPDATE tenancy.tenancy_counters SET value = $1 WHERE name = 'schema' RETURNING value",
        layout,
    )
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=f"layout {layout}") as caught:
            async with store_on(postgres_database.control_url):
                pass
        assert "TENANCY_CONTROL_DATABASE_URL" in str(caught.value)
    count = "SELECT count(*) FROM tenancy.tenancy_tenants"
    assert await postgres_database.fetchval(count) == 1


# -- rights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
async def test_a_role_that_may_not_make_them_is_told_what_to_run(
    postgres_database: PostgresDatabase, which: int
) -> None:
    """Either of the two that it is told helps, also for a name that has to be quoted."""
    role = f"{postgres_database.name}-It's"
    url = postgres_database.url(role)
    await postgres_database.admin(
        f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{postgres_database.password}'",
        f'GRANT CONNECT ON DATABASE {postgres_database.name} TO "{role}"',
    )
    try:
        with pytest.raises(ConfigurationError) as caught:
            await works(url)
        said = str(caught.value)
        assert "TENANCY_DATABASE_URL" in said
        assert postgres_database.password not in said
        assert await postgres_database.fetch(TABLES) == []
        found = re.search(
            [r"CREATE SCHEMA .*? AUTHORIZATION .*?(?=;)", r"GRANT CREATE ON .*?(?=\. )"][which],
            said,
        )
        assert found is not None, said
        await postgres_database.admin(found[0])
        await works(url)
    finally:
        await postgres_database.admin(f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


async def test_a_schema_that_somebody_else_made_is_used(
    postgres_database: PostgresDatabase,
) -> None:
    """The role has no right to make schemas, and the schema is not its own."""
    await postgres_database.admin(
        f"CREATE SCHEMA tenancy AUTHORIZATION {postgres_database.owner}",
        f"GRANT USAGE, CREATE ON SCHEMA tenancy TO {postgres_database.app}",
    )
    await works(postgres_database.app_url)
    assert await postgres_database.fetch(TABLES) == ALL


async def test_tables_that_somebody_else_made_need_rights_of_which_it_is_told(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url):
        pass
    with pytest.raises(ConfigurationError, match="GRANT USAGE, CREATE ON SCHEMA") as caught:
        await works(postgres_database.app_url)
    await postgres_database.admin(*re.findall(r"GRANT \w+, .*?(?=;|\.$)", str(caught.value)))
    await works(postgres_database.app_url)


async def test_A1_the_app_role_cannot_touch_the_log(postgres_database: PostgresDatabase) -> None:
    await works(postgres_database.control_url)
    for statement in (
        "SELECT * FROM tenancy.tenancy_audit",
        "INSERT INTO tenancy.tenancy_audit DEFAULT VALUES",
        "UPDATE tenancy.tenancy_audit SET actor = 'nobody'",
        "DELETE FROM tenancy.tenancy_audit",
        "TRUNCATE tenancy.tenancy_audit",
        "ALTER TABLE tenancy.tenancy_audit DISABLE TRIGGER ALL",
        "DROP SCHEMA tenancy CASCADE",
        "CREATE TABLE tenancy.mine (id integer)",
        "SELECT * FROM tenancy.tenancy_audit_heads",
        "SELECT * FROM tenancy.tenancy_tenants",
        "SELECT * FROM tenancy.tenancy_secrets",
        "SELECT * FROM tenancy.tenancy_keys",
    ):
        async with postgres_database.connection(postgres_database.app) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    for table in METADATA.tables:
        held = await postgres_database.fetchval(
            "SELECT has_table_privilege($1, $2::regclass,"
            " 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')",
            postgres_database.app,
            f"tenancy.{table}",
        )
        assert not held, table
