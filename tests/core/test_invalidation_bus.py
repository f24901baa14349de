"""What is published after a change, and what a process does with what it hears.

The poll comes once an hour, so that only the bus can tell.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import pytest

from support.invalidation import Ears, connected, never
from support.notes import Base
from support.plugins import distribution
from support.waiting import until
from tenancy_core import Tenancy
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._directory import ChangeFollower, ChangeListener, announcer, listener
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import (
    BackendUnavailable,
    ConfigurationError,
    DuplicateProviderError,
    TenantInactive,
    UnknownProviderError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from uuid import UUID

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


class Bus(MemoryCacheBackend):
    """A bus that a test takes down, and whose messages it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[str] = []
        self.subscriptions = 0
        self.refuses: Exception | None = None
        self.broken = asyncio.Event()

    async def publish(self, message: str, /) -> None:
        self.published.append(message)
        await super().publish(message)

    def subscribe(self) -> Any:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncIterator[str]]:
        self.subscriptions += 1
        if self.refuses is not None:
            raise self.refuses
        async with super().subscribe() as messages:
            yield messages

    def break_off(self) -> None:
        """End every subscription."""
        for subscriber in tuple(self._subscribers):
            self._subscribers.discard(subscriber)
            subscriber.close()


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "FIRST_PAUSE", 0.001)


@pytest.fixture
def process(make_config: Callable[..., TenancyConfig], bus: Bus) -> Callable[..., Tenancy]:
    """Make a Tenancy as another process has it, on the same store and the same bus."""

    def make(*, heard: Any = bus, **settings: Any) -> Tenancy:
        config = make_config(**{"invalidation_poll_seconds": 3600, **settings})
        return Tenancy(config, metadata=Base.metadata, invalidation_bus=heard, clock=never)

    return make


async def is_served(tenancy: Tenancy, tenant: str = "acme") -> bool:
    try:
        async with tenancy.scope(tenant):
            return True
    except TenantInactive:
        return False


# -- telling ---------------------------------------------------------------------------------------


async def test_K1_a_suspension_elsewhere_is_heard_and_closes_what_is_open(
    process: Callable[..., Tenancy],
) -> None:
    async with process() as one, process() as two:
        acme = await one.tenants.create("acme")
        beta = await one.tenants.create("beta")
        await connected(two)
        assert await is_served(two)
        revoked: list[str] = []
        ends = asyncio.Event()

        async def close(name: str) -> None:
            revoked.append(name)
            ends.set()

        two.watch(acme, lambda: close("acme"))
        two.watch(beta, lambda: close("beta"))
        await one.tenants.suspend("acme")
        async with asyncio.timeout(60):
            await ends.wait()
        assert revoked == ["acme"]
        assert not await is_served(two)
        assert await is_served(two, "beta")


async def test_what_is_published_is_the_id_and_who_says_so(
    process: Callable[..., Tenancy], bus: Bus
) -> None:
    async with process() as one:
        acme = await one.tenants.create("acme")
        bus.published.clear()
        await one.tenants.suspend("acme")
        await one.tenants.suspend("acme")
        (first, second) = bus.published
        assert first == second
        who, origin = first.split(" ")
        assert who == str(acme.id)
        assert len(origin) == 16
        await connected(one)
        ears = Ears(one)
        await bus.publish(first)  # its own
        await bus.publish(f"{acme.id} somebody-else")
        await bus.publish("*")
        await ears.hears(None)
        assert ears.heard == [acme.id]


async def test_others_are_told_behind_the_shared_cache_and_before_sockets_are_closed(
    make_config: Callable[..., TenancyConfig], bus: Bus
) -> None:
    """What they fetch anew is not the old record, and no client can keep them from hearing."""
    order: list[str] = []

    class Shared(MemoryCacheBackend):
        async def delete(self, key: str, /) -> None:
            order.append("shared")
            await super().delete(key)

    class Listening(Bus):
        async def publish(self, message: str, /) -> None:
            order.append("published")
            await super().publish(message)

    config = make_config(cache_enabled=True, invalidation_poll_seconds=3600)
    async with Tenancy(config, cache_backend=Shared(), invalidation_bus=Listening()) as tenancy:
        acme = await tenancy.tenants.create("acme")

        async def closes() -> None:
            order.append("closed")

        tenancy.watch(acme, closes)
        order.clear()
        await tenancy.tenants.suspend("acme")
    assert order == ["shared", "published", "closed"]


