"""Single flight: of many who ask for the same thing at once, one fetches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["SingleFlight"]

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("done", "error", "landed", "value")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.landed = False
        self.value: T | None = None
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Shares one running look-up per key.

    The leader fetches in its own task. If it is cancelled, one of those who wait takes over; if
    the look-up fails, all who waited get the same error, and nothing is remembered.
    """

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def run(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return what ``fetch`` returns, called once for all who ask at the same time."""
        while (flight := self._flights.get(key)) is not None:
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.landed:
                return flight.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # it landed
        flight = self._flights[key] = _Flight()
        try:
            flight.value = await fetch()
            flight.landed = True
        except Exception as error:
            flight.error = error
            raise
        else:
            return flight.value
        finally:
            del self._flights[key]
            flight.done.set()
