"""The rows X of the threat model: the current tenant, wherever code runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import random
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from support.scopes import CountingStore, WhoAmI, ask, http_scope, opened, record
from tenancy_core import NoCurrentTenant, TenancyMiddleware, current_tenant, require_tenant
from tenancy_core.context import tenant_cached
from tenancy_core.errors import TenantContextLocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
    from contextlib import AbstractAsyncContextManager

    from tenancy_core import Tenancy, TenancyConfig

pytestmark = pytest.mark.anyio

NAMES = tuple(f"t{number}" for number in range(20))


@pytest.fixture
async def many(make_config: Callable[..., TenancyConfig]) -> AsyncIterator[Tenancy]:
    """A ``Tenancy`` in memory with twenty tenants."""
    async with opened(make_config(), *map(record, NAMES), store=CountingStore()) as tenancy:
        yield tenancy


def here() -> str | None:
    """Return the identifier of the current tenant."""
    tenant = current_tenant()
    return None if tenant is None else tenant.identifier


# -- X1 ----------------------------------------------------------------------------------------


async def test_X1_a_thousand_interleaved_tasks_each_see_their_own_tenant(many: Tenancy) -> None:
    chance = random.Random(1)
    seen = 0

    async def step(name: str) -> None:
        nonlocal seen
        for _ in range(chance.randrange(1, 4)):
            await asyncio.sleep(0)
            assert here() == name
            seen += 1

    async def work(number: int) -> None:
        name = NAMES[number % len(NAMES)]
        async with many.scope(name):
            kind = number % 4
            if kind == 0:
                await asyncio.gather(step(name), step(name))
            elif kind == 1:
                await asyncio.shield(asyncio.create_task(step(name)))
            elif kind == 2:
                async with asyncio.timeout(60):
                    await step(name)
            else:
                task = asyncio.create_task(asyncio.sleep(3600))
                await step(name)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert here() == name
        assert here() is None

    await asyncio.gather(*(work(number) for number in range(1000)))
    assert seen > 1000
    assert here() is None


# -- X2 ----------------------------------------------------------------------------------------


async def test_X2_a_thread_without_the_context_has_no_tenant(many: Tenancy) -> None:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as one_thread:
        async with many.scope("t1"):
            # The same thread first works for t1: nothing of it may be left.
            assert await asyncio.to_thread(here) == "t1"
            assert await many.run_in_executor(here) == "t1"
            assert await loop.run_in_executor(one_thread, here) is None
            with pytest.raises(NoCurrentTenant):
                await loop.run_in_executor(one_thread, require_tenant)
            found: list[str | None] = []
            thread = threading.Thread(target=lambda: found.append(here()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert found == [None]


async def test_X2_run_in_executor_passes_arguments_and_errors_on(many: Tenancy) -> None:
    def divide(one: int, *, by: int) -> float:
        assert here() == "t2"
        return one / by

    async with many.scope("t2"):
        assert await many.run_in_executor(divide, 6, by=3) == 2
        with pytest.raises(ZeroDivisionError):
            await many.run_in_executor(divide, 6, by=0)


# -- X5 ----------------------------------------------------------------------------------------


async def test_X5_what_a_thread_binds_for_itself_reaches_nobody_else(many: Tenancy) -> None:
    """Binding in a sync dependency is not supported; it must at least stay where it is."""

    def enter_in_a_thread() -> str | None:
        async def enter() -> str | None:
            await many.scope("t3").__aenter__()
            return here()

        return asyncio.run(enter())

    assert await anyio.to_thread.run_sync(enter_in_a_thread) == "t3"
    assert here() is None
    assert await anyio.to_thread.run_sync(here) is None


# -- X6 ----------------------------------------------------------------------------------------


async def test_X6_a_stream_and_what_follows_it_belong_to_the_request(many: Tenancy) -> None:
    seen: list[tuple[str, str | None]] = []

    async def app(
        scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(("stream", here()))
                yield b"."

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async for chunk in chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        # Where Starlette and FastAPI run background tasks.
        seen.append(("background", here()))
        seen.append(("task", await asyncio.create_task(asyncio.to_thread(here))))

    served = TenancyMiddleware(app, many)
    requests = (http_scope(b"/", (b"x-tenant-id", name.encode())) for name in NAMES * 2)
    await asyncio.gather(*(ask(served, request) for request in requests))
    assert len(seen) == 5 * 2 * len(NAMES)
    for name in NAMES:
        assert sum(tenant == name for _, tenant in seen) == 10


async def test_X6_a_lifespan_and_its_tasks_have_no_tenant(many: Tenancy) -> None:
    seen: list[str | None] = []

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        seen.append(here())
        seen.append(await asyncio.create_task(asyncio.to_thread(here)))

    await TenancyMiddleware(app, many)({"type": "lifespan"}, None, None)
    assert seen == [None, None]


# -- X7 ----------------------------------------------------------------------------------------


async def fail_inside(scope: AbstractAsyncContextManager[object]) -> None:
    """Enter a scope and leave it by an exception."""
    async with scope:
        assert here() == "t2"
        raise KeyError


async def test_X7_an_exception_restores_the_outer_tenant_exactly(many: Tenancy) -> None:
    async with many.scope("t1") as outer:
        for _ in range(3):
            inner = many.scope("t2", switch=True, reason="test")
            with pytest.raises(KeyError):
                await fail_inside(inner)
            assert current_tenant() is outer
        with pytest.raises(TenantContextLocked):
            await many.scope("t2").__aenter__()
        assert current_tenant() is outer
        async with many.scope("t1"), many.scope(outer.id), many.scope(outer):
            assert here() == "t1"
        assert current_tenant() is outer
    assert here() is None


async def test_X7_a_cancellation_restores_the_outer_tenant_exactly(many: Tenancy) -> None:
    async with many.scope("t1"):
        with anyio.CancelScope() as cancelled:
            async with many.scope("t2", switch=True, reason="test"):
                cancelled.cancel()
                await anyio.sleep_forever()
        assert cancelled.cancelled_caught
        assert here() == "t1"
    assert here() is None


async def test_X7_a_generator_that_is_thrown_away_takes_no_tenant_with_it(many: Tenancy) -> None:
    async def inside() -> AsyncIterator[str | None]:
        async with many.scope("t1"):
            yield here()

    async def consume() -> None:
        generator = inside()
        assert await anext(generator) == "t1"
        # Left hanging: the event loop closes it later, in another context.

    await asyncio.create_task(consume())
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)
    assert here() is None
    async with many.scope("t2"):
        assert here() == "t2"


async def test_X7_a_scope_in_a_generator_never_meets_its_consumers_other_tenant(
    many: Tenancy,
) -> None:
    async def inside() -> AsyncIterator[str | None]:
        async with many.scope("t1"):
            yield here()

    async with many.scope("t2"):
        with pytest.raises(TenantContextLocked):
            await anext(inside())
        assert here() == "t2"


# -- X8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_X8_scopes_and_requests_work_on_every_backend(many: Tenancy) -> None:
    served = TenancyMiddleware(WhoAmI(), many)
    wrong: list[str] = []

    async def work(number: int) -> None:
        name = NAMES[number % len(NAMES)]
        answer = await ask(served, http_scope(b"/me", (b"x-tenant-id", name.encode())))
        async with many.scope(name):
            await anyio.lowlevel.checkpoint()
            if answer.body != name.encode() or here() != name:
                wrong.append(name)

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(work, number)
    assert not wrong
    assert (await ask(served, http_scope(b"/me", (b"x-tenant-id", b"nobody")))).status == 404
    await many.tenants.suspend("t1")
    assert (await ask(served, http_scope(b"/me", (b"x-tenant-id", b"t1")))).status == 404


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_X8_one_look_up_serves_all_who_ask_at_once(
    make_config: Callable[..., TenancyConfig],
) -> None:
    store = CountingStore()
    async with opened(make_config(), store=store) as tenancy:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(tenancy.find, "acme")
        assert store.asked == ["acme"]


# -- X9 ----------------------------------------------------------------------------------------


async def test_X9_a_cached_answer_is_the_tenants_own(many: Tenancy) -> None:
    calls: list[str | None] = []

    @tenant_cached()
    def greeting(word: str) -> str:
        calls.append(here())
        return f"{word}, {here()}"

    for _ in range(2):
        for name in ("t1", "t2"):
            async with many.scope(name):
                assert greeting("hello") == f"hello, {name}"
    assert calls == ["t1", "t2"]
    with pytest.raises(NoCurrentTenant):
        greeting("hello")


async def test_X9_the_documented_danger_of_a_plain_cache_is_real(many: Tenancy) -> None:
    @lru_cache
    def greeting() -> str | None:
        return here()

    async with many.scope("t1"):
        assert greeting() == "t1"
    async with many.scope("t2"):
        assert greeting() == "t1", "the documentation says that this goes wrong"


async def test_X9_a_coroutine_function_cannot_be_cached() -> None:
    async def greeting() -> None: ...

    with pytest.raises(TypeError, match="plain functions"):
        tenant_cached()(greeting)


# -- X10 ---------------------------------------------------------------------------------------


async def test_X10_a_tenant_that_requests_share_cannot_be_changed() -> None:
    given = {"list": [1, {"deep": True}], "word": "a"}
    limits = {"rate_limit_per_minute": 1}
    tenant = record("acme", metadata=given, limits=limits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tenant.identifier = "beta"
    with pytest.raises((AttributeError, TypeError)):
        tenant.extra = 1
    with pytest.raises(TypeError):
        tenant.metadata["word"] = "b"
    with pytest.raises(TypeError):
        tenant.metadata["list"][1]["deep"] = False
    with pytest.raises(TypeError):
        tenant.limits["rate_limit_per_minute"] = 2
    # What it was made from is not shared with it.
    given["word"] = "b"
    limits["rate_limit_per_minute"] = 2
    assert tenant.metadata["word"] == "a"
    assert tenant.limits["rate_limit_per_minute"] == 1
    assert isinstance(tenant.metadata["list"], tuple)
