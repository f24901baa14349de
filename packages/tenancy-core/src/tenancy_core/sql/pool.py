"""A SQLAlchemy connection pool that draws on the process's one connection budget."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql.budget import Slot

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from tenancy_core.sql.budget import ConnectionBudget

__all__ = ["BudgetedPool", "PoolShare"]


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

    _is_asyncio = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, creator: Any, share: PoolShare, **options: Any) -> None:  # noqa: ANN401 - as SQLAlchemy
        super().__init__(creator, **options)
        self._share = share
        self._budget = share.budget
        self._free: deque[ConnectionPoolEntry] = deque()
        self._closed = False
        self.control = share.control
        self.most = share.most
        self.open = 0

    # -- what the budget does with it ----------------------------------------------------------

    def pop_idle(self) -> ConnectionPoolEntry | None:
        """Return the idle connection that was used last, or None."""
        return self._free.pop() if self._free else None

    def push_idle(self, record: ConnectionPoolEntry) -> None:
        """Keep an idle connection."""
        self._free.append(record)

    def forget(self, record: ConnectionPoolEntry) -> None:
        """Drop an idle connection that another pool closes."""
        self._free.remove(record)

    # -- what SQLAlchemy does with it ----------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        if self._closed:
            raise BackendUnavailable("This engine is closed; take a new one for the tenant.")
        found = self._budget.take(self) if not self._budget.waiting else None
        if found is None:
            found = await_only(self._budget.acquire(self, self._share.timeout))
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
        for record in self._budget.drop_idle(self):
            try:
                record.close()
            finally:
                self._budget.release(self)

    def recreate(self) -> BudgetedPool:
        """Return the pool that SQLAlchemy puts in this one's place after a disposal.

        It refuses every checkout: a disposed engine belongs to nobody, and connections that it
        opened again would be closed by nobody.
        """
        successor = type(self)(
            self._creator,
            self._share,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        successor._closed = True
        return successor

    def status(self) -> str:
        """Describe the pool in a line."""
        return f"open: {self.open}, idle: {len(self._free)}, at most: {self.most}"
