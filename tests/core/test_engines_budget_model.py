"""The connection budget against a model: nothing is lost, nobody waits idly or takes it all."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.fake_pools import FakePool, Record
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import ConnectionBudget
from tenancy_core.sql.budget import Holder, Slot


class WatchedBudget(ConnectionBudget):
    """Notes each grant, with what held when it was made, as the design says it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.machine: Any = None

    def take(self, pool: Any, holder: Holder) -> Any:
        had, free = holder.in_use, self.machine.free_for(pool)
        found = super().take(pool, holder)
        if found is not None:
            assert pool.control or self.machine.may_have(holder, had, free), "more than its share"
        return found


PLANS = {"small": (0.5, None), "big": (2.0, None), "capped": (1.0, 2)}
# Two that have plans, one that has none, one that changes it, and one whose checkouts are unnamed.
TENANTS = (("a", "small"), ("b", "big"), ("c", "capped"), ("d", None), ("e", "big"), (None, None))


class BudgetMachine(RuleBasedStateMachine):
    """Tasks that acquire, give back in every way there is, give up, and are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.in_use: list[tuple[FakePool, Holder, Any]] = []
        self.lingering: list[tuple[FakePool, Holder | None]] = []
        self.tasks: list[tuple[FakePool, Any, asyncio.Task[Any]]] = []
        self.order: dict[asyncio.Task[Any], int] = {}

    @initialize(
        ceiling=st.integers(2, 8),
        share=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
        most=st.integers(1, 9),
        most_waiting=st.sampled_from([2, 100]),
    )
    def start(self, ceiling: int, share: float, most: int, most_waiting: int) -> None:
        self.ceiling = ceiling
        self.share = share
        self.most_waiting = most_waiting
        self.budget = WatchedBudget(ceiling, share=share, plans=PLANS, most_waiting=most_waiting)
        self.budget.machine = self
        self.pools = [
            FakePool(self.budget, most=2),
            FakePool(self.budget, most=9),
            FakePool(self.budget, most=most, shared=True),
            FakePool(self.budget, most=9, shared=True),
            FakePool(self.budget, most=9, control=True),
        ]

    def teardown(self) -> None:
        if hasattr(self, "budget"):
            for _, _, task in self.tasks:
                task.cancel()
            self.time_passes()
            for pool in self.pools:
                pool.reachable = True
            while self.in_use or self.lingering:
                self.give_all_back()
                self.time_passes()
            assert not self.budget.holders
            assert self.budget.waiting == 0
            assert self.budget.open == self.budget.idle
        self.loop.close()

    def give_all_back(self) -> None:
        for pool, holder, record in self.in_use:
            self.budget.put_idle(record, pool, holder)
        for pool, holder in self.lingering:
            self.budget.release(pool, holder)
        self.in_use, self.lingering = [], []

    # -- the rule, said again ----------------------------------------------------------------------

    def free_for(self, pool: FakePool) -> int:
        busy = {pool: pool.open - len(pool.free) for pool in self.pools}
        tenants = sum(count for pool, count in busy.items() if not pool.control)
        free = min(self.ceiling - 1 - tenants, self.ceiling - sum(busy.values()))
        return min(free, pool.most - busy[pool]) if pool.shared else free

    def may_have(self, holder: Holder, had: int, free: int) -> bool:
        if had == 0:
            return True
        weight, most = PLANS.get(holder.plan or "", (1.0, None))
        if most is not None and had >= most:
            return False
        if self.share == 1:
            return True
        return free > 1 and had < self.share / (1 - self.share) * weight * free

    # -- what happens ------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the event loop run until nothing moves, and see who got what."""
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for entry in list(self.tasks):
            pool, key, task = entry
            if not task.done():
                continue
            self.tasks.remove(entry)
            if task.cancelled() or isinstance(task.exception(), BackendUnavailable):
                continue
            ahead = [other for where, who, other in self.tasks if (where, who) == (pool, key)]
            assert all(self.order[task] < self.order[other] for other in ahead), "overtaken"
            holder, found = task.result()
            self.in_use.append((pool, holder, Record() if isinstance(found, Slot) else found))

    @rule(
        number=st.integers(0, 4),
        tenant=st.sampled_from(TENANTS),
        plan=st.sampled_from(["small", "big", None]),
    )
    def acquire(self, number: int, tenant: tuple[str | None, str | None], plan: Any) -> None:
        pool = self.pools[number]
        name, its_plan = tenant
        # One tenant's plan is another one each time.
        plan = plan if name == "e" else its_plan
        key: Any = pool if pool.control or name is None else name

        async def work() -> Any:
            holder = self.budget.holder(key, plan)
            found = self.budget.take(pool, holder)
            return holder, found or await self.budget.acquire(pool, holder, 3600)

        task = self.loop.create_task(work())
        self.order[task] = len(self.order)
        self.tasks.append((pool, key, task))
        self.run()

    @precondition(lambda self: self.in_use)
    @rule(data=st.data(), how=st.sampled_from(["idle", "closed", "lingering", "left opening"]))
    def give_back(self, data: st.DataObject, how: str) -> None:
        which = data.draw(st.integers(0, len(self.in_use) - 1))
        pool, holder, record = self.in_use.pop(which)
        if how == "idle":
            self.budget.put_idle(record, pool, holder)
            return
        if how != "closed":
            kept = holder if how == "left opening" else None
            self.budget.keep(pool, kept)
            self.lingering.append((pool, kept))
        self.budget.release(pool, holder)

    @precondition(lambda self: self.lingering)
    @rule()
    def let_go(self) -> None:
        self.budget.release(*self.lingering.pop())

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Also in the moment in which something was handed over, and the task has not run since."""
        *_, task = data.draw(st.sampled_from(self.tasks))
        task.cancel()

    def waiters(self) -> list[Any]:
        return [
            waiter
            for holder in self.budget.holders.values()
            for line in (holder.lines or {}).values()
            for waiter in line
        ]

    @precondition(lambda self: self.budget.waiting)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        self.budget._expire(data.draw(st.sampled_from(self.waiters())), 1.0)

    @rule(number=st.integers(0, 4))
    def dispose(self, number: int) -> None:
        pool = self.pools[number]
        for _ in self.budget.drop(pool):
            self.budget.release(pool)

    @rule(number=st.integers(0, 4))
    def breaks_or_recovers(self, number: int) -> None:
        self.pools[number].reachable = not self.pools[number].reachable

    @rule()
    def time_passes(self) -> None:
        self.run()
        known = len(self.in_use) + self.budget.idle + len(self.lingering)
        assert self.budget.open == known, "lost"
        counts = Counter(holder.key for _, holder, _ in self.in_use)
        counts.update(holder.key for _, holder in self.lingering if holder is not None)
        assert counts == {
            key: holder.in_use for key, holder in self.budget.holders.items() if holder.in_use
        }

    # -- what holds --------------------------------------------------------------------------------

    @invariant()
    def the_ceiling_holds(self) -> None:
        if not hasattr(self, "budget"):
            return
        assert self.budget.open == sum(pool.open for pool in self.pools) <= self.ceiling
        tenants = sum(pool.open for pool in self.pools if not pool.control)
        assert tenants == self.budget._tenants <= self.ceiling - 1
        busy = sum(pool.open - len(pool.free) for pool in self.pools if not pool.control)
        assert busy == self.budget._busy
        assert all(0 <= pool.open <= pool.most for pool in self.pools)
        assert self.budget.idle == sum(len(pool.free) for pool in self.pools)

    @invariant()
    def nobody_is_known_without_a_reason(self) -> None:
        if not hasattr(self, "budget"):
            return
        waiting = Counter(waiter.holder.key for waiter in self.waiters())
        for key, holder in self.budget.holders.items():
            assert holder.key == key
            assert holder.in_use or holder.waiting
            assert holder.waiting == waiting[key]
            assert holder.waiting <= self.most_waiting or key in self.pools
        assert self.budget.waiting == waiting.total()
        assert set(self.budget._again) == {
            holder for holder in self.budget.holders.values() if holder.in_use and holder.waiting
        }

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        if not hasattr(self, "budget"):
            return
        tenants_full = self.budget._tenants >= self.ceiling - 1
        for waiter in self.waiters():
            pool: Any = waiter.pool
            holder = waiter.holder
            if waiter.future.done():
                continue
            if not pool.control and not self.may_have(holder, holder.in_use, self.free_for(pool)):
                continue
            assert not pool.free
            if pool.open >= pool.most:
                continue
            beyond = tenants_full and not pool.control
            assert self.budget.open >= self.ceiling or beyond
            usable = [
                owner for owner in self.pools if owner.free and not (beyond and owner.control)
            ]
            assert not usable


BudgetMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestWhateverHappensTheBudgetIsSound = BudgetMachine.TestCase
