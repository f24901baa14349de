"""A change that another process makes is seen here within the poll, whatever fails in between."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import anyio
import pytest

from support.keys import opened
from support.notes import Base
from support.processes import crew
from support.waiting import until
from tenancy_core import Tenancy
from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core._directory import ChangeFollower, Directory, L1Cache, TenantCodec
from tenancy_core._stores.memory import MemoryTenantStore
from tenancy_core.errors import BackendUnavailable, TenantInactive
from tenancy_core.tenant import Placement, Tenant, TenantStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tenancy_core import TenancyConfig
    from tenancy_core.contract import Change

pytestmark = pytest.mark.anyio


def never() -> float:
    """A clock that stands still: what is cached here never expires by itself."""
    return 0.0


# -- two processes ---------------------------------------------------------------------------------


async def is_served(tenancy: Tenancy, tenant: str) -> bool:
    try:
        async with tenancy.scope(tenant):
            return True
    except TenantInactive:
        return False


async def test_K1_a_suspension_by_another_process_is_seen_within_the_poll(
    make_config: Callable[..., TenancyConfig], tmp_path: Path
) -> None:
    program = """
async def work(url, action):
    async with Tenancy(TenancyConfig(database_url=url), metadata=Base.metadata) as tenancy:
        return (await getattr(tenancy.tenants, action)("acme")).status
"""
    config = make_config(invalidation_poll_seconds=0.05)
    url = config.database_url.get_secret_value()
    async with Tenancy(config, metadata=Base.metadata, clock=never) as tenancy:
        await tenancy.tenants.create("acme")
        await tenancy.tenants.create("beta")
        with crew(1, program, tmp_path) as other:
            for action, status in (("suspend", "suspended"), ("resume", "active")) * 2:
                assert await is_served(tenancy, "acme") is (action == "suspend")
                answer = await anyio.to_thread.run_sync(other.all_at_once, f"{url} {action}")
                assert answer == [f"done {status}"]
                served = action == "resume"
                with anyio.fail_after(60):
                    while await is_served(tenancy, "acme") is not served:
                        await anyio.sleep(0.01)
                assert await is_served(tenancy, "beta")


async def test_K1_without_the_poll_it_would_not_be_seen(
    make_config: Callable[..., TenancyConfig],
) -> None:
    """Shows that the test above sees the poll at work, and not something else."""
    config = make_config(invalidation_poll_seconds=3600)
    async with Tenancy(config, metadata=Base.metadata, clock=never) as one:
        await one.tenants.create("acme")
        assert await is_served(one, "acme")
        async with Tenancy(config, metadata=Base.metadata) as other:
            await other.tenants.suspend("acme")
        assert await is_served(one, "acme")
        await one.parts.follower.poll()
        assert not await is_served(one, "acme")


async def test_K1_a_tenant_that_another_process_creates_is_found_within_the_poll(
    make_config: Callable[..., TenancyConfig],
) -> None:
    config = make_config(invalidation_poll_seconds=3600)
    async with (
        Tenancy(config, metadata=Base.metadata, clock=never) as one,
        Tenancy(config, metadata=Base.metadata) as other,
    ):
        assert await one.parts.directory.find("acme") is None
        await other.tenants.create("acme")
        assert await one.parts.directory.find("acme") is None
        await one.parts.follower.poll()
        assert await is_served(one, "acme")


@pytest.mark.parametrize("down", [False, True])
async def test_K1_killed_before_it_told_the_shared_cache_a_suspension_holds_after_the_restart(
    make_config: Callable[..., TenancyConfig], monkeypatch: pytest.MonkeyPatch, *, down: bool
) -> None:
    """Also where nobody else was there to ask what changed, and the cache is down at first."""
    cache = FailingCache()
    config = make_config(invalidation_poll_seconds=3600, cache_enabled=True)

    async def die(*_: object) -> None:
        raise BackendUnavailable("killed here")

    async with Tenancy(config, metadata=Base.metadata, cache_backend=cache) as tenancy:
        await tenancy.tenants.create("acme")
        assert await is_served(tenancy, "acme")
        with monkeypatch.context() as patch, pytest.raises(BackendUnavailable):
            patch.setattr(Directory, "announce", die)
            await tenancy.tenants.suspend("acme")
    cache.down = down
    async with Tenancy(config, metadata=Base.metadata, cache_backend=cache) as tenancy:
        cache.down = False
        if down:
            await tenancy.parts.follower.poll()
        assert not await is_served(tenancy, "acme")


async def test_the_follower_ends_with_its_tenancy(
    make_config: Callable[..., TenancyConfig],
) -> None:
    before = asyncio.all_tasks()
    for _ in range(2):
        async with Tenancy(make_config(invalidation_poll_seconds=0.05)):
            started = {task.get_name() for task in asyncio.all_tasks() - before}
            assert started == {"tenancy:change-follower", "tenancy:audit"}
        assert asyncio.all_tasks() == before


# -- the follower by itself ------------------------------------------------------------------------


class FailingStore(MemoryTenantStore):
    """A store that is down when a test says so, and whose sequence can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.polls = 0

    async def changes(self, *, after: int, limit: int = 1000) -> Sequence[Change]:
        self.polls += 1
        if self.down:
            raise BackendUnavailable("the store is down")
        return await super().changes(after=after, limit=limit)

    def cut(self, keep: int) -> None:
        self._state.changes = self._state.changes[-keep:]


