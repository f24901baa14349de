"""What the store says to PostgreSQL, message by message, as a proxy hears it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from support.postgres_store import store_on
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.databases import PostgresDatabase
    from support.services.pgbouncer import PgBouncer
    from support.services.round_trips import Counts, RoundTripCounter
    from tenancy_core._stores.sql import SqlTenantStore

pytestmark = pytest.mark.anyio

TIMES = 10


async def write(store: SqlTenantStore, *identifiers: str) -> None:
    for identifier in identifiers:
        tenant = make_tenant(identifier)
        async with store.transaction() as transaction:
            await transaction.create(tenant)
            await transaction.enqueue(tenant.id)


def outside(counts: Counts) -> list[str]:
    """Return what was sent on no transaction, each connection by itself."""
    found: list[str] = []
    open_on: dict[int, bool] = {}
    for message in counts.messages:
        number, sql = message.connection, message.sql.upper()
        if message.round_trip == 0 or message.kind in {"Sync", "Terminate"}:
            continue
        if sql.startswith("BEGIN"):
            open_on[number] = True
        if not open_on.get(number):
            found.append(str(message))
        if sql.startswith(("COMMIT", "ROLLBACK;")):
            open_on[number] = False
    return found


@pytest.mark.parametrize("pre_ping", [True, False])
async def test_a_look_up_takes_one_round_trip(
    postgres_database: PostgresDatabase,
    round_trip_counter: Callable[..., RoundTripCounter],
    *,
    pre_ping: bool,
) -> None:
    counter = round_trip_counter(postgres_database.control_url)
    async with store_on(counter.url, database_pool_pre_ping=pre_ping) as store:
        await write(store, "acme")
        await store.get_by_identifier("acme")
        counter.reset()
        for _ in range(TIMES):
            assert await store.get_by_identifier("acme") is not None
        # Neither a BEGIN nor a ROLLBACK, nor anything for the pool.
        assert counter.round_trips == TIMES, counter.counts
        assert set(counter.counts.kinds) == {"Bind", "Execute", "Sync"}, counter.counts


async def test_a_transaction_takes_one_for_each_statement(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.control_url)
    async with store_on(counter.url) as store:
        await write(store, "acme", "beta")
        await store.get_by_identifier("beta")
        counter.reset()
        await write(store, "gamma")
        # BEGIN, SAVEPOINT, three statements, RELEASE; the counter's two, the entry, the old ones;
        # COMMIT.
        assert counter.round_trips == 11, counter.counts
        # The connection that wrote reads in one round trip again.
        counter.reset()
        await store.get_by_identifier("gamma")
        assert counter.round_trips == 1, counter.counts


async def test_a_new_connection_says_nothing_before_its_statement(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.control_url)
    async with store_on(counter.url) as store, store.transaction():
        counter.reset()
        await store.last_change()
        assert counter.counts.connections == 1
        # To prepare the statement, and to run it.
        assert counter.round_trips == 2, counter.counts


async def test_behind_a_pooler_nothing_is_said_outside_of_a_transaction(
    postgres_database: PostgresDatabase,
    pgbouncer: Callable[..., PgBouncer],
    round_trip_counter: Callable[..., RoundTripCounter],
) -> None:
    """It could send the two messages of a statement to two servers.

    The statements of a driver that asks for types when it connects would be among them: asyncpg
    before 0.31 does.
    """
    bouncer = pgbouncer(pool_mode="transaction", default_pool_size=4)
    counter = round_trip_counter(postgres_database.url(postgres_database.control, via=bouncer))
    async with store_on(counter.url) as store:
        await write(store, "acme", "beta")
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(store.get_by_identifier("acme"))
        assert counter.counts.connections == 4
        assert outside(counter.counts) == []
        counter.reset()
        for _ in range(TIMES):
            assert await store.get_by_identifier("acme") is not None
        assert outside(counter.counts) == []
        # BEGIN, to prepare, to run, ROLLBACK.
        assert counter.round_trips == 4 * TIMES, counter.counts


async def test_behind_a_pooler_no_statement_has_a_name(
    postgres_database: PostgresDatabase, pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = pgbouncer(pool_mode="transaction", default_pool_size=1)
    url = postgres_database.url(postgres_database.control, via=bouncer)
    async with store_on(url) as store:
        await write(store, "acme", "beta")
        for _ in range(TIMES):
            assert await store.get_by_identifier("acme") is not None
        # On the one server connection that there is, by way of the same pooler.
        async with store._database.engine.connect() as connection:
            names = await connection.exec_driver_sql("SELECT name FROM pg_prepared_statements")
            assert [name for (name,) in names if name] == []
