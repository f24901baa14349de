"""Caches that make one mistake each."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import anyio
import anyio.lowlevel
import pytest

from tenancy_core._cache.memory import MemoryCacheBackend
from tenancy_core.testing.cache import CacheBackendSuite
from tenancy_core.testing.fakes import FakeClock
from tenancy_core.testing.mutants.mutant import mutant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from tenancy_core.contract import CacheBackend

__all__ = ["CACHE_MUTANTS", "HONEST_CACHES"]


class CacheCase(CacheBackendSuite):
    """The suite on a cache in memory."""

    capabilities = frozenset({"bus"})
    product: ClassVar[type[Any]] = MemoryCacheBackend

    @pytest.fixture
    def cache(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the cache."""
        self.clock = FakeClock()
        return self.product(clock=self.clock)


class HonestClient:
    """One of several clients of a server, which is a cache in memory."""

    def __init__(self, server: MemoryCacheBackend) -> None:
        self.server = server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the server as it is."""

    async def get(self, key: str, /) -> bytes | None:
        """See the contract."""
        return await self.server.get(key)

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """See the contract."""
        await self.server.set(key, value, ttl=ttl)

    async def delete(self, key: str, /) -> None:
        """See the contract."""
        await self.server.delete(key)

    async def generation(self, *, bump: bool = False) -> int:
        """See the contract."""
        return await self.server.generation(bump=bump)

    async def publish(self, message: str, /) -> None:
        """See the contract."""
        await self.server.publish(message)

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """See the contract."""
        return self.server.subscribe()


class ClientCase(CacheBackendSuite):
    """The suite on a cache that several clients share."""

    capabilities = frozenset({"bus", "shared", "survives_restart"})
    product: ClassVar[type[Any]] = HonestClient

    @pytest.fixture
    def cache(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the server, and one client."""
        self.clock = FakeClock()
        self.server = MemoryCacheBackend(clock=self.clock)
        return self.product(self.server)

    def another(self) -> AbstractAsyncContextManager[CacheBackend]:
        """See the suite."""
        client: AbstractAsyncContextManager[CacheBackend] = self.product(self.server)
        return client


class KeepsForever(MemoryCacheBackend):
    """Takes no notice of the time to live."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Keep."""
        del ttl
        await super().set(key, value, ttl=math.inf)


class ForgetsAtOnce(MemoryCacheBackend):
    """Takes the time to live for milliseconds."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Keep too short."""
        del ttl
        await super().set(key, value, ttl=0)


class LengthensOnRead(MemoryCacheBackend):
    """Starts the time anew with each read."""

    async def get(self, key: str, /) -> bytes | None:
        """Touch."""
        value = await super().get(key)
        if value is not None:
            await self.set(key, value, ttl=0.6)
        return value


class KeepsTheFirstTime(MemoryCacheBackend):
    """Keeps the time of the first ``set`` when a value is replaced."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Keep the old end."""
        old = self._entries.get(key)
        await super().set(key, value, ttl=ttl)
        if old is not None:
            self._entries[key] = (old[0], value)


class KeepsTheFirstValue(MemoryCacheBackend):
    """Sets only what is not there."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Add."""
        if await self.get(key) is None:
            await super().set(key, value, ttl=ttl)


class TakesEmptyForAbsent(MemoryCacheBackend):
    """Says None to an empty value."""

    async def get(self, key: str, /) -> bytes | None:
        """Confuse."""
        return await super().get(key) or None


class TakesAbsentForEmpty(MemoryCacheBackend):
    """Says that an absent value is an empty one."""

    async def get(self, key: str, /) -> bytes | None:
        """Confuse."""
        return await super().get(key) or b""


class KeepsText(MemoryCacheBackend):
    """Decodes values, so that bytes that are no text are changed."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Decode."""
        await super().set(key, value.decode("utf-8", "replace").encode(), ttl=ttl)


class CutsHugeValues(MemoryCacheBackend):
    """Keeps the first 64 kB of a value."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Cut."""
        await super().set(key, value[: 1 << 16], ttl=ttl)


class RepairsKeys(MemoryCacheBackend):
    """Strips and lowers its keys, so that two of them meet."""

    async def get(self, key: str, /) -> bytes | None:
        """Repair."""
        return await super().get(key.strip().lower())

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Repair."""
        await super().set(key.strip().lower(), value, ttl=ttl)


class CutsLongKeys(MemoryCacheBackend):
    """Cuts its keys at 250 bytes, as memcached allows no more."""

    async def get(self, key: str, /) -> bytes | None:
        """Cut."""
        return await super().get(key[:250])

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Cut."""
        await super().set(key[:250], value, ttl=ttl)


class DeletesByPattern(MemoryCacheBackend):
    """Takes the key that is deleted for a pattern, and deletes its neighbours."""

    async def delete(self, key: str, /) -> None:
        """Delete too much."""
        for found in [one for one in self._entries if fnmatchcase(one, key)]:
            await super().delete(found)


