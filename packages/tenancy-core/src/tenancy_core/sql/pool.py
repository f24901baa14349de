"""A SQLAlchemy connection pool that draws on the process's one connection budget."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from tenancy_core._background import outlast
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql.budget import Slot

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Coroutine

    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.sql.budget import ConnectionBudget

__all__ = ["BudgetedPool", "PoolShare"]

_USER: Final = "tenancy_user"
"""Key in the information on a connection: whose it was last."""


@dataclass(frozen=True, slots=True)
class PoolShare:
    """How one pool draws on the budget.

    Attributes:
        budget: The ceiling that all pools share.
        size: Idle connections to keep.
        most: Connections that this pool alone may have open.
        timeout: Seconds to wait for one.
        control: Whether the pool serves the control plane, for which one slot is kept.
    """

    budget: ConnectionBudget
    size: int
    most: int
    timeout: float
    control: bool = False


class BudgetedPool(Pool):
    """Keeps up to ``size`` idle connections, newest first; opens and waits by the budget.

    Attributes:
        control: Whether it serves the control plane, for which one slot is kept.
        most: Most connections that this pool alone may have open.
        open: Connections that it has open.
    """

    _is_asyncio = True  # pyright: ignore[reportAssignmentType]

    def __init__(self, creator: Any, share: PoolShare, **options: Any) -> None:  # noqa: ANN401 - as SQLAlchemy
        super().__init__(self._open_connection, **options)
        self._connect = creator
        self._share = share
        self._budget = share.budget
        self._free: deque[ConnectionPoolEntry] = deque()
        self._wanted: str | None = None
        self._closed = False
        self._lingering = 0
        self._let_go_of_all = asyncio.Event()
        self._let_go_of_all.set()
        self.control = share.control
        self.most = share.most
        self.open = 0

    # -- what the budget does with it ----------------------------------------------------------

    def prefer(self, user: str) -> None:
        """Let the next checkout take a connection that this user had last, if one is idle.

        Nothing may be awaited between this call and the checkout. It is a wish: whoever gets
        another connection is served as well.
        """
        self._wanted = user

    def pop_idle(self) -> ConnectionPoolEntry | None:
        """Return the idle connection that was used last, or None.

        Where somebody is preferred, it is one that was theirs; else the one that has been idle for
        longest, so that those which were used just now wait for their own users.
        """
        if not self._free:
            return None
        if self._wanted is None:
            return self._free.pop()
        for record in reversed(self._free):
            if record.info.get(_USER) == self._wanted:
                self._free.remove(record)
                return record
        return self._free.popleft()

    def push_idle(self, record: ConnectionPoolEntry) -> None:
        """Keep an idle connection."""
        self._free.append(record)

    def forget(self, record: ConnectionPoolEntry) -> None:
        """Drop an idle connection that another pool closes."""
        self._free.remove(record)

    async def put_back(self, found: ConnectionPoolEntry | Slot) -> None:
        """Return what the budget handed to somebody who does not take it any more."""
        await greenlet_spawn(self._put_back, found)

    def _put_back(self, found: ConnectionPoolEntry | Slot) -> None:
        if not isinstance(found, Slot):
            self._do_return_conn(found)
            return
        try:
            if found.surplus is not None:
                found.surplus.close()
        finally:
            self._budget.release(self)

    # -- opening and closing -------------------------------------------------------------------
    #
    # A driver whose caller is cancelled while it connects or closes lets go of the connection some
    # time later. Both therefore run in tasks of their own: the caller leaves at once, and the slot
    # is free when the connection is really closed, so that the ceiling holds at every moment.

    def _open_connection(self, rec: ConnectionPoolEntry) -> Any:  # noqa: ANN401 - DBAPI
        opening = greenlet_spawn(self._connect, rec)
        return await_only(outlast(opening, self._left_opening))

    def _left_opening(self, opening: Task[Any]) -> Coroutine[Any, Any, None]:
        self._linger()
        return self._close_when_open(opening)

    async def _close_when_open(self, opening: Task[Any]) -> None:
        try:
            # Whoever wanted it to succeed is gone.
            with suppress(Exception):
                await greenlet_spawn(super()._close_connection, await opening)
        finally:
            self._let_go()

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:  # noqa: ANN401 - DBAPI
        if not in_greenlet():
            # The garbage collector found it: nothing can be awaited here.
            super()._close_connection(connection, terminate=terminate)
            return
        close = partial(super()._close_connection, connection, terminate=terminate)
        await_only(outlast(greenlet_spawn(close), self._left_closing))

    def _left_closing(self, closing: Task[None]) -> Coroutine[Any, Any, None]:
        self._linger()
        return self._release_when_closed(closing)

    async def _release_when_closed(self, closing: Task[None]) -> None:
        try:
            with suppress(Exception):
                await closing
        finally:
            self._let_go()

    def _linger(self) -> None:
        self._budget.keep(self)
        self._lingering += 1
        self._let_go_of_all.clear()

    def _let_go(self) -> None:
        self._budget.release(self)
        self._lingering -= 1
        if not self._lingering:
            self._let_go_of_all.set()

    async def let_go(self) -> None:
        """Wait until no connection is left that its holder gave up before it was open or closed.

        Raises:
            BackendUnavailable: The driver took longer than the pool's time-out.
        """
        try:
            async with asyncio.timeout(self._share.timeout):
                await self._let_go_of_all.wait()
        except TimeoutError:
            raise BackendUnavailable(
                f"A database connection was not closed within {self._share.timeout:g} seconds."
            ) from None

    # -- what SQLAlchemy does with it ----------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        user = self._wanted
        record = self._get()
        if user is not None:
            record.info[_USER] = user
        return record

    def _get(self) -> ConnectionPoolEntry:
        if self._closed:
            raise BackendUnavailable("This engine is closed; take a new one for the tenant.")
        # What is free is nobody's who waits: it would have been handed over.
        try:
            found = self._budget.take(self)
        finally:
            self._wanted = None
        if found is None:
            found = await_only(self._budget.acquire(self, self._share.timeout))
            if self._closed:
                self._put_back(found)
                raise BackendUnavailable("This engine was closed meanwhile.")
        if not isinstance(found, Slot):
            return found
        try:
            if found.surplus is not None:
                found.surplus.close()
            return self._create_connection()
        except BaseException:
            self._budget.release(self)
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection is None:
            self._budget.release(self)
        elif self._closed or len(self._free) >= self._share.size:
            try:
                record.close()
            finally:
                self._budget.release(self)
        else:
            self._budget.put_idle(record, self)

    def dispose(self) -> None:
        """Close what is idle; a connection in use is closed when it comes back."""
        self._closed = True
        interrupted: BaseException | None = None
        for record in self._budget.drop(self):
            try:
                record.close()
            except BaseException as error:  # noqa: BLE001 - the others are closed all the same
                interrupted = error
            finally:
                self._budget.release(self)
        if interrupted is not None:
            raise interrupted

    def recreate(self) -> BudgetedPool:
        """Return the pool that SQLAlchemy puts in this one's place after a disposal.

        It refuses every checkout: a disposed engine belongs to nobody, and connections that it
        opened again would be closed by nobody.
        """
        successor = type(self)(
            self._connect,
            self._share,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        successor._closed = True  # noqa: SLF001 - of this class
        return successor

    def status(self) -> str:
        """Describe the pool in a line."""
        return f"open: {self.open}, idle: {len(self._free)}, at most: {self.most}"