async def silent(*, after: int, limit: int = 1000) -> Sequence[Change]:
    await anyio.sleep_forever()
    raise AssertionError


class FailingCache(MemoryCacheBackend):
    """A shared cache that is down when a test says so."""

    down = False

    async def generation(self, *, bump: bool = False) -> int:
        if self.down:
            raise OSError
        return await super().generation(bump=bump)


class World:
    """A store that others change, and what one process knows of it."""

    def __init__(self) -> None:
        self.store = FailingStore()
        self.shared = FailingCache()
        self.directory = Directory(
            self.store,
            L1Cache(100, 60.0, never),
            shared=self.shared,
            shared_ttl=60,
            codec=TenantCodec(opened(self.store)),
            owner=None,
        )
        self.follower = ChangeFollower(self.store, self.directory, 0.001)
        self.heard: list[UUID | None] = []
        self.directory.on_change(self._listen)

    async def _listen(self, tenant_id: UUID | None) -> None:
        self.heard.append(tenant_id)

    async def create(self, *names: str) -> list[Tenant]:
        now = datetime.now(UTC)
        made = [
            Tenant(
                id=uuid4(),
                identifier=name,
                name=name,
                status=TenantStatus.ACTIVE,
                created_at=now,
                updated_at=now,
                isolation="database",
                placement=Placement(name=name),
            )
            for name in names
        ]
        async with self.store.transaction() as transaction:
            for one in made:
                await transaction.create(one)
        return made

    async def change(self, *tenants: Tenant) -> None:
        """What another process does."""
        for one in tenants:
            async with self.store.transaction() as transaction:
                old = await self.store.get(one.id)
                assert old is not None
                new = replace(old, status=TenantStatus.SUSPENDED, version=old.version + 1)
                await transaction.update(new, expected_version=old.version)
                await transaction.enqueue(one.id)

    async def known(self, *tenants: Tenant) -> list[bool]:
        """Whether each is served, as far as this process knows; asking makes it known."""
        found = [await self.directory.find(one.identifier) for one in tenants]
        return [one is not None and one.tenant.active for one in found]


both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
"""X8; what needs SQLAlchemy runs on asyncio only."""


@pytest.fixture
async def world() -> World:
    return World()


@both
async def test_only_what_changed_is_forgotten(world: World) -> None:
    acme, beta = await world.create("acme", "beta")
    await world.follower.start()
    await world.known(acme, beta)
    await world.change(acme)
    before = world.directory.l1.get("beta")
    await world.follower.poll()
    assert world.directory.l1.get("acme") is None
    assert world.directory.l1.get("beta") is before is not None
    assert world.heard == [acme.id]
    assert await world.known(acme, beta) == [False, True]
    await world.follower.poll()
    assert world.heard == [acme.id]


