"""The shared cache's contract in the memory of one process: for tests and single processes."""

from __future__ import annotations

import math
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["MemoryCacheBackend"]

_MAX_ENTRIES: Final = 100_000


class MemoryCacheBackend:
    """Implements :class:`~tenancy_core.contract.CacheBackend`.

    Args:
        max_entries: Beyond it the entry that was used least recently is dropped.
        clock: Seconds, never going back.
    """

    def __init__(
        self, *, max_entries: int = _MAX_ENTRIES, clock: Callable[[], float] = monotonic
    ) -> None:
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._max_entries = max_entries
        self._clock = clock
        self._generation = 0
        self._subscribers: set[MemoryObjectSendStream[str]] = set()

    async def get(self, key: str, /) -> bytes | None:
        """See the contract."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[1]

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """See the contract."""
        self._entries[key] = (self._clock() + ttl, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    async def delete(self, key: str, /) -> None:
        """See the contract."""
        self._entries.pop(key, None)

    async def generation(self, *, bump: bool = False) -> int:
        """See the contract."""
        if bump:
            self._generation += 1
        return self._generation

    async def publish(self, message: str, /) -> None:
        """See the contract."""
        for subscriber in tuple(self._subscribers):
            subscriber.send_nowait(message)

    def subscribe(self) -> _Subscription:
        """See the contract."""
        return _Subscription(self._subscribers)


class _Subscription:
    __slots__ = ("_receive", "_send", "_subscribers")

    def __init__(self, subscribers: set[MemoryObjectSendStream[str]]) -> None:
        self._subscribers = subscribers
        # Unbounded: a publisher never waits for a slow subscriber, and never fails because of it.
        streams = anyio.create_memory_object_stream[str](math.inf)
        self._send: MemoryObjectSendStream[str] = streams[0]
        self._receive: MemoryObjectReceiveStream[str] = streams[1]

    async def __aenter__(self) -> AsyncIterator[str]:
        self._subscribers.add(self._send)
        return self._receive

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._subscribers.discard(self._send)
        self._send.close()
        self._receive.close()
