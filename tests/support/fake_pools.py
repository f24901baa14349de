"""Pools without connections, for tests of what they share."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from tenancy_core.errors import BackendUnavailable
from tenancy_core.sql.budget import Slot

if TYPE_CHECKING:
    from tenancy_core.sql import ConnectionBudget
    from tenancy_core.sql.budget import Holder


class Record:
    """A connection."""


class FakePool:
    """What a budget asks of a pool, without connections."""

    def __init__(
        self, budget: ConnectionBudget, *, most: int, control: bool = False, shared: bool = False
    ) -> None:
        self.budget = budget
        self.most = most
        self.control = control
        self.shared = shared
        self.open = 0
        self.free: deque[Any] = deque()
        self.reachable = True

    @property
    def idle(self) -> int:
        return len(self.free)

    def pop_idle(self, holder: Any = None) -> Any:
        return self.free.pop() if self.free else None

    def push_idle(self, record: Any) -> None:
        self.free.append(record)

    def forget(self, record: Any) -> None:
        self.free.remove(record)

    def is_full(self) -> bool:
        return False

    def require_reachable(self) -> None:
        if not self.reachable:
            raise BackendUnavailable("down")

    async def put_back(self, found: Any, holder: Holder) -> None:
        await asyncio.sleep(0)
        if isinstance(found, Slot):
            self.budget.release(self, holder)
        else:
            self.budget.put_idle(found, self, holder)
