"""The directory: one look-up for all who ask, nothing believed that was overtaken by a change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest

from support.keys import opened
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._directory import Directory, L1Cache, TenantCodec
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import BackendUnavailable
from tenancy_core.tenant import Placement, Tenant, TenantStatus

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """X8: everything here runs on both."""
    backend: str = request.param
    return backend


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowStore(MemoryTenantStore):
    """Counts look-ups, and holds up or fails those that a test wants held up or failing."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_up: list[object] = []
        self.open = anyio.Event()
        self.open.set()
        self.fails: Exception | None = None

    async def get_by_identifier(self, identifier: str, /) -> Tenant | None:
        return await self._slowly(identifier, await super().get_by_identifier(identifier))

    async def get(self, tenant_id: UUID, /) -> Tenant | None:
        return await self._slowly(tenant_id, await super().get(tenant_id))

    async def _slowly(self, key: object, found: Tenant | None) -> Tenant | None:
        self.looked_up.append(key)
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        return found

    def hold(self) -> None:
        self.open = anyio.Event()


def tenant(identifier: str = "acme", **values: Any) -> Tenant:
    now = datetime.now(UTC)
    tenant_id = uuid4()
    return Tenant(
        **{
            "id": tenant_id,
            "identifier": identifier,
            "name": identifier,
            "status": TenantStatus.ACTIVE,
            "created_at": now,
            "updated_at": now,
            "isolation": "database",
            "placement": Placement(name=f"tenant_{tenant_id.hex}"),
            **values,
        }
    )


async def put(store: MemoryTenantStore, *tenants: Tenant) -> None:
    async with store.transaction() as transaction:
        for one in tenants:
            await transaction.create(one)


async def change(store: MemoryTenantStore, old: Tenant, **values: Any) -> Tenant:
    new = replace(old, version=old.version + 1, **values)
    async with store.transaction() as transaction:
        await transaction.update(new, expected_version=old.version)
        await transaction.enqueue(old.id)
    return new


class World:
    """A directory and what is behind it."""

    def __init__(self, *, size: int = 100, shared: MemoryCacheBackend | None = None) -> None:
        self.clock = Clock()
        self.store = SlowStore()
        self.shared = shared
        self.directory = self.process(size)

    def process(self, size: int = 100) -> Directory:
        """Return the directory of one more process on the same store and shared cache."""
        l1 = L1Cache(size, 60.0, self.clock)
        return Directory(
            self.store,
            l1,
            shared=self.shared,
            shared_ttl=3600,
            codec=TenantCodec(opened(self.store)),
            owner=self,
        )


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def acme(world: World) -> Tenant:
    made = tenant()
    await put(world.store, made)
    return made


async def ask(directory: Directory, key: str | UUID, answers: list[Any]) -> None:
    find = directory.find if isinstance(key, str) else directory.find_by_id
    bound = await find(key)
    answers.append(None if bound is None else bound.tenant)


async def settle() -> None:
    await anyio.wait_all_tasks_blocked()


# -- finding ---------------------------------------------------------------------------------------


async def test_a_tenant_is_looked_up_once_and_then_remembered(world: World, acme: Tenant) -> None:
    for _ in range(3):
        bound = await world.directory.find("acme")
        assert bound is not None
        assert bound.tenant is acme
        assert bound.owner is world
        by_id = await world.directory.find_by_id(acme.id)
        assert by_id is bound
    assert world.store.looked_up == ["acme"]


async def test_what_is_remembered_is_forgotten_in_time(world: World, acme: Tenant) -> None:
    await world.directory.find("acme")
    world.clock.now += 59.9
    await world.directory.find("acme")
    assert len(world.store.looked_up) == 1
    world.clock.now += 0.1
    await world.directory.find("acme")
    assert len(world.store.looked_up) == 2


async def test_nobody_is_remembered_for_a_short_time(world: World) -> None:
    for _ in range(3):
        assert await world.directory.find("nobody") is None
    assert world.store.looked_up == ["nobody"]
    world.clock.now += 5.0
    assert await world.directory.find("nobody") is None
    assert len(world.store.looked_up) == 2