async def test_where_the_shared_cache_cannot_be_told_others_are(
    make_config: Callable[..., TenancyConfig], bus: Bus
) -> None:
    class Down(MemoryCacheBackend):
        down = False

        async def delete(self, key: str, /) -> None:
            if self.down:
                raise OSError
            await super().delete(key)

    cache = Down()
    config = make_config(cache_enabled=True, invalidation_poll_seconds=3600)
    async with Tenancy(config, cache_backend=cache, invalidation_bus=bus) as tenancy:
        await tenancy.tenants.create("acme")
        bus.published.clear()
        cache.down = True
        with pytest.raises(BackendUnavailable, match="the shared cache could not be told"):
            await tenancy.tenants.suspend("acme")
        assert len(bus.published) == 1


async def test_whoever_hears_leaves_the_shared_cache_as_it_is(
    make_config: Callable[..., TenancyConfig], bus: Bus
) -> None:
    """One change of one tenant does not empty it, however many processes hear of it."""
    cache = MemoryCacheBackend()
    config = make_config(cache_enabled=True, invalidation_poll_seconds=3600)
    async with Tenancy(config, cache_backend=cache, invalidation_bus=bus) as tenancy:
        acme = await tenancy.tenants.create("acme")
        await connected(tenancy)
        before = await cache.generation()
        ears = Ears(tenancy)
        await bus.publish(str(acme.id))
        await ears.hears(acme.id)
        assert await cache.generation() == before


async def test_a_bus_that_takes_no_messages_fails_no_change_and_is_told_once(
    process: Callable[..., Tenancy], bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Bus):
        full = True

        async def publish(self, message: str, /) -> None:
            if self.full:
                raise RuntimeError("redis://:password@host")
            await super().publish(message)

    full = Full()
    async with process(heard=full) as tenancy:
        await tenancy.tenants.create("acme")
        for again in (False, True):
            for _ in range(2):
                await tenancy.tenants.suspend("acme")
                await tenancy.tenants.resume("acme")
            assert caplog.text.count("takes no messages (RuntimeError)") == 1 + again
            full.full = False
            await tenancy.tenants.suspend("acme")
            await tenancy.tenants.resume("acme")
            full.full = True
    assert "password" not in caplog.text


