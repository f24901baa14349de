"""Engines in a bounded set that never gives up one in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from support.real_connections import RealConnections, count_connections
from support.waiting import until
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget, EngineCache, EngineLease, make_engine
from tenancy_core.sql.sqlite import file_url
from tenancy_core.tenant import Placement
from tenancy_core.testing.fakes import make_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tenancy_core import TenancyConfig
    from tenancy_core.tenant import Tenant

pytestmark = pytest.mark.anyio


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


@pytest.fixture
def budget() -> ConnectionBudget:
    return ConnectionBudget(20)


@pytest.fixture
def made() -> list[str]:
    """Keys of the engines that were made, in order."""
    return []


@pytest.fixture
async def cache(
    tmp_path: Path,
    make_config: Callable[..., TenancyConfig],
    budget: ConnectionBudget,
    made: list[str],
) -> AsyncIterator[EngineCache]:
    config = make_config()

    def make(tenant: Tenant) -> AsyncEngine:
        made.append(key := tenant.placement.name)
        return make_engine(file_url(tmp_path / f"{key}.db"), config, budget)

    async with EngineCache(make, 2) as opened:
        yield opened


@pytest.fixture
async def renewing(
    tmp_path: Path, make_config: Callable[..., TenancyConfig], budget: ConnectionBudget
) -> AsyncIterator[EngineCache]:
    config = make_config()

    def make(tenant: Tenant) -> AsyncEngine:
        return make_engine(file_url(tmp_path / tenant.placement.name), config, budget)

    async with EngineCache(make, 2, renews=True) as opened:
        yield opened


def place(name: str, version: int = 1) -> Tenant:
    return make_tenant(placement=Placement(name=name), version=version)


async def use(lease: EngineLease) -> None:
    async with lease.engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


async def use_and_release(cache: EngineCache, *keys: str) -> None:
    for key in keys:
        lease = cache.lease(place(key))
        await use(lease)
        await lease.release()


async def test_P9_a_hundred_first_requests_of_a_tenant_make_one_engine(
    cache: EngineCache, made: list[str]
) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(use_and_release(cache, "a"))
    assert made == ["a"]


async def test_the_engine_that_was_used_least_recently_goes_first(
    cache: EngineCache, budget: ConnectionBudget, made: list[str]
) -> None:
    await use_and_release(cache, "a", "b", "a", "c")
    assert [key for key in "abc" if key in cache] == ["a", "c"]
    assert budget.open == budget.idle == 2
    await use_and_release(cache, "b")
    assert made == ["a", "b", "c", "b"]


async def test_P7_an_engine_in_use_is_never_evicted(cache: EngineCache, made: list[str]) -> None:
    held = [cache.lease(place(key)) for key in ("a", "b", "c")]
    assert len(cache) == 3
    await use_and_release(cache, "d", "e")
    assert [key for key in "abcde" if key in cache] == ["a", "b", "c"]
    for lease in held:
        await use(lease)
    second = cache.lease(place("a"))
    assert second.engine is held[0].engine
    for lease in held:
        await lease.release()
    # One of the two users of `a` is still there; `b` is the oldest that is not in use.
    assert [key for key in "abc" if key in cache] == ["a", "c"]
    await second.release()
    assert made == ["a", "b", "c", "d", "e"]


async def test_P7_an_evicted_engine_is_closed_and_makes_no_second_pool(
    cache: EngineCache, real: RealConnections
) -> None:
    lease = cache.lease(place("a"))
    await use(lease)
    engine = lease.engine
    await lease.release()
    await use_and_release(cache, "b", "c")
    assert "a" not in cache
    assert real.now == 2
    with pytest.raises(BackendUnavailable):
        await engine.connect()
    assert real.now == 2


async def test_P7_while_engines_come_and_go_nobody_loses_the_one_in_use(
    cache: EngineCache, budget: ConnectionBudget, real: RealConnections
) -> None:
    async def work(number: int) -> None:
        for turn in range(6):
            lease = cache.lease(place("abcde"[(number + turn) % 5]))
            try:
                await use(lease)
                await asyncio.sleep(0)
                await use(lease)
            finally:
                await lease.release()

    async with asyncio.TaskGroup() as group:
        for number in range(25):
            group.create_task(work(number))
    assert len(cache) == 2
    assert budget.open == budget.idle == real.now <= 20


async def test_closing_the_cache_closes_every_engine_and_refuses_new_leases(
    cache: EngineCache, budget: ConnectionBudget, real: RealConnections
) -> None:
    await use_and_release(cache, "a", "b")
    held = cache.lease(place("c"))
    await use(held)
    await cache.__aexit__(None, None, None)
    assert (len(cache), budget.open, real.now) == (0, 0, 0)
    with pytest.raises(BackendUnavailable):
        cache.lease(place("a"))
    with pytest.raises(BackendUnavailable):
        await use(held)
    await held.release()
    await cache.__aenter__()
    await use_and_release(cache, "a")


async def test_closing_is_not_stopped_half_way_by_a_cancellation(
    cache: EngineCache, budget: ConnectionBudget, real: RealConnections
) -> None:
    await use_and_release(cache, "a", "b")
    task = asyncio.create_task(cache.__aexit__(None, None, None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(BackendUnavailable):
        cache.lease(place("a"))
    await until(lambda: real.now == 0)
    assert budget.open == 0


# -- barring ---------------------------------------------------------------------------------------


async def test_a_barred_key_has_no_open_connection_and_gets_none(
    cache: EngineCache, real: RealConnections
) -> None:
    await use_and_release(cache, "a", "b")
    async with cache.barred("a", 30):
        assert real.now == 1
        with pytest.raises(BackendUnavailable, match="removed"):
            cache.lease(place("a"))
        with pytest.raises(BackendUnavailable, match="removed"):
            await cache.barred("a", 30).__aenter__()
        await use_and_release(cache, "b")
    await use_and_release(cache, "a")


async def test_barring_a_key_waits_for_those_who_use_it(
    cache: EngineCache, real: RealConnections
) -> None:
    leases = [cache.lease(place("a")), cache.lease(place("a"))]
    await use(leases[0])
    entered = asyncio.Event()

    async def bar() -> None:
        async with cache.barred("a", 60):
            entered.set()
            assert real.now == 0

    async with asyncio.TaskGroup() as group:
        group.create_task(bar())
        await until(lambda: "a" in cache._barred)
        await leases[0].release()
        await use(leases[1])
        assert not entered.is_set()
        await leases[1].release()
    assert entered.is_set()
    await use_and_release(cache, "a")


async def test_a_key_that_stays_in_use_is_not_barred(cache: EngineCache) -> None:
    lease = cache.lease(place("a"))
    with pytest.raises(BackendUnavailable, match=r"still in use after 0\.01 seconds"):
        await cache.barred("a", 0.01).__aenter__()
    await use(lease)
    await use_and_release(cache, "a")
    await lease.release()


async def test_barring_that_is_cancelled_bars_nobody(cache: EngineCache) -> None:
    lease = cache.lease(place("a"))
    task = asyncio.create_task(cache.barred("a", 60).__aenter__())
    await until(lambda: "a" in cache._barred)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await use_and_release(cache, "a")
    await lease.release()


async def test_P10_a_changed_record_gets_a_new_engine_and_the_old_one_serves_to_its_end(
    renewing: EngineCache, budget: ConnectionBudget
) -> None:
    old = renewing.lease(place("a"))
    await use(old)
    new = renewing.lease(place("a", version=2))
    assert new.engine is not old.engine
    # Somebody who read the record before it was changed.
    late = renewing.lease(place("a"))
    assert late.engine is new.engine
    await use(old)
    await use(new)
    assert budget.open == 2
    await late.release()
    await new.release()
    assert budget.open == 2
    await old.release()
    assert (budget.open, len(renewing)) == (1, 1)
    with pytest.raises(BackendUnavailable, match="closed"):
        await use(old)


async def test_a_place_is_barred_only_when_its_old_engine_is_unused_too(
    renewing: EngineCache, budget: ConnectionBudget
) -> None:
    old = renewing.lease(place("a"))
    await renewing.lease(place("a", version=2)).release()
    with pytest.raises(BackendUnavailable, match="still in use"):
        async with renewing.barred("a", 0.01):
            raise AssertionError("It was entered.")
    await old.release()
    async with renewing.barred("a", 10):
        assert budget.open == 0


async def test_retired_engines_are_closed_with_the_cache(
    renewing: EngineCache, budget: ConnectionBudget
) -> None:
    old = renewing.lease(place("a"))
    await use(old)
    await use(renewing.lease(place("a", version=2)))
    assert budget.open == 2
    await renewing.__aexit__(None, None, None)
    assert budget.open == 0


async def test_a_place_that_is_made_anew_gets_a_new_engine(
    cache: EngineCache, budget: ConnectionBudget
) -> None:
    await cache.renew("a")
    old = cache.lease(place("a"))
    await use(old)
    await cache.renew("a")
    new = cache.lease(place("a"))
    assert new.engine is not old.engine
    await use(new)
    assert budget.open == 2
    await old.release()
    assert budget.open == 1
    await new.release()
    await cache.renew("a")
    assert (budget.open, len(cache)) == (0, 0)