@both
async def test_K1_a_store_that_does_not_answer_holds_up_one_poll(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a link that is silent: what is asked over it is answered never."""
    (acme,) = await world.create("acme")
    await world.follower.start()
    await world.known(acme)
    await world.change(acme)
    answer, world.store.changes = world.store.changes, silent  # type: ignore[method-assign]
    monkeypatch.setattr("tenancy_core._directory.follower.PATIENCE", 0.05)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(world.follower.run)
            # As whoever listens to a bus does, at a time of its own.
            with pytest.raises(TimeoutError):
                await world.follower.poll()
            world.store.changes = answer  # type: ignore[method-assign]
            while world.directory.l1.get("acme") is not None:
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
    assert await world.known(acme) == [False]


@both
async def test_changes_from_before_the_start_are_not_told(world: World) -> None:
    (acme,) = await world.create("acme")
    await world.change(acme, acme, acme)
    await world.follower.start()
    await world.follower.poll()
    assert world.heard == []


@both
async def test_many_changes_are_told_page_by_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.create(*(f"t{number}" for number in range(7)))
    await world.follower.start()
    changes = world.store.changes

    async def page_of_three(*, after: int, limit: int = 3) -> Sequence[Change]:
        return await changes(after=after, limit=limit)

    monkeypatch.setattr(world.store, "changes", page_of_three)
    await world.change(*made)
    await world.follower.poll()
    assert world.heard == [one.id for one in made]


@both
async def test_K1_if_the_sequence_was_cut_everything_is_forgotten(world: World) -> None:
    made = await world.create("a", "b", "c")
    await world.follower.start()
    await world.known(*made)
    await world.change(*made)
    world.store.cut(keep=1)
    await world.follower.poll()
    assert await world.known(*made) == [False, False, False]
    assert world.heard == [None, made[2].id]
    # And from there it goes on as always.
    await world.change(made[0])
    await world.follower.poll()
    assert world.heard[2:] == [made[0].id]


@both
async def test_K1_if_an_older_state_was_restored_everything_is_forgotten(world: World) -> None:
    made = await world.create("a", "b")
    backup = world.store._state.copy()
    await world.change(made[0], made[0], made[0])
    await world.follower.start()
    assert await world.known(*made) == [False, True]
    world.store._state = backup
    await world.follower.poll()
    assert world.heard == [None]
    assert await world.known(*made) == [True, True]
    # The next change has a number that was seen before.
    await world.change(made[1])
    await world.follower.poll()
    assert await world.known(*made) == [True, False]


@both
async def test_K5_with_the_shared_cache_down_everything_that_changed_is_forgotten_here(
    world: World,
) -> None:
    made = await world.create("a", "b", "c")
    await world.follower.start()
    await world.known(*made)
    await world.change(*made)
    world.shared.down = True
    with pytest.raises(BackendUnavailable):
        await world.follower.poll()
    assert world.heard == [one.id for one in made]
    assert await world.known(*made) == [False, False, False]
    # And it is told again, until the shared cache has heard it.
    world.shared.down = False
    generation = await world.shared.generation()
    await world.follower.poll()
    assert await world.shared.generation() > generation


@both
async def test_a_store_that_is_down_is_asked_again_and_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (acme,) = await world.create("acme")
    await world.follower.start()
    await world.known(acme)

    def logged() -> int:
        return len([one for one in caplog.records if "cannot follow" in one.getMessage()])

    async def polled(more: int) -> None:
        target = world.store.polls + more
        await until(lambda: world.store.polls >= target)

    with caplog.at_level(logging.WARNING, logger="tenancy"):
        async with anyio.create_task_group() as group:
            group.start_soon(world.follower.run)
            for outage in (1, 2):
                world.store.down = True
                await world.change(acme)
                await polled(5)
                assert logged() == outage
                assert len(world.heard) == outage - 1
                world.store.down = False
                await until(lambda expected=outage: len(world.heard) == expected)
                await polled(2)
            group.cancel_scope.cancel()
    assert logged() == 2
    assert await world.known(acme) == [False]