class DeletesByPrefix(MemoryCacheBackend):
    """Deletes everything that begins with the key."""

    async def delete(self, key: str, /) -> None:
        """Delete too much."""
        for found in [one for one in self._entries if one.startswith(key)]:
            await super().delete(found)


class DeletesNothing(MemoryCacheBackend):
    """Keeps what is deleted."""

    async def delete(self, key: str, /) -> None:
        """Keep."""


class ComplainsOfAbsence(MemoryCacheBackend):
    """Raises when what is deleted is not there."""

    async def delete(self, key: str, /) -> None:
        """Raise."""
        del self._entries[key]


class ForgetsGenerations(MemoryCacheBackend):
    """Does not keep a generation that was bumped."""

    async def generation(self, *, bump: bool = False) -> int:
        """Bump for one call."""
        return await super().generation() + bump


class BumpsOnRead(MemoryCacheBackend):
    """Makes a new generation whenever it is asked for one."""

    async def generation(self, *, bump: bool = False) -> int:
        """Bump."""
        del bump
        return await super().generation(bump=True)


class RacesForGenerations(MemoryCacheBackend):
    """Reads the generation, waits, and writes: two bumps at once are one."""

    async def generation(self, *, bump: bool = False) -> int:
        """Race."""
        read = await super().generation()
        await anyio.lowlevel.checkpoint()
        if bump:
            self._generation = read + 1
        return read + bump


class KeepsGenerationsAmongTheKeys(MemoryCacheBackend):
    """Keeps the generation under a key that somebody else may use."""

    async def generation(self, *, bump: bool = False) -> int:
        """Keep it there."""
        now = int(await self.get("generation") or b"0") + bump
        await self.set("generation", str(now).encode(), ttl=math.inf)
        return now


