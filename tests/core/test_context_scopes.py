"""Scopes where they meet generators and tasks: nobody gets a tenant whose scope is over."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import anyio
import pytest

from support.scopes import CountingStore, opened, record
from tenancy_core import Tenancy, TenantStatus, current_tenant
from tenancy_core.context import binding
from tenancy_core.errors import NoCurrentTenant, TenantContextLocked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


class World:
    """An open ``Tenancy`` without a database, and its tenants."""

    def __init__(self, tenancy: Tenancy, store: CountingStore) -> None:
        self.tenancy = tenancy
        self.store = store

    async def inside(self, name: str, *, switch: bool = False) -> AsyncGenerator[str | None]:
        """Open a scope in a generator, as a fixture or a streaming response does."""
        reason = "test" if switch else None
        async with self.tenancy.scope(name, switch=switch, reason=reason):
            while True:
                yield here()


@pytest.fixture
async def world(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[World]:
    store = CountingStore()
    tenants = [record(name) for name in ("a", "b", "c")]
    async with opened(make_config(), *tenants, store=store) as tenancy:
        yield World(tenancy, store)


def here() -> str | None:
    tenant = current_tenant()
    return None if tenant is None else tenant.identifier


@both
@pytest.mark.parametrize("names", ["aa", "ab", "aba", "aab", "abb", "abc", "aaa"])
async def test_X7_generators_closed_in_any_order_leave_no_tenant_behind(
    world: World, names: str
) -> None:
    """A generator opens its scope in the context of whoever iterates it."""
    assert here() is None
    generators = [world.inside(name, switch=True) for name in names]
    for generator, name in zip(generators, names, strict=True):
        assert await anext(generator) == name
    # The oldest first: each goes back to what was current before it, which is over by then.
    for generator in generators:
        await generator.aclose()
    assert here() is None
    async with world.tenancy.scope("c"):
        assert here() == "c"
    assert here() is None


@both
async def test_X7_a_scope_that_is_left_early_takes_nothing_from_the_one_inside(
    world: World,
) -> None:
    outer, inner = world.inside("a"), world.inside("b", switch=True)
    assert await anext(outer) == "a"
    assert await anext(inner) == "b"
    await outer.aclose()
    assert here() == "b"
    assert await anext(inner) == "b"
    with pytest.raises(TenantContextLocked):
        await anext(world.inside("a"))
    await inner.aclose()
    assert here() is None


@both
async def test_X7_around_a_scope_that_is_left_early_the_outermost_is_restored(
    world: World,
) -> None:
    async with world.tenancy.scope("c") as outermost:
        outer = world.inside("a", switch=True)
        inner = world.inside("b", switch=True)
        await anext(outer)
        await anext(inner)
        await outer.aclose()
        await inner.aclose()
        assert current_tenant() is outermost
    assert here() is None


@both
async def test_a_task_keeps_the_tenant_of_the_scope_it_was_started_in(world: World) -> None:
    seen: list[str | None] = []
    left = anyio.Event()

    async def work() -> None:
        seen.append(here())
        await left.wait()
        seen.append(here())
        async with world.tenancy.scope("b", switch=True, reason="test"):
            seen.append(here())
        seen.append(here())

    async with anyio.create_task_group() as group:
        async with world.tenancy.scope("a"):
            group.start_soon(work)
            await anyio.wait_all_tasks_blocked()
        assert here() is None
        left.set()
    assert seen == ["a", "a", "b", "a"]


async def test_a_job_that_starts_its_own_successor_does_not_fill_the_memory(world: World) -> None:
    """Each inherits the context of the one before."""

    def depth() -> int:
        bound, found = binding.get(), 0
        while bound is not None:
            bound, found = bound.outer, found + 1
        return found

    depths: list[int] = []

    async def job(left: int) -> None:
        async with world.tenancy.scope("a"):
            depths.append(depth())
            if left:
                await asyncio.create_task(job(left - 1))

    await job(50)
    assert depths == [1] * 51


@both
async def test_a_scope_of_the_same_tenant_sees_the_record_as_it_is_now(world: World) -> None:
    async with world.tenancy.scope("a") as before:
        async with world.tenancy.scope("a") as same:
            assert same is before is current_tenant()
        await world.tenancy.tenants.suspend("a")
        await world.tenancy.tenants.resume("a")
        assert current_tenant() is before
        async with world.tenancy.scope("a") as now:
            assert now.version == before.version + 2
            assert current_tenant() is now
        assert current_tenant() is before


@both
async def test_a_scope_is_entered_once(world: World) -> None:
    scope = world.tenancy.scope("a")
    async with scope:
        with pytest.raises(RuntimeError, match="once"):
            await scope.__aenter__()
        assert here() == "a"
    assert here() is None
    with pytest.raises(RuntimeError, match="once"):
        await scope.__aenter__()


@both
async def test_X7_a_scope_that_cannot_be_entered_changes_nothing(world: World) -> None:
    await world.tenancy.tenants.suspend("b")
    async with world.tenancy.scope("a"):
        for refused in (
            world.tenancy.scope("b", switch=True, reason="test"),
            world.tenancy.scope("c"),
            world.tenancy.scope("nobody"),
            world.tenancy.scope("a", statuses={TenantStatus.SUSPENDED}),
        ):
            with contextlib.suppress(Exception):
                async with refused:
                    raise AssertionError("entered")
            assert here() == "a"


@both
async def test_a_switch_is_audited_before_it_takes_place(world: World) -> None:
    async with world.tenancy.scope("a"):
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with world.tenancy.scope("b", switch=True, reason="test"):
                raise AssertionError("entered without an event")
        assert here() == "a"
        async with world.tenancy.scope("b", switch=True, reason="because") as b:
            log = await world.store.audit(b.id)
            assert [(event.action, event.reason) for event in log] == [
                ("scope.switched", "because")
            ]


@both
async def test_X2_run_in_executor_carries_the_tenant(world: World) -> None:
    async with world.tenancy.scope("a"):
        assert await world.tenancy.run_in_executor(here) == "a"
    assert await world.tenancy.run_in_executor(here) is None


async def test_the_tenants_of_another_tenancy_are_no_tenants_here(
    world: World, make_config: Callable[..., TenancyConfig]
) -> None:
    async with opened(make_config()) as other, other.scope("acme"):
        assert here() == "acme"
        with pytest.raises(NoCurrentTenant, match="another Tenancy"):
            world.tenancy.session()
        with pytest.raises(TenantContextLocked):
            await world.tenancy.scope("a").__aenter__()
