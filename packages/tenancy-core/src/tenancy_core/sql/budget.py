"""One hard ceiling on the database connections of a process, shared by all of its pools.

Counting is by *open* connections, idle ones included, because that is what a server's
``max_connections`` counts. A pool that needs a connection while the ceiling is reached is given
another pool's idle one to close; if there is none it waits its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

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

    One slot is kept for the control plane (pools made with ``control=True``), so that requests
    which hold every other connection cannot lock out the store that they may have to ask.

    Attributes:
        ceiling: Most connections open at once.
    """

    __slots__ = ("_idle", "_open", "_waiters", "ceiling")

    def __init__(self, ceiling: int) -> None:
        if ceiling < 2:  # noqa: PLR2004 - one for tenants, one for the store
            raise ValueError("A connection ceiling is at least 2.")
        self.ceiling = ceiling
        self._open = 0
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

    def _limit(self, pool: BudgetedPool) -> int:
        return self.ceiling if pool.control else self.ceiling - 1

    def take(self, pool: BudgetedPool) -> ConnectionPoolEntry | Slot | None:
        """Return an idle connection of this pool, or a slot, or None if there is neither."""
        record = pool.pop_idle()
        if record is not None:
            del self._idle[record]
            return record
        if pool.open >= pool.most:
            return None
        if self._open < self._limit(pool):
            self._open += 1
            pool.open += 1
            return Slot()
        for record, owner in self._idle.items():
            if owner.control and not pool.control:
                continue
            self._give_up(record, owner)
            pool.open += 1
            return Slot(surplus=record)
        return None

    async def acquire(self, pool: BudgetedPool, timeout: float) -> ConnectionPoolEntry | Slot:  # noqa: ASYNC109 - a pool's time-out is a setting
        """As :meth:`take`, waiting in line for up to ``timeout`` seconds.

        Raises:
            BackendUnavailable: Nothing became free in time.
        """
        if not self._waiters and (found := self.take(pool)) is not None:
            return found
        waiter = _Waiter(pool)
        self._waiters.append(waiter)
        self._serve()
        try:
            async with asyncio.timeout(timeout):
                return await waiter.future
        except TimeoutError:
            raise BackendUnavailable(
                f"No database connection became free within {timeout:g} seconds "
                f"({self._open} of {self.ceiling} are open)."
            ) from None
        finally:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.future.done() and not waiter.future.cancelled():
            return
        waiter.future.cancel()
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _give_up(self, record: ConnectionPoolEntry, owner: BudgetedPool) -> None:
        del self._idle[record]
        owner.forget(record)
        owner.open -= 1

    def put_idle(self, record: ConnectionPoolEntry, pool: BudgetedPool) -> None:
        """Offer a connection that came back to whoever waits, else keep it idle."""
        self._idle[record] = pool
        pool.push_idle(record)
        self._serve()

    def release(self, pool: BudgetedPool) -> None:
        """Give back the slot of a connection that is closed."""
        self._open -= 1
        pool.open -= 1
        self._serve()

    def drop_idle(self, pool: BudgetedPool) -> list[ConnectionPoolEntry]:
        """Take all idle connections out of a pool; the caller closes and then releases them."""
        records: list[ConnectionPoolEntry] = []
        while (record := pool.pop_idle()) is not None:
            del self._idle[record]
            records.append(record)
        return records

    def _serve(self) -> None:
        """Hand what is free to the first in line that can use it."""
        for waiter in list(self._waiters):
            if waiter.future.done():
                continue
            found = self.take(waiter.pool)
            if found is None:
                continue
            self._waiters.remove(waiter)
            waiter.future.set_result(found)