class MixesAnswersUp(MemoryCacheBackend):
    """Has one connection, on which the answer of a cancelled command waits for the next one."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._answers: list[bytes | None] = []
        self._line = anyio.Lock()

    async def get(self, key: str, /) -> bytes | None:
        """Send, wait, read what is there."""
        async with self._line:
            self._answers.append(await super().get(key))
            await anyio.lowlevel.checkpoint()
            return self._answers.pop(0)


class WritesInHalves(MemoryCacheBackend):
    """Writes a value in two parts, and may be cancelled between them."""

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Write twice."""
        await super().set(key, value[: len(value) // 2], ttl=ttl)
        await anyio.lowlevel.checkpoint()
        await super().set(key, value, ttl=ttl)


class SharesOneBuffer(MemoryCacheBackend):
    """Keeps what a command is about on itself while it waits."""

    _key = ""

    async def get(self, key: str, /) -> bytes | None:
        """Wait in between."""
        self._key = key
        await anyio.lowlevel.checkpoint()
        return await super().get(self._key)


class TellsOneOfThem(MemoryCacheBackend):
    """Gives a message to one subscriber, as a queue does."""

    async def publish(self, message: str, /) -> None:
        """Tell one."""
        for subscriber in tuple(self._subscribers)[:1]:
            subscriber.send_nowait(message)


class TellsNobody(MemoryCacheBackend):
    """Drops what is published."""

    async def publish(self, message: str, /) -> None:
        """Drop."""

    subscribe = MemoryCacheBackend.subscribe


class RepeatsThePast(MemoryCacheBackend):
    """Tells a new subscriber what was published before."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self._past: list[str] = []

    async def publish(self, message: str, /) -> None:
        """Remember."""
        self._past.append(message)
        await super().publish(message)

    def subscribe(self) -> Any:  # noqa: ANN401 - wrong on purpose
        """Repeat."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[AsyncIterator[str], None]:
            async with MemoryCacheBackend.subscribe(self) as messages:

                async def all_of_them() -> AsyncIterator[str]:
                    for message in tuple(self._past):
                        yield message
                    async for message in messages:
                        yield message

                yield all_of_them()

        return opened()


class WaitsForSlowSubscribers(MemoryCacheBackend):
    """Publishes no faster than the slowest subscriber reads."""

    async def publish(self, message: str, /) -> None:
        """Wait."""
        for subscriber in tuple(self._subscribers):
            while subscriber.statistics().current_buffer_used > 100:  # noqa: ASYNC110 - a mistake
                await anyio.sleep(0.01)
            subscriber.send_nowait(message)


class LosesUnderLoad(MemoryCacheBackend):
    """Drops messages where a subscriber has a hundred to read."""

    async def publish(self, message: str, /) -> None:
        """Drop."""
        for subscriber in tuple(self._subscribers):
            if subscriber.statistics().current_buffer_used < 100:
                subscriber.send_nowait(message)


class ComplainsOfTheGone(MemoryCacheBackend):
    """Keeps subscribers that left, and fails when it tells them."""

    def subscribe(self) -> Any:  # noqa: ANN401 - wrong on purpose
        """Never take off the list."""
        listed = self._subscribers

        class Kept:
            def __init__(self) -> None:
                streams = anyio.create_memory_object_stream[str](math.inf)
                self._send, self._receive = streams

            async def __aenter__(self) -> AsyncIterator[str]:
                listed.add(self._send)
                return self._receive

            async def __aexit__(self, *_: object) -> None:
                self._receive.close()
                self._send.close()

        return Kept()


class CountsItsOwnGenerations(HonestClient):
    """Keeps the generation in its own process."""

    def __init__(self, server: MemoryCacheBackend) -> None:
        super().__init__(server)
        self._own = 0

    async def generation(self, *, bump: bool = False) -> int:
        """Count."""
        self._own += bump
        return self._own


class KeepsToItself:
    """Of a client that publishes on a bus of its own."""

    def __init__(self, *server: Any) -> None:
        super().__init__(*server)
        self._own = MemoryCacheBackend()

    async def publish(self, message: str, /) -> None:
        """Tell those who are here."""
        await self._own.publish(message)

    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Listen to those who are here."""
        return self._own.subscribe()


class TellsItsOwnProcess(KeepsToItself, HonestClient):
    """Has a bus that ends at its own process."""


class TakesItsValuesAlong(HonestClient):
    """Empties the cache when it is closed."""

    async def close(self) -> None:
        """Empty."""
        self.server._entries.clear()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a fault


HONEST_CACHES: Final = (CacheCase, ClientCase)

_KEYS: Final = "test_I10_every_key_is_its_own"
_DELETE: Final = "test_I10_deleting_takes_one_key_and_no_other"
_BACK: Final = "test_a_value_comes_back_as_it_was_set"
_GENERATION: Final = "test_the_generation_moves_only_when_it_is_bumped"

CACHE_MUTANTS: Final = (
    mutant(CacheCase, KeepsForever, "test_a_value_is_forgotten_after_its_time"),
    mutant(CacheCase, ForgetsAtOnce, "test_a_value_is_kept_for_its_time"),
    mutant(CacheCase, LengthensOnRead, "test_reading_does_not_lengthen_the_time"),
    mutant(CacheCase, KeepsTheFirstTime, "test_setting_again_starts_the_time_anew"),
    mutant(CacheCase, KeepsTheFirstValue, "test_the_last_value_counts"),
    mutant(CacheCase, TakesEmptyForAbsent, _BACK),
    mutant(CacheCase, TakesAbsentForEmpty, "test_what_was_never_set_is_none"),
    mutant(CacheCase, KeepsText, _BACK),
    mutant(CacheCase, CutsHugeValues, "test_a_huge_value_comes_back_whole"),
    mutant(CacheCase, RepairsKeys, _KEYS),
    mutant(CacheCase, CutsLongKeys, _KEYS),
    mutant(CacheCase, DeletesByPattern, _DELETE),
    mutant(CacheCase, DeletesByPrefix, _DELETE),
    mutant(CacheCase, DeletesNothing, "test_deleting_what_is_not_there_is_no_error", _DELETE),
    mutant(CacheCase, ComplainsOfAbsence, "test_deleting_what_is_not_there_is_no_error"),
    mutant(CacheCase, ForgetsGenerations, _GENERATION),
    mutant(CacheCase, BumpsOnRead, _GENERATION),
    mutant(CacheCase, RacesForGenerations, "test_generations_never_come_again"),
    mutant(CacheCase, KeepsGenerationsAmongTheKeys, "test_the_generation_is_no_key"),
    mutant(CacheCase, MixesAnswersUp, "test_K6_a_cancelled_command_gives_its_answer_to_nobody"),
    mutant(CacheCase, WritesInHalves, "test_K6_a_cancelled_write_is_done_or_not_done"),
    mutant(CacheCase, SharesOneBuffer, "test_concurrent_commands_get_their_own_answers"),
    mutant(CacheCase, TellsOneOfThem, "test_every_subscriber_gets_every_message", timeout=2.0),
    mutant(
        CacheCase,
        TellsNobody,
        "test_a_subscriber_gets_what_is_published_from_then_on",
        "test_publishing_to_nobody_is_no_error",
        timeout=0.5,
    ),
    mutant(CacheCase, RepeatsThePast, "test_a_subscriber_gets_what_is_published_from_then_on"),
    mutant(
        CacheCase, WaitsForSlowSubscribers, "test_a_slow_subscriber_holds_up_nobody", timeout=2.0
    ),
    mutant(CacheCase, LosesUnderLoad, "test_a_slow_subscriber_holds_up_nobody", timeout=2.0),
    mutant(
        CacheCase,
        ComplainsOfTheGone,
        "test_who_leaves_is_told_nothing_more_and_holds_up_nobody",
        "test_a_subscriber_that_was_cancelled_is_gone",
    ),
    mutant(ClientCase, CountsItsOwnGenerations, "test_another_client_reads_what_this_one_set"),
    mutant(
        ClientCase,
        TellsItsOwnProcess,
        "test_another_client_hears_what_this_one_publishes",
        timeout=0.5,
    ),
    mutant(ClientCase, TakesItsValuesAlong, "test_values_outlive_the_client_that_set_them"),
)
