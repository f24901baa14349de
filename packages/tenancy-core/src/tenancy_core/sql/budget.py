"""One hard ceiling on the database connections of a process, shared by all of its pools.

Counting is by *open* connections, idle ones included, because that is what a server's
``max_connections`` counts. A pool that needs a connection while the ceiling is reached is given
another pool's idle one to close; if there is none it waits its turn.

Whose turn it is, is decided between tenants and not between requests: what becomes free goes to
the tenant that has the fewest connections for its weight, and a tenant that has some already may
take one more only while that leaves enough for others. That is the rule of dynamic thresholds, by
which a switch shares its buffer among its ports (Choudhury and Hahne, "Dynamic queue length
thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998): with
``free`` connections left for tenants, one of weight ``w`` may take another while it has fewer than
``alpha * w * free``. One greedy tenant gets the share ``alpha / (1 + alpha)`` of them, rounded up;
several share the rest in proportion to their weights, and the last free one is for somebody who
has none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from tenancy_core._background import settle
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.config import TenancyConfig
    from tenancy_core.sql.pool import BudgetedPool

__all__ = ["ConnectionBudget", "Holder", "Slot"]

_NO_PLAN: Final[tuple[float, int | None]] = (1.0, None)
"""Weight, and most connections, of a tenant without a plan."""


class Slot:
    """The right to have one connection open; ``surplus`` is an idle one to close first."""

    __slots__ = ("surplus",)

    def __init__(self, surplus: ConnectionPoolEntry | None = None) -> None:
        self.surplus = surplus


class Holder:
    """Who uses connections: a tenant, or a pool where it was not said whose the checkout is.

    The budget knows one for as long as it has a connection or waits for one.

    Attributes:
        key: Name of the tenant's place, or the pool.
        in_use: Connections that it has, and those that are being opened for it.
        waiting: How many of its requests wait for one.
        plan: Of the tenant.
        weight: Of the plan.
        most: Connections that the plan allows, or None.
    """

    __slots__ = ("in_use", "key", "lines", "most", "plan", "waiting", "weight")

    def __init__(self, key: Hashable, plan: str | None, weight: float, most: int | None) -> None:
        self.key = key
        self.plan = plan
        self.weight = weight
        self.most = most
        self.in_use = 0
        self.waiting = 0
        # By pool, because one of a tenant's pools may be full and another not.
        self.lines: dict[BudgetedPool, OrderedDict[_Waiter, None]] | None = None


class _Waiter:
    __slots__ = ("future", "holder", "pool", "queued", "since", "ticket")

    def __init__(self, pool: BudgetedPool, holder: Holder, ticket: int) -> None:
        loop = asyncio.get_running_loop()
        self.pool = pool
        self.holder = holder
        self.ticket = ticket
        self.since = loop.time()
        self.queued = True
        self.future: asyncio.Future[ConnectionPoolEntry | Slot] = loop.create_future()

    def __lt__(self, other: _Waiter) -> bool:
        return self.ticket < other.ticket


class ConnectionBudget:
    """Hands out at most ``ceiling`` slots.

    Tenants never have more than all but one of them: the last is for the control plane (pools made
    with ``control=True``), so that requests which hold every other connection cannot lock out the
    store that they may have to ask. Nothing is kept from tenants beyond that, and beyond what
    :meth:`set_apart` says: what the control plane leaves idle is theirs when they need it.

    Args:
        ceiling: Most connections open at once.
        share: What one tenant may have of the connections while nobody else wants any, above 0 and
            at most 1, which means no limit. Rounded up.
        most_waiting: Requests of one tenant that may wait at once.
        plans: Plan → its weight, and the most connections that it allows.

    Attributes:
        ceiling: Most connections open at once.
    """

    __slots__ = (
        "_again",
        "_alpha",
        "_busy",
        "_holders",
        "_idle",
        "_most_tenants",
        "_most_waiting",
        "_newcomers",
        "_open",
        "_plans",
        "_tenants",
        "_tickets",
        "_waiting",
        "ceiling",
    )

    def __init__(
        self,
        ceiling: int,
        *,
        share: float = 1.0,
        most_waiting: int = 1000,
        plans: Mapping[str, tuple[float, int | None]] | None = None,
    ) -> None:
        if ceiling < 2:  # noqa: PLR2004 - one for tenants, one for the store
            raise ValueError("A connection ceiling is at least 2.")
        self.ceiling = ceiling
        self._alpha = None if share >= 1 else share / (1 - share)
        self._most_tenants = ceiling - 1
        self._most_waiting = most_waiting
        self._plans = dict(plans or {})
        self._open = 0
        # How many of the open ones are tenants', and how many of those are not idle.
        self._tenants = 0
        self._busy = 0
        # Oldest first: which idle connection is given up when another database needs the slot.
        self._idle: dict[ConnectionPoolEntry, BudgetedPool] = {}
        self._holders: dict[Hashable, Holder] = {}
        self._waiting = 0
        self._tickets = 0
        # Those who wait are in two sets. Who has nothing comes first, by how long it has waited;
        # these can be many, and are in a heap for each pool that many use, because a full pool
        # must not be looked through, and in one heap for all other pools. A waiter that left, or
        # whose tenant has got something meanwhile, is dropped when it comes up.
        self._newcomers: dict[BudgetedPool | None, list[_Waiter]] = {}
        # Who has something is looked through: there cannot be more of them than connections.
        self._again: dict[Holder, None] = {}

    @classmethod
    def from_config(cls, config: TenancyConfig) -> ConnectionBudget:
        """Make the budget of a process from its settings."""
        return cls(
            config.connection_ceiling,
            share=config.database_tenant_share,
            most_waiting=config.database_max_waiting,
            plans={name: (plan.weight, plan.concurrency) for name, plan in config.plans.items()},
        )

    @property
    def open(self) -> int:
        """Connections open now, or being opened, or being closed."""
        return self._open

    @property
    def idle(self) -> int:
        """Open connections that nobody uses."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many are waiting for a connection."""
        return self._waiting

    @property
    def holders(self) -> Mapping[Hashable, Holder]:
        """Who has connections now, or waits for one, by key."""
        return self._holders

    def set_apart(self, change: int) -> None:
        """Keep more connections from tenants than the one, or fewer again.

        For a part of the control plane that holds a connection for as long as it is open: the one
        that is kept for the store would be taken by it, and never come back.

        Args:
            change: How many more.

        Raises:
            ValueError: Tenants would be left none.
        """
        if self._most_tenants - change < 1:
            raise ValueError("Tenants need a connection.")
        self._most_tenants -= change
        if self._waiting:
            self._serve()

    def in_use(self, key: Hashable) -> int:
        """Return how many connections a tenant has now.

        Args:
            key: Name of its place.
        """
        holder = self._holders.get(key)
        return 0 if holder is None else holder.in_use

    def _count(self, pool: BudgetedPool, change: int) -> None:
        self._open += change
        pool.open += change
        if not pool.control:
            self._tenants += change
            self._busy += change

    # -- taking --------------------------------------------------------------------------------

    def holder(self, key: Hashable, plan: str | None) -> Holder:
        """Return who takes connections under a key; nothing may be awaited before it takes one."""
        holder = self._holders.get(key)
        if holder is None:
            weight, most = _NO_PLAN if plan is None else self._plans.get(plan, _NO_PLAN)
            return Holder(key, plan, weight, most)
        if holder.plan != plan:
            # A tenant that is never idle would keep the weight of the plan that it left.
            holder.plan = plan
            holder.weight, holder.most = (
                _NO_PLAN if plan is None else self._plans.get(plan, _NO_PLAN)
            )
        return holder

    def take(self, pool: BudgetedPool, holder: Holder) -> ConnectionPoolEntry | Slot | None:
        """Return an idle connection of this pool, or a slot, or None if it has to wait.

        Raises:
            BackendUnavailable: A connection would have to be opened, and the server is known not
                to answer.
        """
        if holder.in_use and not self._may_have_another(holder, pool):
            return None
        found: ConnectionPoolEntry | Slot
        record = pool.pop_idle(holder)
        if record is not None:
            del self._idle[record]
            if not pool.control:
                self._busy += 1
            found = record
        elif self._has_room(pool):
            pool.require_reachable()
            found = Slot(self._make_room(pool))
            self._count(pool, +1)
        else:
            return None
        self._hold(holder)
        return found

    def _may_have_another(self, holder: Holder, pool: BudgetedPool) -> bool:
        """Whether a tenant that has connections leaves enough for others."""
        if pool.control:
            return True
        if holder.most is not None and holder.in_use >= holder.most:
            return False
        if self._alpha is None:
            return True
        free = self._free(pool)
        return free > 1 and holder.in_use < self._alpha * holder.weight * free

    def _free(self, pool: BudgetedPool) -> int:
        """Return how many connections tenants may still take."""
        free = min(
            self._most_tenants - self._busy,
            # The control plane may use more than the one that is kept for it.
            self.ceiling - (self._open - len(self._idle)),
        )
        return min(free, pool.most - pool.open + pool.idle) if pool.shared else free

    def _has_room(self, pool: BudgetedPool) -> bool:
        """Whether a pool may open one more connection, be it in the place of an idle one."""
        if pool.open >= pool.most or pool.is_full():
            return False
        if self._is_beyond(pool):
            return self._tenants > self._busy
        return self._open < self.ceiling or bool(self._idle)

    def _is_beyond(self, pool: BudgetedPool) -> bool:
        # A tenant beyond the tenants' share can only take the place of another tenant.
        return not pool.control and self._tenants >= self._most_tenants

    def _make_room(self, pool: BudgetedPool) -> ConnectionPoolEntry | None:
        """Return the idle connection that goes to make room for another, or None."""
        beyond = self._is_beyond(pool)
        if self._open < self.ceiling and not beyond:
            return None
        for record, owner in self._idle.items():
            if not (beyond and owner.control):
                del self._idle[record]
                owner.forget(record)
                if not owner.control:
                    self._busy += 1
                self._count(owner, -1)
                return record
        raise AssertionError("nothing is idle")

    def _hold(self, holder: Holder) -> None:
        holder.in_use += 1
        if holder.in_use == 1:
            self._holders[holder.key] = holder
            if holder.waiting:
                self._again[holder] = None

    def _let_go(self, holder: Holder) -> None:
        holder.in_use -= 1
        if holder.in_use:
            return
        if not holder.waiting:
            del self._holders[holder.key]
            return
        self._again.pop(holder, None)
        for line in (holder.lines or {}).values():
            self._line_up(next(iter(line)))

    # -- waiting -------------------------------------------------------------------------------

    async def acquire(
        self,
        pool: BudgetedPool,
        holder: Holder,
        timeout: float,  # noqa: ASYNC109 - a pool's time-out is a setting
    ) -> ConnectionPoolEntry | Slot:
        """Wait for what :meth:`take` did not have; nothing may be awaited in between.

        Args:
            pool: Of the connection.
            holder: Whose it will be.
            timeout: Seconds to wait.

        Raises:
            BackendUnavailable: Too many requests of the same tenant wait already, nothing became
                free in time, the server does not answer, or the pool was disposed of.
        """
        if holder.waiting >= self._most_waiting and not pool.control:
            raise BackendUnavailable(
                f"{holder.waiting} requests of this tenant wait for a database connection already "
                f"({self._whose_fault(holder, pool)}); TENANCY_DATABASE_MAX_WAITING is that many.",
                retry_after=self._patience(holder, timeout),
            )
        waiter = self._join(pool, holder)
        # The time-out settles the same future as the hand-over: one of the two comes first.
        timer = asyncio.get_running_loop().call_later(timeout, self._expire, waiter, timeout)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.cancelled():
                self._leave(waiter)
            elif future.exception() is None:
                # Handed over in the moment in which this task was cancelled.
                await settle(pool.put_back(future.result(), holder))
            raise
        finally:
            timer.cancel()

    def _join(self, pool: BudgetedPool, holder: Holder) -> _Waiter:
        self._tickets += 1
        waiter = _Waiter(pool, holder, self._tickets)
        if holder.lines is None:
            holder.lines = {}
        line = holder.lines.get(pool)
        if line is None:
            line = holder.lines[pool] = OrderedDict()
        line[waiter] = None
        holder.waiting += 1
        self._waiting += 1
        if holder.in_use:
            self._again[holder] = None
        else:
            self._holders[holder.key] = holder
            if len(line) == 1:
                self._line_up(waiter)
        return waiter

    def _line_up(self, waiter: _Waiter) -> None:
        """Put the first of a line of somebody who has nothing among the newcomers."""
        pool = waiter.pool
        heap = self._newcomers.setdefault(pool if pool.shared or pool.control else None, [])
        heappush(heap, waiter)

    def _leave(self, waiter: _Waiter) -> None:
        """Take a waiter out of its line, if it is in it."""
        if not waiter.queued:
            return
        waiter.queued = False
        holder, pool = waiter.holder, waiter.pool
        assert holder.lines is not None  # noqa: S101 - it was queued
        line = holder.lines[pool]
        was_first = next(iter(line)) is waiter
        del line[waiter]
        holder.waiting -= 1
        self._waiting -= 1
        if not line:
            del holder.lines[pool]
        elif was_first and not holder.in_use:
            self._line_up(next(iter(line)))
        if not holder.waiting:
            self._again.pop(holder, None)
            if not holder.in_use:
                del self._holders[holder.key]
        if not self._waiting:
            self._newcomers.clear()

    def _expire(self, waiter: _Waiter, timeout: float) -> None:
        if waiter.future.done():
            return
        holder = waiter.holder
        self._refuse(
            waiter,
            BackendUnavailable(
                f"No database connection became free within {timeout:g} seconds "
                f"({self._whose_fault(holder, waiter.pool)}).",
                retry_after=self._patience(holder, timeout),
            ),
        )

    def _whose_fault(self, holder: Holder, pool: BudgetedPool) -> str:
        """Say who has what this holder waits for."""
        many = f"this tenant has {holder.in_use} in use"
        if holder.in_use and holder.most is not None and holder.in_use >= holder.most:
            return f"{many}, which is all that its plan allows"
        # A pool that is full by itself has to be asked for last: its tenant may have filled it.
        if holder.in_use and not pool.control and not self._may_have_another(holder, pool):
            return (
                f"{many}, which is its share while others have {self._busy - holder.in_use}: "
                "TENANCY_DATABASE_TENANT_SHARE"
            )
        if pool.open >= pool.most and self._open < self.ceiling:
            return f"{pool.open} are open, and this pool has no more"
        return f"{self._open} of {self.ceiling} are open"

    def _patience(self, holder: Holder, timeout: float) -> float:
        """Return the seconds that the first in line has waited: who comes now waits no less."""
        first = min(next(iter(line)) for line in (holder.lines or {}).values())
        return max(1.0, min(first.future.get_loop().time() - first.since, timeout))

    def _refuse(self, waiter: _Waiter, error: BackendUnavailable) -> None:
        if not waiter.future.done():
            self._leave(waiter)
            waiter.future.set_exception(error)

    # -- giving back ---------------------------------------------------------------------------

    def put_idle(
        self, record: ConnectionPoolEntry, pool: BudgetedPool, holder: Holder | None = None
    ) -> None:
        """Offer a connection that came back to whoever waits, else keep it idle."""
        self._idle[record] = pool
        pool.push_idle(record)
        if not pool.control:
            self._busy -= 1
        if holder is not None:
            self._let_go(holder)
        if self._waiting:
            self._serve()

    def release(self, pool: BudgetedPool, holder: Holder | None = None) -> None:
        """Give back the slot of a connection that is closed."""
        self._count(pool, -1)
        if holder is not None:
            self._let_go(holder)
        if self._waiting:
            self._serve()

    def keep(self, pool: BudgetedPool, holder: Holder | None = None) -> None:
        """Count a connection once more that its holder gives back before it is really closed.

        Whoever closes it calls :meth:`release` as well, so that its slot is free only then.

        Args:
            pool: Of the connection.
            holder: Whose it stays until then; None where it is nobody's any more.
        """
        self._count(pool, +1)
        if holder is not None:
            self._hold(holder)

    def drop(self, pool: BudgetedPool) -> list[ConnectionPoolEntry]:
        """Take all idle connections out of a pool; the caller closes and then releases them.

        Whoever waits for this pool is refused.
        """
        for holder in list(self._holders.values()):
            for waiter in list((holder.lines or {}).get(pool, ())):
                self._refuse(
                    waiter, BackendUnavailable("The database engine was closed meanwhile.")
                )
        records: list[ConnectionPoolEntry] = []
        while (record := pool.pop_idle()) is not None:
            del self._idle[record]
            if not pool.control:
                self._busy += 1
            records.append(record)
        return records

    # -- whose turn it is ----------------------------------------------------------------------

    def _serve(self) -> None:
        """Hand what is free to those whose turn it is."""
        while self._waiting and (waiter := self._next()) is not None:
            self._leave(waiter)
            try:
                found = self.take(waiter.pool, waiter.holder)
            except BackendUnavailable as error:
                waiter.future.set_exception(error)
                continue
            assert found is not None  # noqa: S101 - as _next says
            waiter.future.set_result(found)

    def _next(self) -> _Waiter | None:
        """Return who is to be served next, or None if nobody can be."""
        if self._open >= self.ceiling and not self._idle:
            return None
        first: _Waiter | None = None
        for pool, heap in list(self._newcomers.items()):
            waiter = self._first_of(heap) if pool is None else self._first_in(pool, heap)
            if waiter is not None and (first is None or waiter < first):
                first = waiter
        if first is not None:
            return first
        lowest = 0.0
        for holder in list(self._again):
            for pool in list(holder.lines or ()):
                waiter = self._awake(holder, pool)
                if (
                    waiter is None
                    or not (pool.idle or self._has_room(pool))
                    or not self._may_have_another(holder, pool)
                ):
                    continue
                ratio = holder.in_use / holder.weight
                if first is None or (ratio, waiter.ticket) < (lowest, first.ticket):
                    first, lowest = waiter, ratio
        return first

    def _first_in(self, pool: BudgetedPool, heap: list[_Waiter]) -> _Waiter | None:
        if not (pool.idle or self._has_room(pool)):
            return None
        while heap:
            if self._is_newcomer(heap[0]):
                return heap[0]
            self._drop_first(heap)
        return None

    def _first_of(self, heap: list[_Waiter]) -> _Waiter | None:
        """Return the first whose own pool is not full."""
        if self._tenants >= self._most_tenants and self._tenants == self._busy:
            return None  # nor is anybody's pool that has nothing idle
        full: list[_Waiter] = []
        found = None
        while heap:
            first = heap[0]
            if not self._is_newcomer(first):
                self._drop_first(heap)
            elif first.pool.idle or self._has_room(first.pool):
                found = first
                break
            else:
                full.append(heappop(heap))
        for waiter in full:
            heappush(heap, waiter)
        return found

    def _drop_first(self, heap: list[_Waiter]) -> None:
        waiter = heappop(heap)
        if waiter.future.done():
            self._leave(waiter)

    def _is_newcomer(self, waiter: _Waiter) -> bool:
        # One that was cancelled has not run since, and takes itself out of the line when it does.
        return waiter.queued and not waiter.holder.in_use and not waiter.future.done()

    def _awake(self, holder: Holder, pool: BudgetedPool) -> _Waiter | None:
        """Return the first in a line that was not cancelled."""
        while holder.lines and (line := holder.lines.get(pool)):
            waiter = next(iter(line))
            if not waiter.future.done():
                return waiter
            self._leave(waiter)
        return None
