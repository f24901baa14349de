"""One hard ceiling on connections, shared by all pools of a process; real SQLite files below it."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import SAWarning

from support.real_connections import RealConnections, count_connections
from support.waiting import until
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget, make_engine
from tenancy_core.sql.sqlite import file_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from tenancy_core import TenancyConfig

pytestmark = pytest.mark.anyio


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> RealConnections:
    return count_connections(monkeypatch)


class Pools:
    """Engines on files of their own under one budget."""

    def __init__(self, folder: Path, make_config: Callable[..., TenancyConfig]) -> None:
        self._folder = folder
        self._make_config = make_config
        self._engines: list[AsyncEngine] = []
        self.budget = ConnectionBudget(2)

    def ceiling(self, ceiling: int) -> ConnectionBudget:
        self.budget = ConnectionBudget(ceiling)
        return self.budget

    def engine(
        self,
        name: str,
        *,
        control: bool = False,
        options: dict[str, Any] | None = None,
        **settings: object,
    ) -> AsyncEngine:
        engine = make_engine(
            file_url(self._folder / f"{name}.db"),
            self._make_config(**settings),
            self.budget,
            control=control,
            **(options or {}),
        )
        self._engines.append(engine)
        return engine

    async def close(self) -> None:
        for engine in self._engines:
            await engine.dispose()


@pytest.fixture
async def pools(
    tmp_path: Path, make_config: Callable[..., TenancyConfig], real: RealConnections
) -> AsyncIterator[Pools]:
    made = Pools(tmp_path, make_config)
    yield made
    await made.close()
    await until(lambda: real.now == 0)
    assert (made.budget.open, made.budget.idle, made.budget.waiting) == (0, 0, 0)
    assert not made.budget.holders


async def waiting(engine: AsyncEngine, budget: ConnectionBudget) -> asyncio.Task[AsyncConnection]:
    """Start a task that wants a connection, and come back once it stands in line."""
    before = budget.waiting
    task = asyncio.create_task(_connect(engine))
    await until(lambda: budget.waiting == before + 1)
    return task


def waiters_of(budget: ConnectionBudget) -> list[Any]:
    return [
        waiter
        for holder in budget.holders.values()
        for line in (holder.lines or {}).values()
        for waiter in line
    ]


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    return await engine.connect()


# -- how much --------------------------------------------------------------------------------------


async def test_P2_no_more_connections_are_really_open_than_the_ceiling_allows(
    pools: Pools, real: RealConnections
) -> None:
    budget = pools.ceiling(4)
    engines = [pools.engine(f"t{number}") for number in range(6)]
    engines.append(pools.engine("control", control=True))

    async def work(engine: AsyncEngine) -> None:
        for _ in range(4):
            async with engine.connect() as connection:
                assert budget.open <= 4
                await connection.execute(text("SELECT 1"))

    async with asyncio.TaskGroup() as group:
        for number in range(42):
            group.create_task(work(engines[number % 7]))
    assert real.most == 4
    assert real.opened > 7  # idle ones were given up for others, and opened again
    assert (budget.open, budget.waiting) == (budget.idle, 0)


async def test_tenants_leave_the_last_connection_to_the_control_plane(pools: Pools) -> None:
    budget = pools.ceiling(3)
    tenant, control = pools.engine("tenant"), pools.engine("control", control=True)
    held = [await tenant.connect() for _ in range(2)]
    third = await waiting(tenant, budget)
    async with control.connect():
        assert budget.open == 3
        assert not third.done()
    for connection in held:
        await connection.close()
    await (await third).close()


@pytest.mark.parametrize("ceiling", [2, 5])
async def test_what_the_control_plane_leaves_idle_is_not_lost_for_tenants(
    pools: Pools, real: RealConnections, ceiling: int
) -> None:
    budget = pools.ceiling(ceiling)
    control, tenant = pools.engine("control", control=True), pools.engine("tenant")
    for connection in [await control.connect() for _ in range(ceiling)]:
        await connection.close()
    assert (budget.open, budget.idle) == (ceiling, ceiling)
    held = [await tenant.connect() for _ in range(ceiling - 1)]
    assert real.most == ceiling
    # … and the last one is still there for the control plane.
    async with control.connect():
        assert budget.open == ceiling
    for connection in held:
        await connection.close()


async def test_what_is_set_apart_is_kept_from_tenants_beside_the_stores_own(
    pools: Pools, real: RealConnections
) -> None:
    budget = pools.ceiling(4)
    holds, store = (pools.engine(name, control=True) for name in ("holds", "store"))
    budget.set_apart(1)
    first, second = pools.engine("first"), pools.engine("second")
    held = [await first.connect(), await second.connect()]
    waits = asyncio.ensure_future(first.connect())
    await until(lambda: budget.waiting == 1)
    async with holds.connect(), store.connect():
        assert budget.open == real.most == 4
        assert not waits.done()
    with pytest.raises(ValueError, match="Tenants need a connection"):
        budget.set_apart(2)
    budget.set_apart(-1)  # it is not needed any more: whoever waits has it
    held.append(await waits)
    for connection in held:
        await connection.close()


async def test_a_tenant_beyond_the_tenants_share_takes_the_place_of_another_tenant(
    pools: Pools, real: RealConnections
) -> None:
    budget = pools.ceiling(3)
    control = pools.engine("control", control=True)
    first, second, third = (pools.engine(name) for name in ("first", "second", "third"))
    for engine in (control, first, second):
        async with engine.connect():
            pass
    assert budget.idle == 3
    async with third.connect():
        assert real.most == 3
        # The connection of the store is still idle, and the oldest tenant's was closed for this.
        async with control.connect():
            assert budget.open == 3
        assert "open: 0" in first.pool.status()
        assert "open: 1, idle: 1" in second.pool.status()


async def test_the_connection_that_was_idle_longest_makes_room(pools: Pools) -> None:
    pools.ceiling(4)
    engines = [pools.engine(name) for name in ("a", "b", "c")]
    for engine in (*engines, engines[0]):
        async with engine.connect():
            pass
    async with pools.engine("d").connect():
        assert [engine.pool.status()[:7] for engine in engines] == ["open: 1", "open: 0", "open: 1"]


async def test_one_pool_does_not_open_more_than_its_own_share(pools: Pools) -> None:
    budget = pools.ceiling(10)
    small = pools.engine("small", database_pool_size=1, database_max_overflow=1)
    held = [await small.connect() for _ in range(2)]
    third = await waiting(small, budget)
    # Whoever waits for a pool of its own holds nobody else up.
    async with pools.engine("other").connect():
        assert not third.done()
    await held[0].close()
    await (await third).close()
    await held[1].close()


async def test_a_pool_keeps_as_many_idle_connections_as_its_size_says(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(10)
    engine = pools.engine("tenant", database_pool_size=2, database_max_overflow=3)
    for connection in [await engine.connect() for _ in range(5)]:
        await connection.close()
    assert pools.budget.open == pools.budget.idle == real.now == 2


# -- in which order --------------------------------------------------------------------------------


async def test_those_who_wait_with_nothing_are_served_in_the_order_they_came(pools: Pools) -> None:
    budget = pools.ceiling(3)
    engines = [pools.engine(f"t{number}") for number in range(4)]
    held = [await engines[0].connect(), await engines[1].connect()]
    served: list[int] = []

    async def wait(number: int) -> None:
        async with engines[number % 4].connect():
            served.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(wait(number))
            await until(lambda expected=number + 1: budget.waiting == expected)
        await held[0].close()
    await held[1].close()
    # The second has one all the time, and comes after those that have none.
    assert served[:15] == [number for number in range(20) if number % 4 != 1]
    assert sorted(served[15:]) == [1, 5, 9, 13, 17]


async def test_nobody_overtakes_those_who_wait(pools: Pools) -> None:
    budget = pools.ceiling(2)
    engine = pools.engine("tenant")
    held = await engine.connect()
    first = await waiting(engine, budget)
    # Closing hands the connection over; whoever asks next stands behind, though it looks free.
    await held.close()
    assert not first.done()
    late = asyncio.create_task(_connect(engine))
    connection = await first
    await until(lambda: budget.waiting == 1)
    assert not late.done()
    await connection.close()
    await (await late).close()


# -- cancelled, late, closed -----------------------------------------------------------------------


async def test_P2_a_waiter_that_is_cancelled_leaves_the_line(pools: Pools) -> None:
    budget = pools.ceiling(2)
    engine = pools.engine("tenant")
    held = await engine.connect()
    first, second = await waiting(engine, budget), await waiting(engine, budget)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert budget.waiting == 1
    await held.close()
    await (await second).close()
    assert budget.open == budget.idle == 1


async def _own_idle(pools: Pools) -> tuple[AsyncEngine, AsyncConnection]:
    engine = pools.engine("tenant")
    return engine, await engine.connect()


async def _another_pools(pools: Pools) -> tuple[AsyncEngine, AsyncConnection]:
    return pools.engine("tenant"), await pools.engine("other").connect()


async def _free_slot(pools: Pools) -> tuple[AsyncEngine, AsyncConnection]:
    other = pools.engine("other")
    connection = await other.connect()
    await other.dispose()  # so that nothing but the slot is left of the connection
    return pools.engine("tenant"), connection


@pytest.mark.parametrize("given", [_own_idle, _another_pools, _free_slot])
@pytest.mark.parametrize("successor", [True, False])
async def test_P2_what_is_handed_over_to_a_task_that_is_cancelled_meanwhile_is_not_lost(
    pools: Pools, given: Any, *, successor: bool
) -> None:
    budget = pools.ceiling(2)
    engine, held = await given(pools)
    first = await waiting(engine, budget)
    second = await waiting(engine, budget) if successor else None
    await held.close()
    # The hand-over is made, and the task has not run since.
    assert budget.waiting == (1 if successor else 0)
    assert not first.done()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    connection = await (second or _connect(engine))
    assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    assert (budget.open, budget.idle) == (1, 0)
    await connection.close()
    assert budget.open == budget.idle == 1


async def test_P2_a_time_out_in_the_moment_of_the_hand_over_comes_too_late(pools: Pools) -> None:
    budget = pools.ceiling(2)
    engine = pools.engine("tenant")
    held = await engine.connect()
    task = await waiting(engine, budget)
    [waiter] = waiters_of(budget)
    await held.close()
    budget._expire(waiter, 1.0)
    await (await task).close()
    assert budget.open == budget.idle == 1


async def test_whoever_waits_too_long_is_told_so_and_leaves_the_line(pools: Pools) -> None:
    budget = pools.ceiling(2)
    held = await pools.engine("other").connect()
    hurried = pools.engine("tenant", database_pool_timeout=0.05)
    with pytest.raises(BackendUnavailable, match=r"within 0\.05 seconds \(1 of 2 are open\)"):
        await hurried.connect()
    assert budget.waiting == 0
    await held.close()
    async with hurried.connect():
        pass


async def test_P7_those_who_wait_for_an_engine_that_is_disposed_of_are_refused_at_once(
    pools: Pools,
) -> None:
    budget = pools.ceiling(2)
    engine, other = pools.engine("tenant"), pools.engine("other")
    held = await other.connect()
    gone, stays = await waiting(engine, budget), await waiting(other, budget)
    await engine.dispose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await gone
    assert budget.waiting == 1
    await held.close()
    await (await stays).close()


@pytest.mark.parametrize("given", [_own_idle, _another_pools, _free_slot])
async def test_P7_an_engine_disposed_of_in_the_moment_of_the_hand_over_gives_it_back(
    pools: Pools, real: RealConnections, given: Any
) -> None:
    budget = pools.ceiling(2)
    engine, held = await given(pools)
    task = await waiting(engine, budget)
    await held.close()
    assert budget.waiting == 0
    await engine.dispose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await task
    assert (budget.open, real.now) == (0, 0)


async def test_P7_a_disposed_engine_refuses_new_checkouts(pools: Pools) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")
    async with engine.connect():
        pass
    await engine.dispose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await engine.connect()
    assert pools.budget.open == 0


async def test_P7_a_connection_in_use_when_its_engine_is_disposed_of_is_closed_when_it_is_back(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")
    connection = await engine.connect()
    await engine.dispose()
    assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    await connection.close()
    assert (pools.budget.open, pools.budget.idle, real.now) == (0, 0, 0)


async def test_a_disposal_that_is_cancelled_still_closes_everything(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(5)
    gates = Gates()
    engine = pools.engine("tenant", options={"connect_args": {"factory": gates.factory}})
    for connection in [await engine.connect() for _ in range(4)]:
        await connection.close()
    gates.closing.clear()
    disposal = asyncio.create_task(engine.dispose())
    await until(lambda: gates.closings == 1)
    disposal.cancel()
    gates.closing.set()
    with pytest.raises(asyncio.CancelledError):
        await disposal
    await until(lambda: real.now == 0)
    await until(lambda: pools.budget.open == 0)


# -- connections that cannot be opened, or closed, or found again ----------------------------------


class Gates:
    """A connection class whose opening and closing can be held up in the driver's thread."""

    def __init__(self) -> None:
        self.opening = threading.Event()
        self.closing = threading.Event()
        self.opening.set()
        self.closing.set()
        self.openings = 0
        self.closings = 0
        gates = self

        class Gated(sqlite3.Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                gates.openings += 1
                assert gates.opening.wait(60)
                super().__init__(*args, **options)

            def close(self) -> None:
                gates.closings += 1
                assert gates.closing.wait(60)
                super().close()

        self.factory = Gated


async def test_a_connection_that_cannot_be_opened_gives_its_slot_back(
    pools: Pools, tmp_path: Path
) -> None:
    pools.ceiling(2)
    engine = pools.engine("missing-folder/tenant")
    for _ in range(5):
        with pytest.raises(Exception, match="unable to open database file"):
            await engine.connect()
        assert pools.budget.open == 0
    (tmp_path / "missing-folder").mkdir()
    async with engine.connect():
        assert pools.budget.open == 1


async def test_a_connection_whose_set_up_fails_is_closed_and_gives_its_slot_back(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")

    @event.listens_for(engine.sync_engine, "connect")
    def _fail(connection: object, record: object) -> None:
        raise LookupError("set-up")

    for _ in range(5):
        with pytest.raises(LookupError):
            await engine.connect()
        assert (pools.budget.open, real.now) == (0, 0)


async def test_P2_the_slot_of_a_connection_being_opened_is_taken_until_the_driver_lets_go(
    pools: Pools, real: RealConnections
) -> None:
    budget = pools.ceiling(2)
    gates = Gates()
    slow = pools.engine("slow", options={"connect_args": {"factory": gates.factory}})
    quick = pools.engine("quick")
    gates.opening.clear()
    task = asyncio.create_task(_connect(slow))
    await until(lambda: gates.openings == 1)
    task.cancel()
    # Whoever gives up does not wait for the driver …
    with pytest.raises(asyncio.CancelledError):
        await task
    # … and nobody else gets the slot before the driver is done with it.
    assert budget.open == 1
    successor = await waiting(quick, budget)
    gates.opening.set()
    await (await successor).close()
    assert real.most == 1


@pytest.mark.parametrize("way", ["surplus", "invalidate"])
async def test_P2_the_slot_of_a_connection_being_closed_is_taken_until_the_driver_lets_go(
    pools: Pools, real: RealConnections, way: str
) -> None:
    budget = pools.ceiling(2)
    gates = Gates()
    slow = pools.engine("slow", options={"connect_args": {"factory": gates.factory}})
    quick = pools.engine("quick")
    connection = await slow.connect()
    gates.closing.clear()
    if way == "surplus":
        await connection.close()
        task: asyncio.Task[Any] = asyncio.create_task(_connect(quick))
    else:
        task = asyncio.create_task(connection.invalidate())
    await until(lambda: gates.closings == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if way == "invalidate":
        await connection.close()
    assert (budget.open, real.now) == (1, 1)
    successor = await waiting(quick, budget)
    gates.closing.set()
    await (await successor).close()
    assert real.most == 1


async def test_an_invalidated_connection_gives_its_slot_back(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")
    async with engine.connect() as connection:
        await connection.invalidate()
        assert real.now == 0
    assert pools.budget.open == 0


async def test_a_connection_that_is_replaced_keeps_its_slot(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")
    async with engine.connect() as connection:
        record = connection.sync_connection.connection._connection_record
    assert record is not None
    record.invalidate(soft=True)
    async with engine.connect():
        assert (pools.budget.open, real.now, real.opened) == (1, 1, 2)


async def test_a_connection_that_nobody_closed_gives_its_slot_back_when_it_is_collected(
    pools: Pools, real: RealConnections
) -> None:
    pools.ceiling(2)
    engine = pools.engine("tenant")
    connection = await engine.connect()
    with pytest.warns(SAWarning, match="garbage collector"):  # noqa: PT031 - both let go of it
        del connection
        gc.collect()
    await until(lambda: pools.budget.open == 0 and real.now == 0)


class Forgotten:
    """Something that refers to itself, as a session does, so that only the collector finds it."""

    def __init__(self) -> None:
        self.itself = self
        self.connection: AsyncConnection | None = None


async def forget(engine: AsyncEngine) -> None:
    forgotten = Forgotten()
    forgotten.connection = await engine.connect()
    await forgotten.connection.execute(text("SELECT 1"))


@pytest.fixture
def collector() -> Iterator[None]:
    """Have it run only when a test says so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
@pytest.mark.filterwarnings("ignore:The garbage collector")
async def test_the_collector_may_run_in_the_middle_of_a_hand_over(
    pools: Pools, real: RealConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = pools.ceiling(4)
    engine = pools.engine("tenant")

    async def use() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    held = [await engine.connect() for _ in range(2)]
    await forget(engine)
    waiting = [asyncio.create_task(use()) for _ in range(2)]
    await until(lambda: budget.waiting == 2)
    look, collected = ConnectionBudget._next, []

    def look_and_collect(self: ConnectionBudget) -> Any:
        found = look(self)
        if found is not None and not collected:
            collected.append(gc.collect())
        return found

    monkeypatch.setattr(ConnectionBudget, "_next", look_and_collect)
    for connection in held:
        await connection.close()
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
    assert collected
    await engine.dispose()
    await until(lambda: budget.open == 0 and real.now == 0)
    assert not budget.holders


@pytest.mark.usefixtures("collector")
@pytest.mark.filterwarnings("ignore:The garbage collector")
async def test_what_is_collected_in_another_thread_wakes_whoever_waits(pools: Pools) -> None:
    budget = pools.ceiling(2)
    engine = pools.engine("tenant", database_pool_timeout=600)

    async def use() -> None:
        async with engine.connect():
            pass

    await forget(engine)
    waiting = asyncio.create_task(use())
    await until(lambda: budget.waiting == 1)
    thread = threading.Thread(target=gc.collect)
    thread.start()
    async with asyncio.timeout(60):
        # It is woken by nothing else: nobody looks here meanwhile.
        await waiting
    thread.join()


async def test_a_deadlock_between_tenants_and_the_control_plane_is_impossible(
    pools: Pools,
) -> None:
    """Every tenant connection is in use by a request that needs the store before it can go on."""
    pools.ceiling(4)
    tenants = [pools.engine(f"t{number}") for number in range(3)]
    control = pools.engine("control", control=True)

    async def request(engine: AsyncEngine) -> None:
        async with engine.connect(), control.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(request(tenants[number % 3]))


# -- the storm -------------------------------------------------------------------------------------


@pytest.mark.storm
@pytest.mark.parametrize("seed", range(4))
async def test_P2_after_a_storm_of_cancellations_no_slot_is_lost(  # noqa: C901 - one storm
    pools: Pools, real: RealConnections, seed: int
) -> None:
    chance = random.Random(seed)
    budget = pools.ceiling(3)
    engines = [pools.engine(f"t{number}") for number in range(5)]
    engines.append(pools.engine("control", control=True))

    async def work(engine: AsyncEngine) -> None:
        with suppress(LookupError):
            await _work(engine)

    async def _work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
            await connection.execute(text("INSERT INTO t VALUES (1)"))
            if chance.random() < 0.2:
                raise LookupError
            if chance.random() < 0.2:
                await connection.invalidate()
            else:
                await connection.commit()

    tasks: set[asyncio.Task[None]] = set()
    for _ in range(150):
        tasks.add(asyncio.create_task(work(chance.choice(engines))))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.7:
            chance.choice(list(tasks)).cancel()
        if chance.random() < 0.1:
            # A second cancellation strikes the clean-up after the first.
            for task in tasks:
                task.cancel()
    await asyncio.wait(tasks)
    await until(lambda: budget.open == budget.idle == real.now)
    assert budget.waiting == 0
    assert real.most <= 3
    # All of it is still there to be used.
    for connection in [await engines[0].connect(), await engines[1].connect()]:
        await connection.close()
    async with engines[-1].connect():
        pass
