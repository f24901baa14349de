"""Invalidation buses that make one mistake each."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import anyio
import anyio.lowlevel
import pytest

from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core.testing.invalidation_bus import InvalidationBusSuite
from tenancy_core.testing.mutants.caches import (
    ComplainsOfTheGone,
    KeepsToItself,
    LosesUnderLoad,
    RepeatsThePast,
    TellsOneOfThem,
    WaitsForSlowSubscribers,
)
from tenancy_core.testing.mutants.mutant import mutant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tenancy_core.contract import InvalidationBus

__all__ = ["BUS_MUTANTS", "HONEST_BUSES"]


class BusCase(InvalidationBusSuite):
    """The suite on a bus in memory."""

    product: ClassVar[type[Any]] = MemoryCacheBackend

    @pytest.fixture
    def bus(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the bus."""
        return self.product()


class HonestBusClient:
    """One of several clients of a server, which is a bus in memory."""

    def __init__(self, server: MemoryCacheBackend) -> None:
        self.server = server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the server as it is."""

    async def publish(self, message: str, /) -> None:
        """See the contract."""
        await self.server.publish(message)

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """See the contract."""
        return self.server.subscribe()


class BusClientCase(InvalidationBusSuite):
    """The suite on a bus that several clients share."""

    capabilities = frozenset({"shared"})
    product: ClassVar[type[Any]] = HonestBusClient

    @pytest.fixture
    def bus(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the server, and one client."""
        self.server = MemoryCacheBackend()
        return self.product(self.server)

    def another(self) -> AbstractAsyncContextManager[InvalidationBus]:
        """See the suite."""
        client: AbstractAsyncContextManager[InvalidationBus] = self.product(self.server)
        return client


# -- mistakes that a cache makes with its bus as well ------------------------------------------


class WakesOneListener(TellsOneOfThem):
    """Gives a message to one of its listeners."""


class TellsTheHistory(RepeatsThePast):
    """Tells a new listener what was published before."""


class PacesPublishers(WaitsForSlowSubscribers):
    """Publishes no faster than the slowest listener reads."""


class DropsWithoutAWord(LosesUnderLoad):
    """Drops messages for a listener that is behind, and does not tell it."""


class MissesTheGone(ComplainsOfTheGone):
    """Keeps listeners that left, and fails when it tells them."""


# -- others ------------------------------------------------------------------------------------


class LosesAfterTheFirst(MemoryCacheBackend):
    """Tells a subscriber one message, as a wake-up that is not set again does."""

    async def publish(self, message: str, /) -> None:
        """Tell those who have heard nothing yet."""
        for subscriber in tuple(self._subscribers):
            subscriber.send_nowait(message)
            self._subscribers.discard(subscriber)


class TidiesMessages(MemoryCacheBackend):
    """Takes spaces at the ends for noise."""

    async def publish(self, message: str, /) -> None:
        """Strip."""
        await super().publish(message.strip())


class LeavesOutRepetitions(MemoryCacheBackend):
    """Takes a message that is like an earlier one for the same."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._known: set[str] = set()

    async def publish(self, message: str, /) -> None:
        """Leave out."""
        if message not in self._known:
            self._known.add(message)
            await super().publish(message)


class SubscribesWhenItReads(MemoryCacheBackend):
    """Begins to listen when the first message is read, and not when it is entered."""

    def subscribe(self) -> Any:  # noqa: ANN401 - wrong on purpose
        """Put it off."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncIterator[str], None]:
            async def late() -> AsyncGenerator[str, None]:
                async with MemoryCacheBackend.subscribe(self) as messages:
                    async for message in messages:
                        yield message

            async with aclosing(late()) as reading:
                yield reading

        return opened()


class WantsAnAudience(MemoryCacheBackend):
    """Fails where nobody listens."""

    async def publish(self, message: str, /) -> None:
        """Complain."""
        if not self._subscribers:
            raise RuntimeError("nobody listens")
        await super().publish(message)


class EndsWithTheFirst(MemoryCacheBackend):
    """Ends everybody's subscription with anybody's."""

    def subscribe(self) -> Any:  # noqa: ANN401 - wrong on purpose
        """End all."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncIterator[str], None]:
            async with MemoryCacheBackend.subscribe(self) as messages:
                yield messages
            self._subscribers.clear()

        return opened()


class SharesOneOutbox(MemoryCacheBackend):
    """Keeps what it publishes on itself while it waits."""

    _message = ""

    async def publish(self, message: str, /) -> None:
        """Wait in between."""
        self._message = message
        await anyio.lowlevel.checkpoint()
        await super().publish(self._message)


class StaysLocked(MemoryCacheBackend):
    """Tells nobody anything any more when a publisher was cancelled."""

    _locked = False

    async def publish(self, message: str, /) -> None:
        """Lock, and unlock where nothing comes between."""
        if self._locked:
            return
        self._locked = True
        await anyio.lowlevel.checkpoint()
        await super().publish(message)
        self._locked = False


class TellsItsOwnProcessOnly(KeepsToItself, HonestBusClient):
    """Ends at its own process."""


class HangsUpForAll(HonestBusClient):
    """Takes the subscriptions of all clients away when it is closed."""

    async def close(self) -> None:
        """Hang up."""
        self.server._subscribers.clear()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fault


HONEST_BUSES: Final = (BusCase, BusClientCase)

_ORDER: Final = "test_messages_arrive_in_order_and_to_the_letter"
_PAST: Final = "test_what_was_published_before_is_not_told"
_ENTERED: Final = "test_who_has_entered_is_told_from_then_on"
_NOBODY: Final = "test_publishing_to_nobody_is_no_error"
_SLOW: Final = "test_a_slow_subscriber_holds_up_nobody"
_BEHIND: Final = "test_who_is_behind_misses_nothing_or_is_told_so"

BUS_MUTANTS: Final = (
    mutant(BusCase, LosesAfterTheFirst, _ORDER, timeout=0.5),
    mutant(BusCase, TidiesMessages, _ORDER),
    mutant(BusCase, LeavesOutRepetitions, _ORDER),
    mutant(BusCase, TellsTheHistory, _PAST, _NOBODY),
    mutant(BusCase, SubscribesWhenItReads, _ENTERED, timeout=0.5),
    mutant(BusCase, WantsAnAudience, _NOBODY),
    mutant(BusCase, WakesOneListener, "test_every_subscriber_is_told_everything", timeout=0.5),
    mutant(BusCase, EndsWithTheFirst, "test_who_leaves_holds_up_nobody", timeout=0.5),
    mutant(BusCase, MissesTheGone, "test_a_subscriber_that_was_cancelled_is_gone"),
    mutant(BusCase, PacesPublishers, _SLOW, timeout=2.0),
    mutant(BusCase, DropsWithoutAWord, _BEHIND, timeout=2.0),
    mutant(BusCase, SharesOneOutbox, "test_messages_of_many_publishers_all_arrive", timeout=2.0),
    mutant(BusCase, StaysLocked, "test_a_publisher_that_was_cancelled_harms_nobody", timeout=2.0),
    mutant(BusClientCase, TellsItsOwnProcessOnly, "test_other_processes_are_told", timeout=0.5),
    mutant(
        BusClientCase, HangsUpForAll, "test_a_process_that_goes_takes_nobody_along", timeout=0.5
    ),
)
