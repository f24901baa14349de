"""Writers of one file, one after the other and in the order they came.

SQLite allows one writer per file. Those who wait inside it poll in their threads, hold a
connection each, and are served in no order; here they wait in line and hold nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tenancy_core.errors import BackendUnavailable, IsolationError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["WriteGate", "WriteGates"]


class WriteGate:
    """The line of one file's writers."""

    __slots__ = ("__weakref__", "_holder", "_lock", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._lock = asyncio.Lock()
        self._timeout = timeout
        self._holder: asyncio.Task[object] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is not None and task is self._holder:
            raise IsolationError(
                "This task already has a session of this tenant open, and SQLite allows one "
                "writer: use that session, or open this one with read_only=True."
            )
        try:
            # Also while the lock is open: it may be on its way to somebody who waits already.
            async with asyncio.timeout(self._timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise BackendUnavailable(
                f"Another session of the tenant kept its database for {self._timeout:g} seconds."
            ) from None
        self._holder = task

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder = None
        self._lock.release()


class WriteGates:
    """The gates of all files that are in use."""

    __slots__ = ("_gates", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._gates: WeakValueDictionary[str, WriteGate] = WeakValueDictionary()

    def of(self, name: str) -> WriteGate:
        """Return the gate of a file."""
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = WriteGate(self._timeout)
        return gate
