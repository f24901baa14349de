"""A SQLAlchemy connection pool that draws on the process's one connection budget."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from tenancy_core._background import outlast
from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql import breaker
from tenancy_core.sql.budget import Slot
from tenancy_core.sql.forked import keep_from_children

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Coroutine, Hashable

    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.sql.breaker import Breaker
    from tenancy_core.sql.budget import ConnectionBudget, Holder

__all__ = ["BudgetedPool", "PoolShare"]

_USER: Final = "tenancy_user"
"""Key in the information on a connection: whose it was last."""

_opens: ContextVar[Holder | None] = ContextVar("tenancy_opens", default=None)
"""For whom a connection is being opened, of which nothing is known before it is open."""


@dataclass(frozen=True, slots=True)
class PoolShare:
    """How one pool draws on the budget.

    Attributes:
        budget: The ceiling that all pools share.
        size: Idle connections to keep.
        most: Connections that this pool alone may have open.
        timeout: Seconds to wait for one.
        control: Whether the pool serves the control plane, for which one slot is kept.
        breakers: Of what has to answer when a connection is opened.
        source: Whose failures those are that the breakers are told of; by default the pool's.
    """

    budget: ConnectionBudget
    size: int
    most: int
    timeout: float
    control: bool = False
    breakers: tuple[Breaker, ...] = ()
    source: Hashable = None


class BudgetedPool(Pool):
    """Keeps up to ``size`` idle connections, newest first; opens and waits by the budget.

    Attributes:
        affine: Whether a tenant had better have a connection that it had last.
        control: Whether it serves the control plane, for which one slot is kept.
        most: Most connections that this pool alone may have open.
        open: Connections that it has open.
        shared: Whether it is several tenants' pool, so that one can take it from others.
    """

    _is_asyncio = True  # pyright: ignore[reportAssignmentType]

    def __init__(self, creator: Any, share: PoolShare, **options: Any) -> None:  # noqa: ANN401 - as SQLAlchemy
        super().__init__(self._open_connection, **options)
        self._connect = creator
        self._share = share
        self._budget = share.budget
        self._free: deque[ConnectionPoolEntry] = deque()
        self._user: str | None = None
        self._plan: str | None = None
        self._holders: dict[ConnectionPoolEntry, Holder] = {}
        self._closed = False
        self._is_detaching = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lingering = 0
        self._let_go_of_all = asyncio.Event()
        self._let_go_of_all.set()
        self.affine = False
        self.control = share.control
        self.most = share.most
        self.open = 0
        self.shared = False

    # -- what the budget does with it ----------------------------------------------------------

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        return len(self._free)

    def expect(self, user: str, plan: str | None) -> None:
        """Say whose the next checkout is. Nothing may be awaited between this call and that.

        Args:
            user: The name of a tenant's place.
            plan: Of the tenant.
        """
        self._user = user
        self._plan = plan

    def pop_idle(self, holder: Holder | None = None) -> ConnectionPoolEntry | None:
        """Return the idle connection that was used last, or None.

        Where it matters whose it was, it is one that was this holder's; else the one that has been
        idle for longest, so that those which were used just now wait for their own users.
        """
        if not self._free:
            return None
        if not self.affine or holder is None or holder.key is self:
            return self._free.pop()
        for record in reversed(self._free):
            if record.info.get(_USER) == holder.key:
                self._free.remove(record)
                return record
        return self._free.popleft()

    def require_reachable(self) -> None:
        """Refuse to open a connection while the other end is known not to answer.

        Raises:
            BackendUnavailable: It does not.
        """
        if self._share.breakers:
            breaker.require_closed(self._share.breakers)

    def is_full(self) -> bool:
        """Whether the other end lets nobody in for now, and what is in use here can be waited for.

        Waiting for those of a server that is gone would be in vain.
        """
        if self.open == len(self._free):
            return False
        unclosed = [one for one in self._share.breakers if one.retry_after > 0]
        return bool(unclosed) and all(one.is_full for one in unclosed)

    def push_idle(self, record: ConnectionPoolEntry) -> None:
        """Keep an idle connection."""
        self._free.append(record)

    def forget(self, record: ConnectionPoolEntry) -> None:
        """Drop an idle connection that another pool closes."""
        self._free.remove(record)

    async def put_back(self, found: ConnectionPoolEntry | Slot, holder: Holder) -> None:
        """Return what the budget handed to somebody who does not take it any more."""
        await greenlet_spawn(self._put_back, found, holder)

    def _put_back(self, found: ConnectionPoolEntry | Slot, holder: Holder) -> None:
        if not isinstance(found, Slot):
            self._holders[found] = holder
            self._return_conn(found)
            return
        try:
            if found.surplus is not None:
                found.surplus.close()
        finally:
            self._budget.release(self, holder)

    # -- opening and closing -------------------------------------------------------------------
    #
    # A driver whose caller is cancelled while it connects or closes lets go of the connection some
    # time later. Both therefore run in tasks of their own: the caller leaves at once, and the slot
    # is free when the connection is really closed, so that the ceiling holds at every moment.

    def _open_connection(self, rec: ConnectionPoolEntry) -> Any:  # noqa: ANN401 - DBAPI
        holder = self._holders.get(rec) or _opens.get()
        self._loop = asyncio.get_running_loop()
        connect = self._connect
        if self._share.breakers:
            # Here, because a connection that is replaced is opened as well.
            source = id(self) if self._share.source is None else self._share.source
            connect = breaker.watch(self._share.breakers, connect, source)
        opening = greenlet_spawn(connect, rec)
        return await_only(outlast(opening, partial(self._left_opening, holder)))

    def _left_opening(self, holder: Holder | None, opening: Task[Any]) -> Coroutine[Any, Any, None]:
        self._linger(holder)
        return self._close_when_open(opening, holder)

    async def _close_when_open(self, opening: Task[Any], holder: Holder | None) -> None:
        try:
            # Whoever wanted it to succeed is gone.
            with suppress(Exception):
                await greenlet_spawn(super()._close_connection, await opening)
        finally:
            self._let_go(holder)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:  # noqa: ANN401 - DBAPI
        if self._is_detaching or not in_greenlet():
            self._is_detaching = False
            self._soon(partial(super()._close_connection, connection, terminate=terminate))
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

    def _linger(self, holder: Holder | None = None) -> None:
        self._budget.keep(self, holder)
        self._lingering += 1
        self._let_go_of_all.clear()

    def _let_go(self, holder: Holder | None = None) -> None:
        self._budget.release(self, holder)
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
        user, self._user = self._user, None
        if self._closed:
            raise BackendUnavailable("This engine is closed; take a new one for the tenant.")
        budget = self._budget
        holder = budget.holder(self, None) if user is None else budget.holder(user, self._plan)
        # What is free is nobody's who waits: it would have been handed over.
        found = budget.take(self, holder)
        if found is None:
            found = self._wait(holder)
        record = self._open(found, holder) if isinstance(found, Slot) else found
        self._holders[record] = holder
        if self.affine and user is not None:
            record.info[_USER] = user
        return record

    def _wait(self, holder: Holder) -> ConnectionPoolEntry | Slot:
        found = await_only(self._budget.acquire(self, holder, self._share.timeout))
        if self._closed:
            self._put_back(found, holder)
            raise BackendUnavailable("This engine was closed meanwhile.")
        return found

    def _open(self, slot: Slot, holder: Holder) -> ConnectionPoolEntry:
        token = _opens.set(holder)
        try:
            if slot.surplus is not None:
                slot.surplus.close()
            record = self._create_connection()
        except BaseException:
            self._budget.release(self, holder)
            raise
        else:
            keep_from_children(record)
            return record
        finally:
            _opens.reset(token)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        """Take note of a connection that does not come back, and is closed next.

        SQLAlchemy calls it for those that the garbage collector found. That is in any thread, and
        in the middle of anything, be it of the budget: nothing can be done here, or awaited.
        """
        self._is_detaching = True
        self._soon(partial(self._return_conn, record))

    def _soon(self, work: Callable[[], None]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            work()
        else:
            loop.call_soon_threadsafe(work)

    def _return_conn(self, record: ConnectionPoolEntry) -> None:
        holder = self._holders.pop(record, None)
        if record.dbapi_connection is None:
            self._budget.release(self, holder)
        elif self._closed or len(self._free) >= self._share.size:
            try:
                record.close()
            finally:
                self._budget.release(self, holder)
        else:
            self._budget.put_idle(record, self, holder)

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
