"""What every bus does: who listens is told everything from then on, or told that it missed some."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import pytest
from anyio import CancelScope

from tenancy_core.testing.suite import Suite, cancel_after, requires, run_together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from tenancy_core.contract import InvalidationBus

__all__ = ["InvalidationBusSuite"]

LONGEST: Final = 4096
"""Characters that a message may have."""

MESSAGES: Final = (
    *("one", "two", "*", "two", " ", "  leading", "trailing  ", "a b", "a,b", "a:b", "%41", "\\n"),
    *("'", '"', "';--", "$1", "{}", "[]", "null", "".join(map(chr, range(0x20, 0x7F)))),
    *("0b6f4a2e-8c0d-4b55-9d34-0d5a3a0c9a11", "x" * LONGEST),
)
LAST: Final = "the last one"

MANY: Final = 1000


class InvalidationBusSuite(Suite, published=True):
    """Conformance of an :class:`~tenancy_core.contract.InvalidationBus`.

    A subclass gives the fixture ``bus``, open, to which nobody else publishes.
    """

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "shared": "it reaches other processes; give `another` as well",
    }

    @pytest.fixture
    def bus(self) -> InvalidationBus:
        """Give the bus that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `bus`.")

    def another(self) -> AbstractAsyncContextManager[InvalidationBus]:
        """Open a second client of the same bus, as another process has it."""
        raise NotImplementedError(
            f"{type(self).__name__} declares `shared` and has to define `another`."
        )

    # -- one subscriber ----------------------------------------------------------------------------

    async def test_messages_arrive_in_order_and_to_the_letter(self, bus: InvalidationBus) -> None:
        """Every message arrives, once, as it was sent, behind those that were sent before it."""
        async with bus.subscribe() as messages:
            for message in MESSAGES:
                await bus.publish(message)
            await bus.publish(LAST)
            assert await _until_last(messages) == [*MESSAGES]

    async def test_what_was_published_before_is_not_told(self, bus: InvalidationBus) -> None:
        """A subscription begins when it is entered: there is no past."""
        for _ in range(3):
            await bus.publish("before")
            async with bus.subscribe() as messages:
                await bus.publish(LAST)
                assert await _until_last(messages) == []

    async def test_who_has_entered_is_told_from_then_on(self, bus: InvalidationBus) -> None:
        """Nothing is missed between entering a subscription and the first reading."""
        for number in range(20):
            async with bus.subscribe() as messages:
                await bus.publish(str(number))
                await bus.publish(LAST)
                assert await _until_last(messages) == [str(number)]

    async def test_publishing_to_nobody_is_no_error(self, bus: InvalidationBus) -> None:
        """A message that nobody listens to is gone, also behind a subscription."""
        for _ in range(2):
            await bus.publish("nobody")
            async with bus.subscribe() as messages:
                await bus.publish(LAST)
                assert await _until_last(messages) == []

    # -- several subscribers -----------------------------------------------------------------------

    async def test_every_subscriber_is_told_everything(self, bus: InvalidationBus) -> None:
        """A message goes to all who listen, not to one of them."""
        sent = [str(number) for number in range(20)]
        async with bus.subscribe() as first, bus.subscribe() as second:
            for message in sent:
                await bus.publish(message)
            await bus.publish(LAST)
            for messages in (first, second):
                assert await _until_last(messages) == sent

    async def test_who_leaves_holds_up_nobody(self, bus: InvalidationBus) -> None:
        """Leaving ends one subscription; the others go on."""
        async with bus.subscribe() as stays:
            for number in range(3):
                async with bus.subscribe() as leaves:
                    await bus.publish(str(number))
                    assert await anext(leaves) == str(number)
                await bus.publish("in between")
            await bus.publish(LAST)
            told = await _until_last(stays)
            assert told == ["0", "in between", "1", "in between", "2", "in between"]

    async def test_a_subscriber_that_was_cancelled_is_gone(self, bus: InvalidationBus) -> None:
        """A listener that is cancelled while it waits leaves nothing behind that fails."""
        for _ in range(5):
            with CancelScope() as scope:
                async with bus.subscribe() as messages:
                    scope.cancel()
                    await anext(messages)
            assert scope.cancelled_caught
            await bus.publish("nobody")
        async with bus.subscribe() as messages:
            await bus.publish(LAST)
            assert await _until_last(messages) == []

    async def test_a_slow_subscriber_holds_up_nobody(self, bus: InvalidationBus) -> None:
        """Publishing does not wait for a subscriber that does not read."""
        sent = [str(number) for number in range(MANY)]
        async with bus.subscribe(), bus.subscribe() as reader:
            for message in sent:
                await bus.publish(message)
                assert await anext(reader) == message

    async def test_who_is_behind_misses_nothing_or_is_told_so(self, bus: InvalidationBus) -> None:
        """What a slow subscriber reads has no gap: where one would be, the reading raises."""
        sent = [str(number) for number in range(MANY)]
        async with bus.subscribe() as messages:
            for message in sent:
                await bus.publish(message)
            await bus.publish(LAST)
            told: list[str] = []
            try:
                while (message := await anext(messages)) != LAST:
                    told.append(message)
            except Exception:  # noqa: BLE001 - of the bus; it says that some were lost
                assert told == sent[: len(told)]
            else:
                assert told == sent

    # -- many publishers ---------------------------------------------------------------------------

    async def test_messages_of_many_publishers_all_arrive(self, bus: InvalidationBus) -> None:
        """A hundred at once lose nothing and repeat nothing."""
        sent = [str(number) for number in range(100)]
        async with bus.subscribe() as messages:
            await run_together(partial(bus.publish, message) for message in sent)
            await bus.publish(LAST)
            assert sorted(await _until_last(messages)) == sorted(sent)

    async def test_a_publisher_that_was_cancelled_harms_nobody(self, bus: InvalidationBus) -> None:
        """Cancelled at any moment, it has published its message or not, and others go on."""
        async with bus.subscribe() as messages:
            for steps in range(30):
                await cancel_after(steps, partial(bus.publish, f"cancelled {steps}"))
                await bus.publish(str(steps))
            await bus.publish(LAST)
            told = await _until_last(messages)
        assert [message for message in told if not message.startswith("cancelled")] == [
            str(steps) for steps in range(30)
        ]
        assert len({*told}) == len(told)

    # -- several processes -------------------------------------------------------------------------

    @requires("shared")
    async def test_other_processes_are_told(self, bus: InvalidationBus) -> None:
        """Whoever publishes, subscribers in every process hear it, and what follows."""
        async with (
            self.another() as other,
            bus.subscribe() as here,
            other.subscribe() as there,
        ):
            for number in range(10):
                await (bus if number % 2 else other).publish(str(number))
            await bus.publish(LAST)
            for messages in (here, there):
                assert await _until_last(messages) == [str(number) for number in range(10)]

    @requires("shared")
    async def test_a_process_that_goes_takes_nobody_along(self, bus: InvalidationBus) -> None:
        """One that is closed ends its own subscriptions and publishes no more; others go on."""
        async with bus.subscribe() as messages:
            async with self.another() as other:
                async with other.subscribe() as there:
                    await bus.publish("both")
                    assert await anext(there) == "both"
                await other.publish("farewell")
            await bus.publish(LAST)
            assert await _until_last(messages) == ["both", "farewell"]


async def _until_last(messages: AsyncIterator[str]) -> list[str]:
    """Return what comes before the message that ends a test."""
    told: list[str] = []
    while (message := await anext(messages)) != LAST:
        told.append(message)
    return told
