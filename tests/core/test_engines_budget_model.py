"""The connection budget against a model: nothing is lost, and nobody waits idly."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget
from tenancy_core.sql.budget import Slot


class Record:
    """A connection."""


class FakePool:
    """What a budget asks of a pool, without connections."""

    def __init__(self, budget: ConnectionBudget, *, most: int, control: bool) -> None:
        self.budget = budget
        self.most = most
        self.control = control
        self.open = 0
        self.free: deque[Any] = deque()

    def pop_idle(self) -> Any:
        return self.free.pop() if self.free else None

    def push_idle(self, record: Any) -> None:
        self.free.append(record)

    def forget(self, record: Any) -> None:
        self.free.remove(record)

    async def put_back(self, found: Any) -> None:
        await asyncio.sleep(0)
        if isinstance(found, Slot):
            self.budget.release(self)
        else:
            self.budget.put_idle(found, self)


class BudgetMachine(RuleBasedStateMachine):
    """Tasks that acquire, give back in every way there is, give up, and are cancelled."""

    ceiling = 4

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.budget = ConnectionBudget(self.ceiling)
        self.pools = [
            FakePool(self.budget, most=2, control=False),
            FakePool(self.budget, most=9, control=False),
            FakePool(self.budget, most=9, control=False),
            FakePool(self.budget, most=9, control=True),
        ]
        self.in_use: list[tuple[FakePool, Any]] = []
        self.lingering: list[FakePool] = []
        self.tasks: list[tuple[FakePool, asyncio.Task[Any]]] = []
        self.order: dict[asyncio.Task[Any], int] = {}

    def teardown(self) -> None:
        for _, task in self.tasks:
            task.cancel()
        self.time_passes()
        self.loop.close()

    def run(self) -> None:
        """Let the event loop run until nothing moves, and see who got what."""
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for pool, task in list(self.tasks):
            if not task.done():
                continue
            self.tasks.remove((pool, task))
            if task.cancelled() or isinstance(task.exception(), BackendUnavailable):
                continue
            ahead = [other for other_pool, other in self.tasks if other_pool is pool]
            assert all(self.order[task] < self.order[other] for other in ahead), "overtaken"
            found = task.result()
            self.in_use.append((pool, Record() if isinstance(found, Slot) else found))

    @rule(number=st.integers(0, 3))
    def acquire(self, number: int) -> None:
        pool = self.pools[number]

        async def work() -> Any:
            found = self.budget.take(pool)
            return found or await self.budget.acquire(pool, 3600)

        task = self.loop.create_task(work())
        self.order[task] = len(self.order)
        self.tasks.append((pool, task))
        self.run()

    @precondition(lambda self: self.in_use)
    @rule(data=st.data(), how=st.sampled_from(["idle", "closed", "lingering"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        pool, record = self.in_use.pop(data.draw(st.integers(0, len(self.in_use) - 1)))
        if how == "idle":
            self.budget.put_idle(record, pool)
        else:
            if how == "lingering":
                self.budget.keep(pool)
                self.lingering.append(pool)
            self.budget.release(pool)

    @precondition(lambda self: self.lingering)
    @rule()
    def let_go(self) -> None:
        self.budget.release(self.lingering.pop())

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Also in the moment in which something was handed over, and the task has not run since."""
        _, task = data.draw(st.sampled_from(self.tasks))
        task.cancel()

    @precondition(lambda self: self.budget.waiting)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.budget.waiting - 1))
        self.budget._expire(self.budget._waiters[number], 1.0)

    @rule(number=st.integers(0, 3))
    def dispose(self, number: int) -> None:
        pool = self.pools[number]
        for _ in self.budget.drop(pool):
            self.budget.release(pool)

    @rule()
    def time_passes(self) -> None:
        self.run()
        known = len(self.in_use) + self.budget.idle + len(self.lingering)
        assert self.budget.open == known, "lost"

    @invariant()
    def the_ceiling_holds(self) -> None:
        assert self.budget.open == sum(pool.open for pool in self.pools) <= self.ceiling
        tenants = sum(pool.open for pool in self.pools if not pool.control)
        assert tenants == self.budget._tenants <= self.ceiling - 1
        assert all(0 <= pool.open <= pool.most for pool in self.pools)
        assert self.budget.idle == sum(len(pool.free) for pool in self.pools)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        tenants_full = self.budget._tenants >= self.ceiling - 1
        for waiter in self.budget._waiters:
            if waiter.future.done():
                continue
            pool: Any = waiter.pool
            assert not pool.free
            if pool.open >= pool.most:
                continue
            beyond = tenants_full and not pool.control
            assert self.budget.open >= self.ceiling or beyond
            usable = [
                owner for owner in self.pools if owner.free and not (beyond and owner.control)
            ]
            assert not usable


BudgetMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestWhateverHappensTheBudgetIsSound = BudgetMachine.TestCase
