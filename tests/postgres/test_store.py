"""The tenant store on PostgreSQL: in a schema of its own, read in one round trip."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from support.services.databases import fresh_database
from tenancy_core import TenancyConfig
from tenancy_core._stores.sql import SqlTenantStore
from tenancy_core.errors import BackendUnavailable, CommitUnknown, ConfigurationError
from tenancy_core.sql import ConnectionBudget
from tenancy_core.sql.tables import METADATA
from tenancy_core.testing import TenantStoreSuite, make_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.postgres import Postgres
    from support.services.round_trips import RoundTripCounter
    from tenancy_core import TenantStore

TABLES = """
    SELECT schemaname::text, count(*) FROM pg_tables
     WHERE tablename LIKE 'tenancy\\_%' GROUP BY 1
"""


def store_on(url: str, **settings: Any) -> SqlTenantStore:
    config = TenancyConfig(
        **{
            "database_url": url,
            "database_pool_size": 4,
            "database_max_overflow": 0,
            "max_database_connections": 4,
            **settings,
        }
    )
    return SqlTenantStore(config, ConnectionBudget(config.connection_ceiling))


class TestStore(TenantStoreSuite):
    @pytest.fixture
    async def store(self, postgres_database: PostgresDatabase) -> AsyncIterator[TenantStore]:
        async with store_on(postgres_database.control_url) as opened:
            yield opened


class TestStorePooled(TenantStoreSuite):
    options: ClassVar[dict[str, Any]] = {"max_prepared_statements": 0}

    @pytest.fixture
    async def store(
        self, postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
    ) -> AsyncIterator[TenantStore]:
        # Two: a store keeps its readers from waiting for a writer.
        bouncer = pgbouncer(pool_mode="transaction", default_pool_size=2, **self.options)
        url = postgres_database.url(postgres_database.control, via=bouncer)
        async with store_on(url) as opened:
            yield opened


# -- the place -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_tables_are_in_a_schema_of_their_own(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url):
        assert await postgres_database.fetch(TABLES) == [("tenancy", len(METADATA.tables))]


@pytest.mark.anyio
async def test_many_that_start_at_once_make_the_tables_once(
    postgres_database: PostgresDatabase,
) -> None:
    stores = [store_on(postgres_database.control_url) for _ in range(8)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        opening = [group.create_task(store.__aenter__()) for store in stores]
    assert len(opening) == 8
    keys = {await store.instance_key() for store in stores}
    assert len(keys) == 1
    for store in stores:
        await store.__aexit__(None, None, None)
    assert await postgres_database.fetch(TABLES) == [("tenancy", len(METADATA.tables))]


@pytest.mark.anyio
async def test_a_role_that_may_not_make_them_is_told_what_to_run(
    postgres_database: PostgresDatabase,
) -> None:
    with pytest.raises(ConfigurationError, match="CREATE SCHEMA tenancy AUTHORIZATION") as caught:
        async with store_on(postgres_database.app_url):
            pass
    assert "TENANCY_DATABASE_URL" in str(caught.value)
    assert postgres_database.password not in str(caught.value)
    # What it says helps.
    role = postgres_database.app
    await postgres_database.admin(f'CREATE SCHEMA tenancy AUTHORIZATION "{role}"')
    async with store_on(postgres_database.app_url) as store:
        assert await store.last_change() == 0


@pytest.mark.anyio
async def test_the_layout_of_another_version_is_refused(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url):
        pass
    await postgres_database.admin(
        "UPDATE tenancy.tenancy_counters SET value = 99 WHERE name = 'schema'"
    )
    with pytest.raises(ConfigurationError, match="layout 99"):
        async with store_on(postgres_database.control_url):
            pass


@pytest.mark.anyio
async def test_A1_the_sessions_role_cannot_touch_the_log(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url):
        for statement in (
            "SELECT * FROM tenancy.tenancy_audit",
            "INSERT INTO tenancy.tenancy_audit DEFAULT VALUES",
            "UPDATE tenancy.tenancy_audit SET actor = 'nobody'",
            "DELETE FROM tenancy.tenancy_audit",
            "TRUNCATE tenancy.tenancy_audit",
            "SELECT * FROM tenancy.tenancy_tenants",
            "SELECT * FROM tenancy.tenancy_keys",
        ):
            async with postgres_database.connection(postgres_database.app) as connection:
                with pytest.raises(Exception, match="permission denied for schema tenancy"):
                    await connection.execute(statement)


# -- what it costs ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_look_up_takes_one_round_trip(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.control_url)
    async with store_on(counter.url) as store:
        async with store.transaction() as transaction:
            await transaction.create(make_tenant("acme"))
        await store.get_by_identifier("acme")
        counter.reset()
        for _ in range(10):
            assert await store.get_by_identifier("acme") is not None
        assert counter.round_trips == 10, counter.counts


# -- what breaks -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("delivered", [True, False])
async def test_A3_a_lost_COMMIT_is_read_back(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy], delivered: bool
) -> None:
    proxy = chaos_proxy(postgres_database.control_url)
    tenant = make_tenant("acme")

    async def create(store: SqlTenantStore) -> None:
        async with store.transaction() as transaction:
            await transaction.create(tenant)
            await transaction.enqueue(tenant.id)
            (proxy.kill_after if delivered else proxy.kill_when)(b"COMMIT")

    async with store_on(proxy.url) as store:
        if delivered:
            await create(store)
        else:
            with pytest.raises(BackendUnavailable, match="nothing was changed"):
                await create(store)
        assert (await store.get(tenant.id) is not None) == delivered


@pytest.mark.anyio
async def test_a_lost_COMMIT_that_nobody_can_read_back_is_unknown(
    postgres_victim: Postgres,
) -> None:
    with fresh_database(postgres_victim) as database:
        tenant = make_tenant("acme")
        async with store_on(database.control_url, database_pool_timeout=5) as store:
            with pytest.raises((CommitUnknown, BackendUnavailable)):
                async with store.transaction() as transaction:
                    await transaction.create(tenant)
                    await transaction.enqueue(tenant.id)
                    postgres_victim.kill()
            postgres_victim.start()
            assert await store.get(tenant.id) is None


@pytest.mark.anyio
async def test_P5_the_store_heals_when_the_server_comes_back(postgres_victim: Postgres) -> None:
    with fresh_database(postgres_victim) as database:
        async with store_on(database.control_url, database_pool_timeout=5) as store:
            async with store.transaction() as transaction:
                await transaction.create(make_tenant("acme"))
            postgres_victim.kill()
            with pytest.raises(BackendUnavailable):
                await store.get_by_identifier("acme")
            postgres_victim.start()
            assert await store.get_by_identifier("acme") is not None


@pytest.mark.anyio
async def test_P5_a_connection_that_was_closed_while_idle_is_replaced(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url) as store:
        for _ in range(4):
            assert await store.get_by_identifier("acme") is None
            await postgres_database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1",
                postgres_database.control,
            )
            async with asyncio.timeout(30):
                while any(
                    not record.dbapi_connection.driver_connection.is_closed()
                    for record in store._database.engine.pool._free
                ):
                    await asyncio.sleep(0.005)


@pytest.mark.anyio
async def test_errors_tell_no_password(postgres_database: PostgresDatabase) -> None:
    wrong = postgres_database.control_url.replace(":", ":x", 2).replace(":x//", "://", 1)
    with pytest.raises(BackendUnavailable) as caught:
        async with store_on(wrong):
            pass
    assert "28P01" in str(caught.value)
    assert postgres_database.password not in repr(caught.value)
    assert postgres_database.control not in str(caught.value)


@pytest.mark.anyio
async def test_A2_eight_writers_with_rollbacks_leave_no_gap(
    postgres_database: PostgresDatabase,
) -> None:
    async with store_on(postgres_database.control_url) as store:
        tenant = make_tenant("acme")
        async with store.transaction() as transaction:
            await transaction.create(tenant)

        async def write(number: int) -> None:
            for turn in range(10):
                try:
                    async with store.transaction() as transaction:
                        await transaction.enqueue(tenant.id)
                        if (number + turn) % 3 == 0:
                            raise LookupError
                except LookupError:
                    pass

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(write(number))
        changes = await store.changes(after=0)
        assert [change.sequence for change in changes] == list(range(1, len(changes) + 1))
        assert len(changes) == 80 - sum(
            (number + turn) % 3 == 0 for number in range(8) for turn in range(10)
        )
