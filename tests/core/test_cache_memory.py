"""The cache backend in memory: values, generations and the invalidation bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy_core import Tenancy
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._directory import Directory, L1Cache
from tenancy_core._stores.memory import MemoryTenantStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """X8: everything here runs on both."""
    backend: str = request.param
    return backend


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_value_is_kept_for_its_time_and_not_longer() -> None:
    clock = Clock()
    cache = MemoryCacheBackend(clock=clock)
    await cache.set("k", b"\x00\xff", ttl=10)
    clock.now = 9.99
    assert await cache.get("k") == b"\x00\xff"
    clock.now = 10
    assert await cache.get("k") is None
    assert not cache._entries


async def test_a_value_is_replaced_with_its_time_and_deleted_without_an_error() -> None:
    clock = Clock()
    cache = MemoryCacheBackend(clock=clock)
    await cache.set("k", b"old", ttl=1)
    await cache.set("k", b"new", ttl=100)
    clock.now = 50
    assert await cache.get("k") == b"new"
    for _ in range(2):
        await cache.delete("k")
    assert await cache.get("k") is None


async def test_what_was_used_least_recently_is_dropped_first() -> None:
    cache = MemoryCacheBackend(max_entries=3, clock=Clock())
    for key in ("a", "b", "c"):
        await cache.set(key, key.encode(), ttl=10)
    await cache.get("a")
    await cache.set("b", b"b", ttl=10)
    await cache.set("d", b"d", ttl=10)
    assert [key for key in "abcd" if await cache.get(key)] == ["a", "b", "d"]


async def test_the_generation_goes_up_when_it_is_bumped_and_only_then() -> None:
    cache = MemoryCacheBackend()
    first = await cache.generation()
    assert await cache.generation() == first
    assert await cache.generation(bump=True) == first + 1
    assert await cache.generation() == first + 1


async def test_a_message_reaches_everybody_who_has_subscribed_and_nobody_afterwards() -> None:
    cache = MemoryCacheBackend()
    await cache.publish("to nobody")
    async with cache.subscribe() as one:
        async with cache.subscribe() as other:
            await cache.publish("to both")
            assert await anext(one) == "to both"
            assert await anext(other) == "to both"
        await cache.publish("to one")
        assert await anext(one) == "to one"
        with pytest.raises(anyio.ClosedResourceError):
            await anext(other)
    await cache.publish("to nobody")
    assert not cache._subscribers


async def test_a_subscriber_that_reads_nothing_holds_nobody_up_and_loses_nothing() -> None:
    cache = MemoryCacheBackend()
    async with cache.subscribe() as slow, cache.subscribe() as quick:
        for number in range(1000):
            await cache.publish(str(number))
            assert await anext(quick) == str(number)
        assert [await anext(slow) for _ in range(1000)] == [str(number) for number in range(1000)]


async def test_a_subscriber_that_is_cancelled_is_gone() -> None:
    cache = MemoryCacheBackend()

    async def listen() -> None:
        async with cache.subscribe() as messages:
            async for _ in messages:
                pass

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        assert len(cache._subscribers) == 1
        group.cancel_scope.cancel()
    assert not cache._subscribers
    await cache.publish("to nobody")


identifiers = st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,20}", fullmatch=True)


@given(identifiers, identifiers, st.integers(0, 10**6), st.integers(0, 10**6))
def test_I10_two_tenants_or_generations_never_share_a_key(
    one: str, other: str, generation: int, other_generation: int
) -> None:
    async def keys() -> list[str]:
        cache = MemoryCacheBackend()
        directory = Directory(
            MemoryTenantStore(), L1Cache(1, 1.0, Clock()), shared=cache, shared_ttl=1, owner=None
        )
        made: list[str] = []
        for number, identifier in ((generation, one), (other_generation, other)):
            cache._generation = number
            made.append(await directory._key(cache, identifier))
        return made

    first, second = anyio.run(keys)
    assert (first == second) is ((generation, one) == (other_generation, other))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_can_be_the_second_cache_of_a_service(
    make_config: Callable[..., TenancyConfig],
) -> None:
    cache = MemoryCacheBackend()
    store = MemoryTenantStore()
    config = make_config(cache_enabled=True)
    async with Tenancy(config, store=store, cache_backend=cache) as one:
        acme = await one.tenants.create("acme")
        async with one.scope("acme"):
            assert len(cache._entries) == 1
        async with Tenancy(config, store=store, cache_backend=cache) as other:
            async with other.scope("acme") as found:
                assert found == acme
                assert found is not acme
            await one.tenants.suspend("acme")
            assert not cache._entries
