"""One hard ceiling on the database connections of a process, shared by all of its pools.

Counting is by *open* connections, idle ones included, because that is what a server's
``max_connections`` counts. A pool that needs a connection while the ceiling is reached is given
another pool's idle one to close; if there is none it waits its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from tenancy_core._background import settle
from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.sql.pool import BudgetedPool

__all__ = ["ConnectionBudget", "Slot"]


class Slot:
    """The right to have one connection open; ``surplus`` is an idle one to close first."""

    __slots__ = ("surplus",)

    def __init__(self, surplus: ConnectionPoolEntry | None = None) -> None:
        self.surplus = surplus


class _Waiter:
    __slots__ = ("future", "pool")

    def __init__(self, pool: BudgetedPool) -> None:
        self.pool = pool
        self.future: asyncio.Future[ConnectionPoolEntry | Slot] = (
            asyncio.get_running_loop().create_future()
        )


class ConnectionBudget:
    """Hands out at most ``ceiling`` slots.

    Tenants never have more than all but one of them: the last is for the control plane (pools made
    with ``control=True``), so that requests which hold every other connection cannot lock out the
    store that they may have to ask. Nothing is kept from tenants beyond that: what the control
    plane leaves idle is theirs when they need it.

    Attributes:
        ceiling: Most connections open at once.
    """

    __slots__ = ("_idle", "_open", "_tenants", "_waiters", "ceiling")

    def __init__(self, ceiling: int) -> None:
        if ceiling < 2:  # noqa: PLR2004 - one for tenants, one for the store
            raise ValueError("A connection ceiling is at least 2.")
        self.ceiling = ceiling
        self._open = 0
        # How many of the open ones are tenants'.
        self._tenants = 0
        # Oldest first: which idle connection is given up when another database needs the slot.
        self._idle: dict[ConnectionPoolEntry, BudgetedPool] = {}
        self._waiters: deque[_Waiter] = deque()

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
        return len(self._waiters)

    def _count(self, pool: BudgetedPool, change: int) -> None:
        self._open += change
        pool.open += change
        if not pool.control:
            self._tenants += change

    def take(self, pool: BudgetedPool) -> ConnectionPoolEntry | Slot | None:
        """Return an idle connection of this pool, or a slot, or None if there is neither."""
        record = pool.pop_idle()
        if record is not None:
            del self._idle[record]
            return record
        if pool.open >= pool.most:
            return None
        # A tenant beyond the tenants' share can only take the place of another tenant.
        beyond = not pool.control and self._tenants >= self.ceiling - 1
        if self._open < self.ceiling and not beyond:
            self._count(pool, +1)
            return Slot()
        for record, owner in self._idle.items():
            if beyond and owner.control:
                continue
            self._give_up(record, owner)
            self._count(pool, +1)
            return Slot(surplus=record)
        return None

    async def acquire(self, pool: BudgetedPool, timeout: float) -> ConnectionPoolEntry | Slot:  # noqa: ASYNC109 - a pool's time-out is a setting
        """As :meth:`take`, waiting in line for up to ``timeout`` seconds.

        Raises:
            BackendUnavailable: Nothing became free in time, or the pool was disposed of.
        """
        waiter = _Waiter(pool)
        self._waiters.append(waiter)
        self._serve()
        # The time-out settles the same future as the hand-over: one of the two comes first.
        timer = asyncio.get_running_loop().call_later(timeout, self._expire, waiter, timeout)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.cancelled():
                self._waiters.remove(waiter)
            elif future.exception() is None:
                # Handed over in the moment in which this task was cancelled.
                await settle(pool.put_back(future.result()))
            raise
        finally:
            timer.cancel()

    def _expire(self, waiter: _Waiter, timeout: float) -> None:
        self._refuse(
            waiter,
            f"No database connection became free within {timeout:g} seconds "
            f"({self._open} of {self.ceiling} are open).",
        )

    def _refuse(self, waiter: _Waiter, why: str) -> None:
        if not waiter.future.done():
            self._waiters.remove(waiter)
            waiter.future.set_exception(BackendUnavailable(why))

    def _give_up(self, record: ConnectionPoolEntry, owner: BudgetedPool) -> None:
        del self._idle[record]
        owner.forget(record)
        self._count(owner, -1)

    def put_idle(self, record: ConnectionPoolEntry, pool: BudgetedPool) -> None:
        """Offer a connection that came back to whoever waits, else keep it idle."""
        self._idle[record] = pool
        pool.push_idle(record)
        self._serve()

    def release(self, pool: BudgetedPool) -> None:
        """Give back the slot of a connection that is closed."""
        self._count(pool, -1)
        self._serve()

    def keep(self, pool: BudgetedPool) -> None:
        """Count a connection once more that its holder gives back before it is really closed.

        Whoever closes it calls :meth:`release` as well, so that its slot is free only then.
        """
        self._count(pool, +1)

    def drop(self, pool: BudgetedPool) -> list[ConnectionPoolEntry]:
        """Take all idle connections out of a pool; the caller closes and then releases them.

        Whoever waits for this pool is refused.
        """
        for waiter in [waiter for waiter in self._waiters if waiter.pool is pool]:
            self._refuse(waiter, "The database engine was closed meanwhile.")
        records: list[ConnectionPoolEntry] = []
        while (record := pool.pop_idle()) is not None:
            del self._idle[record]
            records.append(record)
        return records

    def _serve(self) -> None:
        """Hand what is free to the first in line that can use it."""
        for waiter in tuple(self._waiters):
            if self._open >= self.ceiling and not self._idle:
                return
            # A cancelled one has not run yet, and takes itself out of the line when it does.
            if waiter.future.done() or (found := self.take(waiter.pool)) is None:
                continue
            self._waiters.remove(waiter)
            waiter.future.set_result(found)
