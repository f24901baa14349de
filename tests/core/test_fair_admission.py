"""Waiting for a connection is fair between tenants, bounded, and ends with a time to come back."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from support.fake_pools import FakePool, Record
from support.waiting import until
from tenancy_core import TenancyConfig
from tenancy_core.asgi import render
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import (
    ConnectionBudget,
    SharedEngine,
    TenantConnectionContext,
    TenantSessionContext,
    close_engine,
    make_engine,
)
from tenancy_core.sql.budget import Holder, Slot
from tenancy_core.sql.sqlite import file_url
from tenancy_core.testing import make_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


class Desk:
    """Tenants that take from one pool, by name."""

    def __init__(self, ceiling: int, *, most: int = 1000, shared: bool = True, **how: Any) -> None:
        self.budget = ConnectionBudget(ceiling, **how)
        self.pool: Any = FakePool(self.budget, most=most, shared=shared)
        self.held: dict[str, list[tuple[Holder, Any]]] = {}
        self.got: list[str] = []

    def take(self, name: str, plan: str | None = None) -> bool:
        holder = self.budget.holder(name, plan)
        found = self.budget.take(self.pool, holder)
        if found is None:
            return False
        self._note(name, holder, found)
        return True

    def _note(self, name: str, holder: Holder, found: Any) -> None:
        self.held.setdefault(name, []).append(
            (holder, Record() if isinstance(found, Slot) else found)
        )

    async def want(self, name: str, plan: str | None = None) -> asyncio.Task[None]:
        """Start a task that wants a connection, and come back once it has run."""
        task = asyncio.create_task(self.acquire(name, plan))
        await asyncio.sleep(0)
        return task

    async def acquire(self, name: str, plan: str | None = None, patience: float = 60) -> None:
        holder = self.budget.holder(name, plan)
        found = self.budget.take(self.pool, holder)
        found = found or await self.budget.acquire(self.pool, holder, patience)
        self.got.append(name)
        self._note(name, holder, found)

    async def give(self, name: str) -> None:
        holder, record = self.held[name].pop()
        self.budget.put_idle(record, self.pool, holder)
        await asyncio.sleep(0)

    async def close(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name, held in self.held.items():
            while held:
                await self.give(name)
        assert not self.budget.holders
        assert (self.budget.waiting, self.budget.open) == (0, self.budget.idle)


# -- how much --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "alone"), [(0.25, 2), (0.3, 3), (0.5, 4), (0.75, 6), (0.99, 7), (1.0, 8)]
)
async def test_D3_a_tenant_alone_gets_its_share_and_no_more(share: float, alone: int) -> None:
    desk = Desk(9, share=share)
    assert sum(desk.take("hog") for _ in range(20)) == alone
    assert desk.budget.in_use("hog") == alone
    # The others have the rest, whatever it is.
    assert sum(desk.take(f"t{number}") for number in range(20)) == 8 - alone
    await desk.close()


async def test_D3_several_greedy_tenants_leave_room_for_one_that_has_nothing() -> None:
    desk = Desk(61, share=0.5)
    for _ in range(100):
        for hog in ("a", "b", "c"):
            desk.take(hog)
    assert [desk.budget.in_use(hog) for hog in "abc"] == [15, 15, 15]
    assert sum(desk.take(f"t{number}") for number in range(99)) == 15
    await desk.close()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
async def test_D3_whoever_has_one_leaves_the_last_to_others(share: float) -> None:
    desk = Desk(9, share=share, plans={"big": (100.0, None)})
    for _ in range(20):
        desk.take("a", "big")
        desk.take("b", "big")
    assert desk.budget.open == 7
    assert desk.take("c")
    await desk.close()


async def test_what_a_tenant_gets_beside_others_goes_by_the_weight_of_its_plan() -> None:
    desk, dice = Desk(81, share=0.5, plans={"pro": (3.0, None)}), random.Random(0)
    for _ in range(2000):
        desk.take("pro", "pro")
        desk.take("free")
        if desk.budget.open == 80 or dice.random() < 0.5:
            await desk.give(dice.choice([name for name, held in desk.held.items() if held]))
    # 80 = 16 for the one, three times as many for the other, and 16 for whoever comes.
    assert desk.budget.in_use("free") == pytest.approx(16, abs=2)
    assert desk.budget.in_use("pro") == pytest.approx(48, abs=3)
    await desk.close()


async def test_a_plan_caps_what_its_tenants_have_at_once() -> None:
    desk = Desk(9, share=1.0, plans={"small": (1.0, 2)})
    assert [desk.take("a", "small") for _ in range(4)] == [True, True, False, False]
    await desk.close()


async def test_a_tenant_whose_plan_changes_has_the_new_weight_although_it_is_never_idle() -> None:
    desk = Desk(9, plans={"small": (1.0, 2), "big": (1.0, 5)})
    assert [desk.take("a", "small") for _ in range(3)] == [True, True, False]
    assert [desk.take("a", "big") for _ in range(4)] == [True, True, True, False]
    assert not desk.take("a", "small")
    assert desk.take("a", None)
    await desk.close()


async def test_D3_in_a_pool_of_many_tenants_the_share_is_of_what_that_pool_can_give() -> None:
    desk = Desk(101, most=8, share=0.5)
    assert sum(desk.take("hog") for _ in range(20)) == 4
    assert sum(desk.take(f"t{number}") for number in range(20)) == 4
    await desk.close()
    own = Desk(101, most=8, shared=False, share=0.5)
    assert sum(own.take("hog") for _ in range(20)) == 8
    await own.close()


async def test_what_the_control_plane_uses_is_not_there_to_be_shared() -> None:
    desk = Desk(9, share=0.5)
    control: Any = FakePool(desk.budget, most=9, control=True)
    keeper = desk.budget.holder(control, None)
    for _ in range(5):
        assert desk.budget.take(control, keeper) is not None
    assert sum(desk.take("hog") for _ in range(20)) == 2
    for _ in range(5):
        desk.budget.release(control, keeper)
    await desk.close()


# -- whose turn ------------------------------------------------------------------------------------


async def test_D3_what_becomes_free_goes_to_who_has_least_and_then_to_who_waited_longest() -> None:
    desk = Desk(7, share=1.0)
    for name in ("a", "a", "a", "b", "b", "c"):
        assert desk.take(name)
    tasks = [await desk.want(name) for name in ("a", "a", "b", "d", "c", "e", "d")]
    # d and e have nothing. Then a, b, c and d have one each: a first, which has waited longest.
    for name, successor in ["ad", "ae", "ba", "aa", "eb", "bc", "cd"]:
        await desk.give(name)
        assert desk.got[-1] == successor
    await desk.close(*tasks)


async def test_a_greater_weight_is_served_more_often() -> None:
    desk = Desk(5, share=1.0, plans={"pro": (3.0, None)})
    plans = {"pro": "pro", "free": None}
    for _ in range(2):
        assert desk.take("pro", "pro")
        assert desk.take("free")
    tasks = [await desk.want(name, plans[name]) for _ in range(50) for name in ("free", "pro")]
    for _ in range(40):
        # Whoever has had one for the longest time is done first.
        name = random.Random(len(desk.got)).choice([n for n, held in desk.held.items() if held])
        await desk.give(name)
    assert desk.budget.in_use("pro") == 3
    assert desk.budget.in_use("free") == 1
    await desk.close(*tasks)


@pytest.mark.parametrize("way", ["cancelled", "expired"])
async def test_where_the_first_of_a_line_gives_up_the_next_takes_its_place(way: str) -> None:
    desk = Desk(3)
    assert desk.take("a")
    assert desk.take("b")
    tasks = [await desk.want("c") for _ in range(3)]
    if way == "cancelled":
        tasks[0].cancel()
    else:
        first = next(iter(desk.budget.holders["c"].lines[desk.pool]))  # type: ignore[index]
        desk.budget._expire(first, 1.0)
    await asyncio.wait(tasks[:1])
    await desk.give("a")
    assert desk.got == ["c"]
    await desk.close(*tasks)


async def test_D3_whoever_comes_with_nothing_does_not_wait_behind_500_of_another_tenant() -> None:
    desk = Desk(9, share=0.5)
    tasks = [await desk.want("hog") for _ in range(500)]
    assert (desk.budget.in_use("hog"), desk.budget.waiting) == (4, 496)
    assert all(desk.take(name) for name in "abcd")
    tasks.append(await desk.want("e"))
    await desk.give("hog")
    assert desk.got[-1] == "e"
    assert desk.budget.in_use("hog") == 3
    await desk.close(*tasks)


async def _looks(desk: Desk, monkeypatch: pytest.MonkeyPatch, give: str) -> int:
    looks = 0

    def count(name: str) -> None:
        real = getattr(ConnectionBudget, name)

        def counted(self: Any, *args: Any) -> Any:
            nonlocal looks
            looks += 1
            return real(self, *args)

        monkeypatch.setattr(ConnectionBudget, name, counted)

    for name in ("_awake", "_is_newcomer", "_may_have_another", "_has_room", "_leave"):
        count(name)
    await desk.give(give)
    monkeypatch.undo()
    return looks


@pytest.mark.parametrize("shared", [True, False])
async def test_D3_a_hand_over_looks_at_no_more_than_who_has_something(
    monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    """Whether one tenant waits 900 times, or 2,000 tenants wait once."""
    desk = Desk(9, share=0.5, shared=shared)
    tasks = [await desk.want("hog") for _ in range(900)]
    for name in "abcd":
        desk.take(name)
    assert await _looks(desk, monkeypatch, "a") < 20
    tasks += [await desk.want(f"t{number}") for number in range(2000)]
    assert await _looks(desk, monkeypatch, "b") < 20
    await desk.close(*tasks)


async def test_what_was_known_of_ten_thousand_tenants_is_forgotten() -> None:
    desk = Desk(60, share=0.5)
    tasks = [await desk.want(f"t{number}") for number in range(10_000)]
    assert len(desk.budget.holders) == 10_000
    while desk.budget.waiting:
        for name in [name for name, held in desk.held.items() if held]:
            await desk.give(name)
    await asyncio.gather(*tasks)
    await desk.close()
    assert not desk.budget._newcomers
    assert not desk.budget._again


# -- bounded ---------------------------------------------------------------------------------------


async def test_D3_one_request_too_many_of_a_tenant_is_refused_at_once() -> None:
    desk = Desk(5, share=0.5, most_waiting=3)
    tasks = [await desk.want("hog") for _ in range(5)]
    assert desk.budget.waiting == 3
    with pytest.raises(BackendUnavailable) as caught:
        await desk.acquire("hog", None, 60)
    assert str(caught.value) == (
        "3 requests of this tenant wait for a database connection already (this tenant has 2 in "
        "use, which is its share while others have 0: TENANCY_DATABASE_TENANT_SHARE); "
        "TENANCY_DATABASE_MAX_WAITING is that many."
    )
    assert caught.value.retry_after == 1
    # Others have lines of their own.
    for name in ("a", "b", "c"):
        tasks += [await desk.want(name)]
    assert desk.got == ["hog", "hog", "a", "b"]
    await desk.close(*tasks)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (None, "this tenant has 2 in use, which is its share while others have 1"),
        ("small", "this tenant has 1 in use, which is all that its plan allows"),
    ],
)
async def test_a_time_out_says_whose_fault_it_is(plan: str | None, why: str) -> None:
    desk = Desk(6, share=0.5, plans={"small": (1.0, 1)})
    desk.take("other")
    while desk.take("hog", plan):
        pass
    with pytest.raises(BackendUnavailable, match=why) as caught:
        await desk.acquire("hog", plan, 0.01)
    assert caught.value.retry_after == 1
    while desk.take(f"t{desk.budget.open}"):
        pass
    with pytest.raises(BackendUnavailable, match=r"\(5 of 6 are open\)"):
        await desk.acquire("newcomer", None, 0.01)
    await desk.close()


async def test_a_full_queue_says_how_long_its_first_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(2, most_waiting=1)
    desk.take("other")
    task = await desk.want("a")
    loop = asyncio.get_running_loop()
    now = loop.time()
    for passed, answer in ((4.5, 4.5), (99, 60)):
        monkeypatch.setattr(loop, "time", lambda passed=passed: now + passed)
        with pytest.raises(BackendUnavailable) as caught:
            await desk.acquire("a", None, 60)
        monkeypatch.undo()
        assert caught.value.retry_after == pytest.approx(answer, abs=0.1)
    await desk.close(task)


def test_an_answer_says_when_to_come_back() -> None:
    def header(error: BackendUnavailable) -> bytes:
        return dict(render(error).headers)[b"retry-after"]

    assert header(BackendUnavailable("x", retry_after=7.2)) == b"8"
    assert header(BackendUnavailable("x", retry_after=0.1)) == b"1"
    assert header(BackendUnavailable("x")) == b"1"


def test_the_budget_of_a_process_has_its_settings() -> None:
    config = TenancyConfig(
        database_url="sqlite+aiosqlite:///a.db",
        max_database_connections=9,
        database_tenant_share=0.25,
        database_max_waiting=7,
        plans={"pro": {"weight": 2, "concurrency": 3}, "free": {}},
    )
    budget = ConnectionBudget.from_config(config)
    assert (budget.ceiling, budget._alpha, budget._most_waiting) == (9, 0.25 / 0.75, 7)
    assert budget._plans == {"pro": (2.0, 3), "free": (1.0, None)}


# -- sessions --------------------------------------------------------------------------------------


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    config = TenancyConfig(
        database_url="sqlite+aiosqlite:///a.db", database_pool_size=8, database_max_overflow=0
    )
    made = make_engine(file_url(tmp_path / "t.db"), config, ConnectionBudget(30, share=0.5))
    yield made
    budget = budget_of(made)
    await close_engine(made)
    assert not budget.holders
    assert budget.open == 0


def budget_of(engine: AsyncEngine) -> ConnectionBudget:
    pool: Any = engine.pool
    return pool._budget


@pytest.mark.parametrize("affine", [True, False])
async def test_a_session_has_its_connection_in_the_name_of_its_tenant(
    engine: AsyncEngine, *, affine: bool
) -> None:
    tenant, budget = make_tenant("acme"), budget_of(engine)
    source = SharedEngine(engine, affine=affine)

    def counts() -> dict[Any, int]:
        return {key: holder.in_use for key, holder in budget.holders.items()}

    name = tenant.placement.name
    async with TenantSessionContext(source, tenant) as session:
        assert counts() == {}
        await session.execute(text("SELECT 1"))
        await session.execute(text("SELECT 1"))
        assert counts() == {name: 1}
        async with TenantConnectionContext(source, tenant) as connection:
            assert counts() == {name: 2}
            await connection.invalidate()
            await connection.rollback()
        assert counts() == {name: 1}
        await session.rollback()
        assert counts() == {}
        await session.execute(text("SELECT 1"))
        assert counts() == {name: 1}
    assert counts() == {}
    # What nobody's name stands for is the pool's own.
    async with engine.connect():
        assert counts() == {engine.pool: 1}
    with pytest.raises(LookupError):
        async with TenantSessionContext(source, tenant) as session:
            await session.execute(text("SELECT 1"))
            raise LookupError
    assert counts() == {}


async def test_D3_a_tenant_of_a_shared_engine_has_no_more_sessions_at_once_than_its_share(
    engine: AsyncEngine,
) -> None:
    hog, other, budget = make_tenant("hog"), make_tenant("other"), budget_of(engine)
    source, most, go = SharedEngine(engine), 0, asyncio.Event()

    async def work(tenant: Any) -> None:
        nonlocal most
        async with TenantSessionContext(source, tenant) as session:
            await session.execute(text("SELECT 1"))
            most = max(most, budget.in_use(hog.placement.name))
            if tenant is hog:
                await go.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(work(hog))
        await until(lambda: budget.waiting == 26)
        for _ in range(30):
            await work(other)
        assert budget.in_use(hog.placement.name) == 4
        go.set()
    assert most == 4


async def test_P11_a_connection_that_is_being_opened_is_its_tenants_until_the_driver_lets_go(
    tmp_path: Path, make_config: Callable[..., TenancyConfig]
) -> None:
    """Whoever gives up while it is opened does not get another one for it."""
    gate = threading.Event()

    class Gated(sqlite3.Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            assert gate.wait(60)
            super().__init__(*args, **options)

    budget = ConnectionBudget(9, share=0.5)
    made = make_engine(
        file_url(tmp_path / "t.db"), make_config(), budget, connect_args={"factory": Gated}
    )
    tenant, source = make_tenant("acme"), SharedEngine(made)

    async def work() -> None:
        async with TenantConnectionContext(source, tenant):
            pass

    tasks: list[asyncio.Task[None]] = []
    for _ in range(10):
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0.01)
        tasks[-1].cancel()
    await asyncio.wait(tasks)
    assert budget.in_use(tenant.placement.name) == 4
    assert budget.waiting == 0
    gate.set()
    await until(lambda: not budget.holders)
    await close_engine(made)
    assert budget.open == 0