async def test_a_bus_that_hangs_holds_up_a_change_for_a_while_only(
    process: Callable[..., Tenancy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "_PATIENCE", 0.05)

    class Hangs(Bus):
        async def publish(self, message: str, /) -> None:
            await anyio.sleep_forever()

    async with process(heard=Hangs()) as tenancy:
        with anyio.fail_after(60):
            await tenancy.tenants.create("acme")
            await tenancy.tenants.suspend("acme")
        assert not await is_served(tenancy)


# -- hearing ---------------------------------------------------------------------------------------


async def test_K1_a_subscription_that_ends_is_begun_anew_and_what_was_missed_asked_for(
    process: Callable[..., Tenancy], bus: Bus
) -> None:
    async with process() as one, process() as two:
        acme = await one.tenants.create("acme")
        await connected(two)
        assert await is_served(two)
        bus.refuses = OSError("not now")
        bus.break_off()
        await until(lambda: bus.subscriptions > 6)
        assert two.parts.listener is not None
        assert not two.parts.listener.connected
        assert await is_served(two)  # kept again, if the last message came behind the first time
        await one.tenants.suspend("acme")
        assert await is_served(two)
        ears = Ears(two)
        bus.refuses = None
        await ears.hears(acme.id)
        assert not await is_served(two)
        await connected(two)
        await one.tenants.resume("acme")
        await ears.hears(acme.id)
        assert await is_served(two)


async def test_K1_what_comes_between_opening_and_the_first_subscription_is_asked_for(
    process: Callable[..., Tenancy], bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.refuses = OSError("redis://:password@host")
    async with process(heard=Bus()) as one, process() as two:
        await one.tenants.create("acme")
        assert await is_served(two)
        await until(lambda: bus.subscriptions > 3)
        assert two.parts.listener is not None
        assert two.parts.listener.tried.is_set()
        assert not two.parts.listener.connected
        await one.tenants.suspend("acme")
        bus.refuses = None
        await connected(two)
        assert not await is_served(two)
    told = [record.getMessage() for record in caplog.records if "is not heard" in record.message]
    expected = (
        "the invalidation bus is not heard (OSError); changes made elsewhere are seen when the "
        "store is asked, and the bus is tried again"
    )
    assert told == [expected]


async def test_K1_a_store_that_cannot_be_asked_at_a_subscription_is_asked_again(
    process: Callable[..., Tenancy], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was missed before the subscription would be missed until the next poll."""
    async with process(heard=Bus()) as one, process() as two:
        await one.tenants.create("acme")
        await connected(two)
        assert await is_served(two)
        polls: list[bool] = []
        real = ChangeFollower.poll

        async def poll(self: ChangeFollower) -> None:
            polls.append(False)
            if len(polls) < 3:
                raise BackendUnavailable("the store is down")
            await real(self)

        monkeypatch.setattr(ChangeFollower, "poll", poll)
        await one.tenants.suspend("acme")
        bus.break_off()
        await until(lambda: len(polls) == 3)
        await connected(two)
        assert not await is_served(two)


async def test_a_watcher_that_cannot_be_asked_about_is_asked_about_again(
    process: Callable[..., Tenancy], bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process() as one, process() as two:
        acme = await one.tenants.create("acme")
        await connected(two)
        ends = asyncio.Event()

        async def close() -> None:
            ends.set()

        two.watch(acme, close)
        failures: list[UUID] = []
        real = two.parts.store.get

        async def get(tenant_id: UUID, /) -> Any:
            if not failures:
                failures.append(tenant_id)
                raise BackendUnavailable("the store is down")
            return await real(tenant_id)

        monkeypatch.setattr(two.parts.store, "get", get)
        await one.tenants.suspend("acme")
        async with asyncio.timeout(60):
            await ends.wait()
        assert failures == [acme.id]


async def test_what_is_malformed_is_counted_and_nothing_more(
    process: Callable[..., Tenancy], bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tenancy")
    async with process() as tenancy:
        acme = await tenancy.tenants.create("acme")
        await connected(tenancy)
        assert tenancy.parts.listener is not None
        ears = Ears(tenancy)
        malformed = [
            *("", " ", "x", "**", "acme", f"{acme.id}x", f" {acme.id}", acme.id.hex),
            *(f"{{{acme.id}}}", f"urn:uuid:{acme.id}", "é" * 36, "\x00", "*\n", "-" * 36),
        ]
        for message in malformed:
            await bus.publish(message)
        await bus.publish("*")
        await ears.hears(None)
        assert tenancy.parts.listener.malformed == len(malformed)
        assert ears.heard == []
        assert "urn:uuid" not in caplog.text
        for message in (str(acme.id), f"{acme.id} another origin", f"{acme.id} "):
            await bus.publish(message)
            await ears.hears(acme.id)


async def test_a_bus_that_cannot_work_here_is_not_tried_again(
    process: Callable[..., Tenancy], bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.refuses = ConfigurationError("There is a pooler. Set another URL.")
    async with process() as tenancy:
        assert tenancy.parts.listener is not None
        await tenancy.parts.listener.tried.wait()
        names = {task.get_name() for task in asyncio.all_tasks()}
        await until(lambda: "tenancy:invalidation" not in names)
        await tenancy.tenants.create("acme")
        await tenancy.tenants.suspend("acme")
        assert not await is_served(tenancy)
    assert bus.subscriptions == 1
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = (
        "other processes' changes are not heard of at once, but when the store is asked: "
        "There is a pooler. Set another URL."
    )
    assert told == [expected]


async def test_the_pauses_grow_are_bounded_and_differ(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where subscriptions can be had and break at once."""
    monkeypatch.undo()
    for breaks in (False, True):
        bus.refuses = None if breaks else OSError()
        pauses: list[float] = []

        async def sleep(seconds: float, into: list[float] = pauses) -> None:
            into.append(seconds)
            if len(into) == 40:
                raise asyncio.CancelledError
            await asyncio.sleep(0)

        async def poll() -> None:
            asyncio.get_running_loop().call_soon(bus.break_off)

        with monkeypatch.context() as patch:
            patch.setattr(listener, "anyio", SimpleNamespace(sleep=sleep, Event=anyio.Event))
            listens = ChangeListener(bus, Any, SimpleNamespace(poll=poll), origin="")  # type: ignore[arg-type]
            with pytest.raises(asyncio.CancelledError):
                await listens.run()
        most = [min(0.1 * 2**number, 30.0) for number in range(40)]
        assert all(top / 2 <= pause <= top for pause, top in zip(pauses, most, strict=True))
        assert len({*pauses[-20:]}) == 20


async def test_it_is_closed_also_while_it_waits_for_a_bus_that_hangs(
    process: Callable[..., Tenancy],
) -> None:
    class Hangs(Bus):
        @asynccontextmanager
        async def _open(self) -> AsyncIterator[AsyncIterator[str]]:
            self.subscriptions += 1
            await anyio.sleep_forever()
            raise AssertionError("unreachable")
            yield

    before = asyncio.all_tasks()
    hangs = Hangs()
    with anyio.fail_after(60):
        async with process(heard=hangs):
            await until(lambda: hangs.subscriptions == 1)
    assert asyncio.all_tasks() == before


async def test_one_poll_at_a_time(process: Callable[..., Tenancy]) -> None:
    """The follower's own and the listener's would otherwise set each other's place back."""
    async with process() as tenancy:
        running = most = 0
        real = tenancy.parts.follower._poll

        async def poll() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await real()
            running -= 1

        follower: Any = type("Follower", (ChangeFollower,), {"_poll": lambda _: poll()})(
            tenancy.parts.store, tenancy.parts.directory, 3600
        )
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(follower.poll())
        assert most == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_store_in_memory_can_have_one_on_any_loop(
    make_config: Callable[..., TenancyConfig], anyio_backend: str
) -> None:
    config = make_config(isolation_strategy="database", enable_audit_logging=False)
    published: list[str] = []

    class Plain(MemoryCacheBackend):
        async def publish(self, message: str, /) -> None:
            published.append(message)

    store = MemoryTenantStore()
    async with Tenancy(config, store=store, invalidation_bus=Plain()) as tenancy:
        await tenancy.parts.directory.announce(uuid4())
    assert len(published) == 1
    assert anyio_backend


# -- which bus -------------------------------------------------------------------------------------


def test_without_a_setting_sqlite_has_none(make_config: Callable[..., TenancyConfig]) -> None:
    parts = Tenancy(make_config())._built
    assert (parts.bus, parts.listener) == (None, None)


def test_a_name_that_nobody_offers_is_told(make_config: Callable[..., TenancyConfig]) -> None:
    with pytest.raises(UnknownProviderError) as caught:
        Tenancy(make_config(invalidation_bus="postgress"))
    assert str(caught.value) == (
        "TENANCY_INVALIDATION_BUS asks for the invalidation bus 'postgress', which nothing that is "
        "installed offers. There is 'postgres'. Did you mean 'postgres'?"
    )
    with pytest.raises(UnknownProviderError, match="It comes with: pip install tenancy-redis"):
        Tenancy(make_config(invalidation_bus="redis"))


def test_an_object_beside_none_is_refused(
    make_config: Callable[..., TenancyConfig], bus: Bus
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Tenancy(make_config(invalidation_bus="none"), invalidation_bus=bus)
    assert str(caught.value) == (
        "An invalidation bus is passed, and TENANCY_INVALIDATION_BUS is 'none'. Leave one of the "
        "two out."
    )


PLUGIN = """
    from tenancy_core._cache.memory import MemoryCacheBackend
    from tenancy_core.hookspecs import hookimpl
    from tenancy_core.providers import Provider

    @hookimpl
    def tenancy_invalidation_buses():
        return [Provider("{name}", lambda context, section: MemoryCacheBackend())]
"""


def test_a_plugin_brings_one(site: Path, make_config: Callable[..., TenancyConfig]) -> None:
    distribution(site, "acme-bus", PLUGIN.format(name="acme"))
    parts = Tenancy(make_config(invalidation_bus="acme"))._built
    assert isinstance(parts.bus, MemoryCacheBackend)
    assert Tenancy(make_config())._built.bus is None


def test_a_name_has_one_owner(site: Path, make_config: Callable[..., TenancyConfig]) -> None:
    distribution(site, "acme-bus", PLUGIN.format(name="postgres"))
    with pytest.raises(DuplicateProviderError, match="The invalidation bus 'postgres' is offered"):
        Tenancy(make_config())