async def test_an_erased_tenant_is_found_by_id_and_not_remembered(world: World) -> None:
    erased = tenant(status=TenantStatus.ERASED)
    await put(world.store, erased)
    for _ in range(2):
        bound = await world.directory.find_by_id(erased.id)
        assert bound is not None
        assert bound.tenant.identifier == ""
        assert await world.directory.find("acme") is None
    assert world.store.looked_up.count(erased.id) == 2
    assert len(world.directory.l1) == 0


# -- K3: many at once ------------------------------------------------------------------------------


async def test_K3_five_hundred_who_ask_for_a_cold_tenant_cost_one_look_up(
    world: World, acme: Tenant
) -> None:
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        for _ in range(500):
            group.start_soon(ask, world.directory, "acme", answers)
        await settle()
        assert (world.store.looked_up, answers) == (["acme"], [])
        world.store.open.set()
    assert answers == [acme] * 500
    assert world.store.looked_up == ["acme"]


async def test_K3_five_hundred_who_ask_for_nobody_cost_one_look_up(world: World) -> None:
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        for _ in range(500):
            group.start_soon(ask, world.directory, "nobody", answers)
        await settle()
        world.store.open.set()
    assert answers == [None] * 500
    assert world.store.looked_up == ["nobody"]


async def test_K3_look_ups_of_different_tenants_do_not_wait_for_each_other(
    world: World, acme: Tenant
) -> None:
    world.store.hold()
    slow = world.store.open
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, world.directory, "acme", answers)
        await settle()
        world.store.open = anyio.Event()
        world.store.open.set()
        await put(world.store, tenant("beta"))
        assert await world.directory.find("beta") is not None
        assert answers == []
        slow.set()
    assert answers == [acme]


async def test_K3_an_error_reaches_all_who_waited_and_is_not_remembered(
    world: World, acme: Tenant
) -> None:
    world.store.hold()
    world.store.fails = BackendUnavailable("the store is down")
    errors: list[Exception] = []

    async def fail() -> None:
        try:
            await world.directory.find("acme")
        except BackendUnavailable as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(fail)
        await settle()
        world.store.open.set()
    assert len(errors) == 20
    assert world.store.looked_up == ["acme"]
    world.store.fails = None
    bound = await world.directory.find("acme")
    assert bound is not None
    assert bound.tenant is acme


async def test_K3_one_who_waits_may_be_cancelled_without_disturbing_the_others(
    world: World, acme: Tenant
) -> None:
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, world.directory, "acme", answers)
        await settle()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as waiting:
                for _ in range(10):
                    waiting.start_soon(ask, world.directory, "acme", answers)
                await settle()
                scope.cancel()
        group.start_soon(ask, world.directory, "acme", answers)
        await settle()
        world.store.open.set()
    assert answers == [acme, acme]
    assert world.store.looked_up == ["acme"]


async def test_K3_if_the_one_who_looks_up_is_cancelled_another_does(
    world: World, acme: Tenant
) -> None:
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def ask_in(scope: anyio.CancelScope) -> None:
            with scope:
                await ask(world.directory, "acme", answers)

        for scope in scopes:
            group.start_soon(ask_in, scope)
            await settle()
        group.start_soon(ask, world.directory, "acme", answers)
        await settle()
        assert len(world.store.looked_up) == 1
        scopes[0].cancel()
        await settle()
        # One of the others, whichever woke up first.
        assert len(world.store.looked_up) == 2
        for scope in scopes[1:]:
            scope.cancel()
            await settle()
        world.store.open.set()
    assert answers == [acme]


# -- K1: changes -----------------------------------------------------------------------------------


async def test_K1_a_change_is_seen_at_once_where_it_was_made(world: World, acme: Tenant) -> None:
    await world.directory.find("acme")
    suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
    await world.directory.forget(acme.id, "acme")
    bound = await world.directory.find("acme")
    assert bound is not None
    assert bound.tenant is suspended


