"""What a tenant costs on the wire: nothing. Counted by a proxy, tenants rotating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from support.postgres import Base, Note, opened, provisioned

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.services.databases import PostgresDatabase
    from support.services.round_trips import RoundTripCounter

pytestmark = pytest.mark.anyio

ROUNDS = 30


async def rotate(isolation: Any, tenants: list[Any], *, read_only: bool = False) -> None:
    for number in range(ROUNDS):
        tenant = tenants[number % len(tenants)]
        async with isolation.session(tenant, read_only=read_only) as session:
            await session.execute(select(Note.id))


@pytest.fixture
async def counted_plainly(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> int:
    """Round trips of one SELECT without tenancy, once everything is warm."""
    counter = round_trip_counter(postgres_database.owner_url)
    engine = create_async_engine(counter.url, pool_size=1, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    counts = []
    for _ in range(3):
        counter.reset()
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(select(Note.id))
        counts.append(counter.round_trips)
    await engine.dispose()
    return min(counts)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("pre_ping", [True, False])
async def test_a_tenants_session_takes_no_more_than_a_plain_one(
    postgres_database: PostgresDatabase,
    round_trip_counter: Callable[..., RoundTripCounter],
    counted_plainly: int,
    pre_ping: bool,
    read_only: bool,
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    async with opened(
        postgres_database, url=counter.url, database_pool_pre_ping=pre_ping
    ) as isolation:
        tenants = await provisioned(isolation, "acme", "beta", "gamma")
        await rotate(isolation, tenants, read_only=read_only)
        counter.reset()
        await rotate(isolation, tenants, read_only=read_only)
        assert counted_plainly == 3
        assert counter.round_trips == ROUNDS * counted_plainly, counter.counts


async def test_a_qualified_declared_read_takes_one(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    settings = {"schema_mode": "qualified"}
    async with opened(postgres_database, url=counter.url, settings=settings) as isolation:
        tenants = await provisioned(isolation, "acme", "beta", "gamma")
        await rotate(isolation, tenants, read_only=True)
        counter.reset()
        await rotate(isolation, tenants, read_only=True)
        assert counter.round_trips == ROUNDS, counter.counts
        # A session that writes takes what a plain one does.
        await rotate(isolation, tenants)
        counter.reset()
        await rotate(isolation, tenants)
        assert counter.round_trips == ROUNDS * 3, counter.counts


async def test_what_may_have_left_something_is_cleaned_with_one_more(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    settings = {"schema_mode": "qualified"}
    async with opened(postgres_database, url=counter.url, settings=settings) as isolation:
        (acme,) = await provisioned(isolation, "acme")
        probe = text("SELECT pg_catalog.current_setting('search_path')")
        for _ in range(2):
            async with isolation.session(acme, read_only=True) as session:
                assert (await session.scalar(probe)) == ""
                await session.execute(text("SET search_path = public"))
        counter.reset()
        async with isolation.session(acme, read_only=True) as session:
            await session.execute(probe)
        assert counter.round_trips == 2, counter.counts


async def test_provisioning_takes_one_for_all_of_a_tenants_tables(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.control_url)
    async with opened(postgres_database, settings={"admin_url": counter.url}) as isolation:
        await provisioned(isolation, "acme")
        counter.reset()
        await provisioned(isolation, "beta", "gamma")
        assert counter.round_trips == 2, counter.counts


async def test_the_plans_time_outs_ride_along(
    postgres_database: PostgresDatabase, round_trip_counter: Callable[..., RoundTripCounter]
) -> None:
    counter = round_trip_counter(postgres_database.app_url)
    plans = {"pro": {"statement_timeout": 1.5, "lock_timeout": 0.25, "idle_timeout": 7}}
    async with opened(postgres_database, url=counter.url, plans=plans) as isolation:
        (acme,) = await provisioned(isolation, "acme", plan="pro")
        await rotate(isolation, [acme])
        counter.reset()
        await rotate(isolation, [acme])
        assert counter.round_trips == ROUNDS * 3, counter.counts
