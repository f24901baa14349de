"""One tenant's slow requests, or its server that hangs, are no other tenant's business."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from support.scoped import Base, Note, settings_for
from support.waiting import until
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget
from tenancy_core.testing import make_tenant
from tenancy_postgres import PostgresSettings, RlsIsolation, SchemaIsolation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.services.chaos import ChaosProxy
    from support.services.databases import PostgresDatabase
    from tenancy_core.tenant import Tenant

pytestmark = pytest.mark.anyio

POOL = 8
SHARE = 4
"""Half of the pool, which is smaller than the ceiling."""

SLEEPING = """
    SELECT application_name, count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND query LIKE '%pg_sleep(600)%' AND state = 'active'
       AND pid <> pg_backend_pid()
     GROUP BY 1
"""


class Watched(ConnectionBudget):
    """Counts who had to wait, and the most that each had at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waited: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()

    async def acquire(self, pool: Any, holder: Any, timeout: float) -> Any:  # noqa: ASYNC109
        self.waited[holder.key] += 1
        return await super().acquire(pool, holder, timeout)

    def _hold(self, holder: Any) -> None:
        super()._hold(holder)
        self.most[holder.key] = max(self.most[holder.key], holder.in_use)


@asynccontextmanager
async def served(
    database: PostgresDatabase,
    kind: type[Any],
    budget: Watched | None = None,
    clock: Callable[[], float] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Any, Watched]]:
    config = settings_for(
        database,
        **{
            "database_pool_size": POOL,
            "database_max_overflow": 0,
            "max_database_connections": 20,
            **settings,
        },
    )
    budget = budget or Watched.from_config(config)  # type: ignore[assignment]
    assert budget is not None
    section = {"admin_url": database.owner_url} if kind is RlsIsolation else {}
    options = {} if clock is None else {"clock": clock}
    made = kind(config, budget, PostgresSettings(**section), Base.metadata, **options)
    async with made as isolation:
        yield isolation, budget


async def provisioned(isolation: Any, *identifiers: str) -> list[Tenant]:
    tenants = [make_tenant(name, isolation=isolation.name) for name in identifiers]
    for tenant in tenants:
        await isolation.provision(tenant)
    return tenants


async def request(isolation: Any, tenant: Tenant) -> None:
    async with isolation.session(tenant) as session:
        await session.scalars(select(Note.text))


@pytest.mark.parametrize("kind", [SchemaIsolation, RlsIsolation])
async def test_D3_one_tenant_opens_500_slow_requests(
    postgres_database: PostgresDatabase, kind: type[Any]
) -> None:
    async with served(postgres_database, kind) as (isolation, budget):
        hog, other, third = await provisioned(isolation, "hog", "other", "third")

        async def slow() -> None:
            async with isolation.session(hog) as session:
                await session.execute(text("SELECT pg_sleep(600)"))

        async def quick(tenant: Tenant) -> None:
            for _ in range(40):
                await request(isolation, tenant)

        waiting = 500 - SHARE
        tasks = [asyncio.create_task(slow()) for _ in range(500)]
        await until(lambda: budget.waiting == waiting)

        async def asleep() -> dict[str, int]:
            return dict(await postgres_database.fetch(SLEEPING))

        while await asleep() != {"tenancy/hog": SHARE}:
            await asyncio.sleep(0.01)
        # None of the slow ones is done before these are.
        async with asyncio.TaskGroup() as group:
            for tenant in (other, other, third):
                group.create_task(quick(tenant))
        assert await asleep() == {"tenancy/hog": SHARE}
        assert budget.waiting == waiting
        assert not any(task.done() for task in tasks)
        name = hog.placement.name
        assert budget.most[name] == SHARE
        assert set(budget.waited) == {name}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: not budget.holders)
        assert (budget.waiting, budget.most[name]) == (0, SHARE)
        await request(isolation, hog)


@pytest.mark.parametrize("kind", [SchemaIsolation, RlsIsolation])
async def test_D3_all_of_500_requests_get_their_turn_and_never_more_than_the_share_at_once(
    postgres_database: PostgresDatabase, kind: type[Any]
) -> None:
    async with served(postgres_database, kind) as (isolation, budget):
        (hog,) = await provisioned(isolation, "hog")
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for _ in range(500):
                group.create_task(request(isolation, hog))
        assert budget.most[hog.placement.name] == SHARE
        assert not budget.holders


@pytest.mark.parametrize("kind", [SchemaIsolation, RlsIsolation])
async def test_D3_more_waiting_requests_than_allowed_are_refused_at_once(
    postgres_database: PostgresDatabase, kind: type[Any]
) -> None:
    async with served(postgres_database, kind, database_max_waiting=10) as (isolation, budget):
        hog, other = await provisioned(isolation, "hog", "other")
        outcomes = await asyncio.gather(
            *(request(isolation, hog) for _ in range(100)), return_exceptions=True
        )
        refused = [error for error in outcomes if error is not None]
        # Four were served at once, ten waited, and nothing was given back before all had come.
        assert len(refused) == 100 - SHARE - 10
        for error in refused:
            assert isinstance(error, BackendUnavailable)
            assert "which is its share" in str(error)
            assert error.retry_after is not None
        assert not budget.holders
        await request(isolation, other)


async def test_P11_one_tenants_database_hangs(
    postgres_database: PostgresDatabase, chaos_proxy: Callable[..., ChaosProxy]
) -> None:
    """Its requests hold no more than its share, and are soon refused; nobody else waits."""
    proxy = chaos_proxy(postgres_database.app_url)
    ceiling = {"max_database_connections": 9, "database_connect_timeout": 1}
    now = 0.0
    async with (
        served(postgres_database, SchemaIsolation, **ceiling) as (isolation, budget),
        served(
            postgres_database,
            SchemaIsolation,
            budget,
            lambda: now,
            database_url=proxy.url,
            **ceiling,
        ) as (far, _),
    ):
        hung, other = await provisioned(isolation, "hung", "other")
        await request(far, hung)
        proxy.blackhole = True
        tasks = [asyncio.create_task(request(far, hung)) for _ in range(200)]
        await until(lambda: budget.in_use(hung.placement.name) == SHARE)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(request(isolation, other))
        for _ in range(50):
            await request(isolation, other)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {BackendUnavailable}
        # Those that were trying found it out for all that waited.
        told = sum("is tried again in" in str(outcome) for outcome in outcomes)
        assert told >= 200 - 2 * SHARE
        with pytest.raises(BackendUnavailable, match="tried again in") as caught:
            await request(far, hung)
        assert caught.value.retry_after == pytest.approx(1)
        proxy.blackhole = False
        with pytest.raises(BackendUnavailable, match="tried again in"):
            await request(far, hung)
        now = 1.0
        await request(far, hung)
        name = hung.placement.name
        assert budget.most[name] <= SHARE
        assert set(budget.waited) == {name}
        await until(lambda: not budget.holders)