@pytest.mark.parametrize("by", ["identifier", "id"])
async def test_K1_a_record_read_before_a_change_is_not_remembered_after_it(
    world: World, acme: Tenant, by: str
) -> None:
    key: str | UUID = "acme" if by == "identifier" else acme.id
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, world.directory, key, answers)
        await settle()
        suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
        await world.directory.forget(acme.id, "acme")
        world.store.open.set()
    assert answers == [acme]
    await ask(world.directory, key, answers)
    assert answers[1] is suspended


@pytest.mark.parametrize("by", ["identifier", "id"])
async def test_K1_who_asks_after_a_change_does_not_get_what_was_read_before_it(
    world: World, acme: Tenant, by: str
) -> None:
    """The suspension has returned to its caller; a look-up from before it is still on its way."""
    key: str | UUID = "acme" if by == "identifier" else acme.id
    world.store.hold()
    before: list[Any] = []
    after: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, world.directory, key, before)
        await settle()
        suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
        await world.directory.forget(acme.id, "acme")
        for _ in range(5):
            group.start_soon(ask, world.directory, key, after)
        await settle()
        world.store.open.set()
    assert before == [acme]
    assert len(world.store.looked_up) == 2
    assert all(found is suspended for found in after)
    assert len(after) == 5


async def test_K1_nobody_may_be_somebody_after_a_change(world: World) -> None:
    assert await world.directory.find("acme") is None
    world.store.hold()
    answers: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, world.directory, "beta", answers)
        await settle()
        made = [tenant("acme"), tenant("beta")]
        await put(world.store, *made)
        await world.directory.forget(made[0].id, "acme")
        await world.directory.forget(made[1].id, "beta")
        world.store.open.set()
    assert answers == [None]
    for one in made:
        bound = await world.directory.find(one.identifier)
        assert bound is not None
        assert bound.tenant is one


async def test_listeners_hear_of_every_change(world: World) -> None:
    heard: list[UUID | None] = []

    async def listen(tenant_id: UUID | None) -> None:
        heard.append(tenant_id)

    world.directory.on_change(listen)
    one = uuid4()
    await world.directory.forget(one)
    await world.directory.forget_everybody()
    assert heard == [one, None]


# -- K2: floods ------------------------------------------------------------------------------------


async def test_K2_a_flood_of_unknown_identifiers_does_not_fill_the_memory() -> None:
    world = World(size=50)
    await put(world.store, tenant())
    known = await world.directory.find("acme")
    for number in range(5000):
        assert await world.directory.find(f"x{number}") is None
        assert world.directory.l1.negative_entries <= 50
    assert world.directory.l1.negative_entries == 50
    assert not world.directory._flights._flights
    assert await world.directory.find("acme") is known


# -- the shared cache ------------------------------------------------------------------------------


