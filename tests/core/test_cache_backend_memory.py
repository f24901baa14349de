"""The shared cache in memory: bounded, believed for a time, and its bus reaches who listens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tenancy_core._cache.memory import MemoryCacheBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tenancy_core.contract import CacheBackend

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name = request.param
    assert isinstance(name, str)
    return name


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> CacheBackend:
    # Typed as the contract, so that the type checker compares the two.
    return MemoryCacheBackend(max_entries=3, clock=clock)


async def take(messages: AsyncIterator[str], count: int) -> list[str]:
    with anyio.fail_after(30):
        return [await anext(messages) for _ in range(count)]


async def kept(cache: CacheBackend, keys: str) -> str:
    return "".join([key for key in keys if await cache.get(key) is not None])


# -- values --------------------------------------------------------------------------------------


async def test_a_value_is_given_back_as_it_was_set(cache: CacheBackend) -> None:
    assert await cache.get("a") is None
    for value in (b"1", b"", b"\x00\xff"):
        await cache.set("a", value, ttl=60)
        assert await cache.get("a") == value
    assert await cache.get("b") is None


async def test_a_value_is_believed_for_its_time_and_no_longer(
    cache: CacheBackend, clock: Clock
) -> None:
    await cache.set("a", b"1", ttl=60)
    await cache.set("b", b"2", ttl=0.5)
    clock.now += 0.25
    assert await kept(cache, "ab") == "ab"
    clock.now += 0.25
    assert await kept(cache, "ab") == "a"
    clock.now += 59.25
    assert await kept(cache, "ab") == "a"
    clock.now += 0.25
    assert await kept(cache, "ab") == ""


async def test_reading_a_value_does_not_make_it_last(cache: CacheBackend, clock: Clock) -> None:
    await cache.set("a", b"1", ttl=10)
    for _ in range(9):
        clock.now += 1
        assert await cache.get("a") == b"1"
    clock.now += 1
    assert await cache.get("a") is None


async def test_setting_a_value_again_starts_its_time_again_longer_or_shorter(
    cache: CacheBackend, clock: Clock
) -> None:
    await cache.set("a", b"1", ttl=10)
    clock.now += 9
    await cache.set("a", b"2", ttl=10)
    clock.now += 9
    assert await cache.get("a") == b"2"
    await cache.set("a", b"3", ttl=0.5)
    clock.now += 0.5
    assert await cache.get("a") is None


@pytest.mark.parametrize("ttl", [0.0, -1.0])
async def test_a_value_without_time_replaces_the_old_one_and_is_never_seen(
    cache: CacheBackend, ttl: float
) -> None:
    await cache.set("a", b"1", ttl=60)
    await cache.set("a", b"2", ttl=ttl)
    assert await cache.get("a") is None


async def test_a_deleted_value_is_gone_and_deleting_it_again_is_no_error(
    cache: CacheBackend,
) -> None:
    await cache.set("a", b"1", ttl=60)
    await cache.set("b", b"2", ttl=60)
    for _ in range(2):
        await cache.delete("a")
        assert await kept(cache, "ab") == "b"
    await cache.set("a", b"3", ttl=60)
    assert await cache.get("a") == b"3"


# -- size ----------------------------------------------------------------------------------------


async def test_what_was_used_least_recently_goes_when_it_is_full(cache: CacheBackend) -> None:
    for key in "abc":
        await cache.set(key, b"1", ttl=60)
    await cache.get("a")
    await cache.set("b", b"2", ttl=60)
    await cache.set("d", b"1", ttl=60)
    assert await kept(cache, "abcd") == "abd"


async def test_setting_what_is_in_it_pushes_nothing_out(cache: CacheBackend) -> None:
    for key in "abc":
        await cache.set(key, b"1", ttl=60)
    for _ in range(10):
        await cache.set("c", b"2", ttl=60)
    assert await kept(cache, "abc") == "abc"


async def test_K2_it_never_holds_more_than_it_may_read_or_unread(clock: Clock) -> None:
    cache = MemoryCacheBackend(max_entries=3, clock=clock)
    for number in range(1000):
        # Some have expired, some have not, and nobody ever asks for one.
        await cache.set(str(number), b"1", ttl=number % 5)
        clock.now += 1
        assert len(cache._entries) <= 3
    assert len(cache._entries) == 3


async def test_an_expired_value_takes_no_room_once_it_was_asked_for(clock: Clock) -> None:
    cache = MemoryCacheBackend(max_entries=3, clock=clock)
    await cache.set("a", b"1", ttl=1)
    clock.now += 1
    await cache.get("a")
    assert not cache._entries


# -- generation ----------------------------------------------------------------------------------


async def test_a_generation_changes_when_it_is_bumped_and_only_then(cache: CacheBackend) -> None:
    first = await cache.generation()
    assert await cache.generation() == first
    seen = {first}
    for _ in range(5):
        bumped = await cache.generation(bump=True)
        assert bumped not in seen
        assert await cache.generation() == bumped
        seen.add(bumped)


# -- bus -----------------------------------------------------------------------------------------


async def test_every_subscriber_hears_everything_in_order(cache: CacheBackend) -> None:
    async with cache.subscribe() as one, cache.subscribe() as two, cache.subscribe() as three:
        for message in ("a", "b", "c"):
            await cache.publish(message)
        for messages in (one, two, three):
            assert await take(messages, 3) == ["a", "b", "c"]


async def test_a_subscriber_that_waits_is_woken(cache: CacheBackend) -> None:
    heard: list[str] = []

    async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with cache.subscribe() as messages:
            task_status.started()
            heard.extend(await take(messages, 2))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                await tasks.start(listen)
            await cache.publish("a")
            await cache.publish("b")
    assert sorted(heard) == ["a", "a", "a", "b", "b", "b"]


async def test_a_subscriber_hears_nothing_of_before_it_came(cache: CacheBackend) -> None:
    await cache.publish("nobody hears it")
    subscription = cache.subscribe()
    await cache.publish("nor this")
    async with subscription as messages:
        await cache.publish("a")
        assert await take(messages, 1) == ["a"]


async def test_a_publisher_never_waits_for_who_does_not_listen(cache: CacheBackend) -> None:
    numbers = [str(number) for number in range(10_000)]
    async with cache.subscribe() as slow, cache.subscribe() as never:
        with anyio.fail_after(30):
            for number in numbers:
                await cache.publish(number)
        assert await take(slow, len(numbers)) == numbers
        assert never is not slow


async def test_who_left_is_forgotten_and_the_others_go_on(clock: Clock) -> None:
    cache = MemoryCacheBackend(clock=clock)
    async with cache.subscribe() as stays:
        async with cache.subscribe() as leaves:
            await cache.publish("a")
            # It leaves with one message unread.
            await cache.publish("b")
            assert await take(leaves, 1) == ["a"]
        assert len(cache._subscribers) == 1
        await cache.publish("c")
        assert await take(stays, 3) == ["a", "b", "c"]
    assert not cache._subscribers
    await cache.publish("nobody hears it")


async def test_who_failed_or_was_cancelled_while_it_waited_is_forgotten(clock: Clock) -> None:
    cache = MemoryCacheBackend(clock=clock)

    async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with cache.subscribe() as messages:
            task_status.started()
            await anext(messages)
            pytest.fail("Nothing was published.")

    async with cache.subscribe() as stays:
        async with anyio.create_task_group() as tasks:
            await tasks.start(listen)
            assert len(cache._subscribers) == 2
            tasks.cancel_scope.cancel()
        with pytest.raises(LookupError):
            async with cache.subscribe():
                raise LookupError
        assert len(cache._subscribers) == 1
        await cache.publish("a")
        assert await take(stays, 1) == ["a"]
