"""What every cache does: it gives back what was put in, forgets in time, and tells who listens."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import anyio.lowlevel
import pytest
from anyio import CancelScope

from tenancy_core.testing.suite import Suite, cancel_after, requires, run_together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from tenancy_core.contract import CacheBackend

__all__ = ["CacheBackendSuite"]

LONG: Final = 3600.0
"""A time to live that no test outlasts, in seconds."""

PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))

# Threat I10: what a backend that glues keys together, or takes them for patterns, confuses.
KEYS: Final = (
    *("a", "A", "a:b", "a::b", ":a:b", "a:b:", "a*", "*", "?", "a?", "[ab]", "[a", "{a}", "{a}b"),
    *("a{b}", "a b", " a", "a ", "a%3Ab", "a%b", "a\\b", "a/b", "a//b", "a.b", "..", "a'b", 'a"b'),
    *("a;b", "a\nb", "a\r\nb", "a\tb", "a\x00b", "a\x7f", "0", "00", "-1", "None"),
    *("x" * 250, "x" * 251, PRINTABLE, PRINTABLE[::-1]),
)

VALUES: Final = (b"", b"\x00", b"0", b"None", b"\xff\xfe", bytes(range(256)), b"\r\n+OK\r\n$-1\r\n")


class CacheBackendSuite(Suite, published=True):
    """Conformance of a :class:`~tenancy_core.contract.CacheBackend`.

    A subclass gives the fixture ``cache``: open, and empty. Where the cache can be given a clock,
    the fixture sets ``self.clock``; else the few tests of the time to live wait.
    """

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "bus": "`publish` and `subscribe` work",
        "shared": "several processes use one cache; give `another` as well",
        "survives_restart": "values outlive the client that set them; give `another` as well",
    }

    @pytest.fixture
    def cache(self) -> CacheBackend:
        """Give the cache that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `cache`.")

    def another(self) -> AbstractAsyncContextManager[CacheBackend]:
        """Open a second client of the same cache, as another process has it."""
        raise NotImplementedError(
            f"{type(self).__name__} declares `shared` or `survives_restart` and has to define "
            "`another`."
        )

    # -- values ------------------------------------------------------------------------------------

    async def test_a_value_comes_back_as_it_was_set(self, cache: CacheBackend) -> None:
        """Values are bytes of any kind; an empty one is not an absent one."""
        for number, value in enumerate(VALUES):
            await cache.set(f"value-{number}", value, ttl=LONG)
        for number, value in enumerate(VALUES):
            found = await cache.get(f"value-{number}")
            assert type(found) is bytes, f"{value!r}: {found!r}"
            assert found == value

    async def test_a_huge_value_comes_back_whole(self, cache: CacheBackend) -> None:
        """A megabyte is kept whole, or not at all; never a part of it."""
        value = random.Random(1).randbytes(1 << 20)  # noqa: S311 - to be repeatable
        await cache.set("huge", value, ttl=LONG)
        assert await cache.get("huge") in {value, None}

    async def test_what_was_never_set_is_none(self, cache: CacheBackend) -> None:
        """An absent key is None, and no error."""
        for key in KEYS:
            assert await cache.get(key) is None

    async def test_the_last_value_counts(self, cache: CacheBackend) -> None:
        """A second ``set`` replaces the first, whichever is longer."""
        for value in (b"first", b"2", b"", b"the fourth"):
            await cache.set("key", value, ttl=LONG)
            assert await cache.get("key") == value

    async def test_I10_every_key_is_its_own(self, cache: CacheBackend) -> None:
        """No two ASCII keys meet, whatever characters they are made of."""
        for number, key in enumerate(KEYS):
            await cache.set(key, str(number).encode(), ttl=LONG)
        for number, key in enumerate(KEYS):
            assert await cache.get(key) == str(number).encode(), f"the key {key!r}"

    # -- forgetting --------------------------------------------------------------------------------

    async def test_a_value_is_forgotten_after_its_time(self, cache: CacheBackend) -> None:
        """After ``ttl`` seconds a value is gone; one with more time stays."""
        await cache.set("short", b"1", ttl=0.5)
        await cache.set("long", b"2", ttl=LONG)
        await self.advance(1.0)
        assert await cache.get("short") is None
        assert await cache.get("long") == b"2"

    async def test_a_value_is_kept_for_its_time(self, cache: CacheBackend) -> None:
        """A value with a time of an hour is there at once, and often."""
        await cache.set("key", b"1", ttl=LONG)
        for _ in range(20):
            assert await cache.get("key") == b"1"

    async def test_reading_does_not_lengthen_the_time(self, cache: CacheBackend) -> None:
        """The time runs from ``set``; a value that is read again and again still ends."""
        await cache.set("key", b"1", ttl=0.6)
        for _ in range(4):
            await self.advance(0.3)
            await cache.get("key")
        assert await cache.get("key") is None

    async def test_setting_again_starts_the_time_anew(self, cache: CacheBackend) -> None:
        """The time of the last ``set`` counts, be it longer or shorter than the one before."""
        await cache.set("longer", b"1", ttl=0.5)
        await cache.set("longer", b"2", ttl=LONG)
        await cache.set("shorter", b"1", ttl=LONG)
        await cache.set("shorter", b"2", ttl=0.5)
        await self.advance(1.0)
        assert await cache.get("longer") == b"2"
        assert await cache.get("shorter") is None

    async def test_I10_deleting_takes_one_key_and_no_other(self, cache: CacheBackend) -> None:
        """``delete`` takes the key to the letter, never as a pattern or a prefix."""
        for key in KEYS:
            await cache.set(key, b"1", ttl=LONG)
        gone = set[str]()
        for key in ("*", "?", "a", "[ab]", "{a}", "a:b", PRINTABLE):
            await cache.delete(key)
            gone.add(key)
            there = {key for key in KEYS if await cache.get(key) is not None}
            assert there == {*KEYS} - gone, f"delete({key!r})"

    async def test_deleting_what_is_not_there_is_no_error(self, cache: CacheBackend) -> None:
        """``delete`` of an absent key does nothing, also the second time."""
        await cache.delete("nothing")
        await cache.set("key", b"1", ttl=LONG)
        for _ in range(2):
            await cache.delete("key")
            assert await cache.get("key") is None

    # -- the generation ----------------------------------------------------------------------------

    async def test_the_generation_moves_only_when_it_is_bumped(self, cache: CacheBackend) -> None:
        """Reading the generation does not change it; bumping does, and returns the new one."""
        first = await cache.generation()
        assert type(first) is int
        assert await cache.generation() == first
        bumped = await cache.generation(bump=True)
        assert bumped > first
        assert await cache.generation() == bumped

    async def test_generations_never_come_again(self, cache: CacheBackend) -> None:
        """A hundred bumps, ten at a time, are a hundred numbers, each greater than the last."""
        seen = [await cache.generation()]
        for _ in range(10):
            bump = partial(cache.generation, bump=True)
            found = await run_together([bump] * 10)
            assert min(found) > max(seen)
            seen += found
        assert len({*seen}) == len(seen) == 101
        assert await cache.generation() == max(seen)

    async def test_the_generation_is_no_key(self, cache: CacheBackend) -> None:
        """Nothing that is set or deleted under any key moves the generation."""
        before = await cache.generation(bump=True)
        for key in ("generation", "gen", "g", *KEYS):
            await cache.set(key, b"999", ttl=LONG)
            await cache.delete(key)
        assert await cache.generation() == before

    # -- many at once ------------------------------------------------------------------------------

    async def test_concurrent_commands_get_their_own_answers(self, cache: CacheBackend) -> None:
        """Two hundred readers and writers at once: each reads what it wrote."""

        async def work(number: int) -> None:
            key = f"worker-{number}"
            for turn in range(5):
                value = f"{number}:{turn}".encode()
                await cache.set(key, value, ttl=LONG)
                await anyio.lowlevel.checkpoint()
                assert await cache.get(key) == value

        await run_together(partial(work, number) for number in range(200))

    async def test_K6_a_cancelled_command_gives_its_answer_to_nobody(
        self, cache: CacheBackend
    ) -> None:
        """Whoever comes after a command that was cancelled at any moment gets their own answer."""
        for number in range(10):
            await cache.set(f"key-{number}", f"value-{number}".encode(), ttl=LONG)
        for steps in range(40):
            await cancel_after(steps, partial(cache.get, "key-0"))
            found = await run_together(partial(cache.get, f"key-{number}") for number in range(10))
            assert found == [f"value-{number}".encode() for number in range(10)]

    async def test_K6_a_cancelled_write_is_done_or_not_done(self, cache: CacheBackend) -> None:
        """A ``set`` that was cancelled leaves the old value or the new one, whole."""
        old, new = b"o" * 10_000, b"n" * 20_000
        for steps in range(20):
            await cache.set("key", old, ttl=LONG)
            await cancel_after(steps, partial(cache.set, "key", new, ttl=LONG))
            assert await cache.get("key") in {old, new}

    # -- the bus -----------------------------------------------------------------------------------

    @requires("bus")
    async def test_a_subscriber_gets_what_is_published_from_then_on(
        self, cache: CacheBackend
    ) -> None:
        """Messages arrive in order and to the letter; those before the subscription do not."""
        sent = ["one", "two", "", PRINTABLE, "x" * 4096, "two"]
        await cache.publish("before")
        async with cache.subscribe() as messages:
            for message in sent:
                await cache.publish(message)
            assert await _take(messages, len(sent)) == sent

    @requires("bus")
    async def test_every_subscriber_gets_every_message(self, cache: CacheBackend) -> None:
        """A message goes to all who listen, not to one of them."""
        async with cache.subscribe() as first, cache.subscribe() as second:
            for number in range(20):
                await cache.publish(str(number))
            for messages in (first, second):
                assert await _take(messages, 20) == [str(number) for number in range(20)]

    @requires("bus")
    async def test_who_leaves_is_told_nothing_more_and_holds_up_nobody(
        self, cache: CacheBackend
    ) -> None:
        """Leaving ends one subscription; the others go on, and a new one starts from then on."""
        async with cache.subscribe() as stays:
            async with cache.subscribe() as leaves:
                await cache.publish("both")
                assert await _take(leaves, 1) == ["both"]
            await cache.publish("one")
            async with cache.subscribe() as comes:
                await cache.publish("again")
                assert await _take(comes, 1) == ["again"]
            assert await _take(stays, 3) == ["both", "one", "again"]

    @requires("bus")
    async def test_publishing_to_nobody_is_no_error(self, cache: CacheBackend) -> None:
        """A message that nobody listens to is gone."""
        for number in range(5):
            await cache.publish(str(number))
        async with cache.subscribe() as messages:
            await cache.publish("heard")
            assert await _take(messages, 1) == ["heard"]

    @requires("bus")
    async def test_a_slow_subscriber_holds_up_nobody(self, cache: CacheBackend) -> None:
        """Publishing does not wait for a subscriber that does not read."""
        async with cache.subscribe(), cache.subscribe() as reader:
            for number in range(1000):
                await cache.publish(str(number))
            assert await _take(reader, 1000) == [str(number) for number in range(1000)]

    @requires("bus")
    async def test_a_subscriber_that_was_cancelled_is_gone(self, cache: CacheBackend) -> None:
        """A listener that is cancelled while it waits leaves nothing behind that fails."""
        for _ in range(5):
            with CancelScope() as scope:
                async with cache.subscribe() as messages:
                    scope.cancel()
                    await anext(messages)
            assert scope.cancelled_caught
            await cache.publish("nobody")
        async with cache.subscribe() as messages:
            await cache.publish("heard")
            assert await _take(messages, 1) == ["heard"]

    # -- several processes -------------------------------------------------------------------------

    @requires("shared")
    async def test_another_client_reads_what_this_one_set(self, cache: CacheBackend) -> None:
        """Values, deletions and generations are the same for all clients."""
        async with self.another() as other:
            await cache.set("key", b"1", ttl=LONG)
            assert await other.get("key") == b"1"
            await other.set("key", b"2", ttl=LONG)
            assert await cache.get("key") == b"2"
            await other.delete("key")
            assert await cache.get("key") is None
            bumped = await cache.generation(bump=True)
            assert await other.generation() == bumped
            assert await other.generation(bump=True) > bumped

    @requires("shared", "bus")
    async def test_another_client_hears_what_this_one_publishes(self, cache: CacheBackend) -> None:
        """The bus reaches subscribers in every process."""
        async with (
            self.another() as other,
            cache.subscribe() as here,
            other.subscribe() as there,
        ):
            await cache.publish("from here")
            assert await _take(there, 1) == ["from here"]
            assert await _take(here, 1) == ["from here"]
            await other.publish("from there")
            assert await _take(here, 1) == ["from there"]

    @requires("survives_restart")
    async def test_values_outlive_the_client_that_set_them(self, cache: CacheBackend) -> None:
        """What one client set and left is there for the next, and so is the generation."""
        assert await cache.get("key") is None
        async with self.another() as first:
            await first.set("key", b"1", ttl=LONG)
            bumped = await first.generation(bump=True)
        async with self.another() as second:
            assert await second.get("key") == b"1"
            assert await second.generation() == bumped


async def _take(messages: AsyncIterator[str], count: int) -> list[str]:
    return [await anext(messages) for _ in range(count)]