class Shared(MemoryCacheBackend):
    """Fails when a test says so, and can be held up before it keeps something."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.open = anyio.Event()
        self.open.set()

    async def get(self, key: str, /) -> bytes | None:
        self._check()
        return await super().get(key)

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        self._check()
        await self.open.wait()
        await super().set(key, value, ttl=ttl)

    async def delete(self, key: str, /) -> None:
        self._check()
        await super().delete(key)

    async def generation(self, *, bump: bool = False) -> int:
        self._check()
        return await super().generation(bump=bump)

    def _check(self) -> None:
        if self.down:
            raise OSError("the shared cache is down")


@pytest.fixture
async def two() -> tuple[World, Directory]:
    """A world with a shared cache, and the directory of a second process."""
    world = World(shared=Shared())
    return world, world.process()


def shared_of(world: World) -> Shared:
    assert isinstance(world.shared, Shared)
    return world.shared


async def found(directory: Directory, identifier: str = "acme") -> Tenant:
    bound = await directory.find(identifier)
    assert bound is not None
    return bound.tenant


async def test_a_second_process_takes_a_tenant_from_the_shared_cache(
    two: tuple[World, Directory],
) -> None:
    world, second = two
    acme = tenant(plan="pro", limits={"rate_limit_per_minute": 5}, metadata={"a": [1, {"b": 2}]})
    await put(world.store, acme)
    assert await found(world.directory) is acme
    copy = await found(second)
    for name in Tenant.__slots__:
        assert getattr(copy, name) == getattr(acme, name), name
    assert world.store.looked_up == ["acme"]


async def test_K1_a_change_is_taken_out_of_the_shared_cache(two: tuple[World, Directory]) -> None:
    world, second = two
    acme = tenant()
    await put(world.store, acme)
    await found(world.directory)
    suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
    await world.directory.forget(acme.id, "acme")
    assert await found(second) is suspended


async def test_K1_a_record_that_is_overtaken_on_its_way_into_the_shared_cache_is_never_read(
    two: tuple[World, Directory],
) -> None:
    world, second = two
    shared = shared_of(world)
    acme = tenant()
    await put(world.store, acme)
    shared.open = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(world.directory.find, "acme")
        await settle()
        # Another process changes the tenant, and this one hears of it …
        suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
        await world.directory.forget(acme.id)
        # … before the old record is kept.
        shared.open.set()
    assert await found(second) is suspended
    assert await found(world.directory) is suspended


async def test_K1_forgetting_everybody_includes_the_shared_cache(
    two: tuple[World, Directory],
) -> None:
    world, second = two
    acme = tenant()
    await put(world.store, acme)
    await found(world.directory)
    suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
    await second.forget_everybody()
    assert await found(second) is suspended


async def test_K5_while_the_shared_cache_is_down_the_store_answers(
    two: tuple[World, Directory],
) -> None:
    world, second = two
    acme = tenant()
    await put(world.store, acme)
    shared_of(world).down = True
    assert await found(world.directory) is acme
    assert await found(second) is acme
    shared_of(world).down = False
    assert await found(world.process()) is acme


async def test_K5_a_change_that_the_shared_cache_cannot_be_told_is_told_to_everybody_else(
    two: tuple[World, Directory],
) -> None:
    world, _ = two
    acme = tenant()
    await put(world.store, acme)
    await found(world.directory)
    heard: list[UUID | None] = []

    async def listen(tenant_id: UUID | None) -> None:
        heard.append(tenant_id)

    world.directory.on_change(listen)
    shared_of(world).down = True
    suspended = await change(world.store, acme, status=TenantStatus.SUSPENDED)
    for attempt in (
        lambda: world.directory.forget(acme.id, "acme"),
        lambda: world.directory.forget(acme.id),
        world.directory.forget_everybody,
    ):
        with pytest.raises(BackendUnavailable, match="committed"):
            await attempt()
    assert heard == [acme.id, acme.id, None]
    assert await found(world.directory) is suspended


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 2, "identifier": "acme"}',
        b"\x80\x04\x95.",
        b"[" * 100_000,
        b'{"format": 2, "id": "a", "version": 1e999, "until": 1, "tenant": "{}", "mac": "AAAA"}',
        b'{"format": 2, "id": "a", "version": 1, "until": 1, "tenant": {}, "mac": "AAAA"}',
        b'{"format": 2, "id": "a", "version": 1, "until": 1, "tenant": "{}", "mac": "AAAA"}',
        b'{"format": 2, "id": "a", "version": 1, "until": 1, "tenant": "{}", "mac": "\xc3\xa4"}',
        b'{"format": 2, "id": "\\ud800", "version": 1, "until": 1, "tenant": "", "mac": ""}',
    ],
    ids=range(14),
)
async def test_what_is_no_tenant_in_the_shared_cache_is_a_miss(
    two: tuple[World, Directory], value: bytes
) -> None:
    world, _ = two
    acme = tenant()
    await put(world.store, acme)
    shared = shared_of(world)
    await shared.set(await world.directory._key(shared, "acme"), value, ttl=60)
    assert await found(world.directory) is acme


async def test_I10_the_keys_of_two_tenants_are_never_one(two: tuple[World, Directory]) -> None:
    world, _ = two
    shared = shared_of(world)
    keys = {
        await world.directory._key(shared, identifier)
        for identifier in ("a", "b", "a-b", "0", "1", "0-a", "10")
    }
    await shared.generation(bump=True)
    keys |= {
        await world.directory._key(shared, identifier)
        for identifier in ("a", "b", "a-b", "0", "1", "0-a", "10")
    }
    assert len(keys) == 14
    assert all(key.isascii() for key in keys)
