"""Limiters that make one mistake each."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import anyio.lowlevel
import pytest

from tenancy_core._ratelimit import MemoryRateLimiter
from tenancy_core.contract import RateLimit, RateLimitDecision
from tenancy_core.testing.fakes import FakeClock
from tenancy_core.testing.mutants.mutant import mutant
from tenancy_core.testing.rate_limiter import RateLimiterSuite

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tenancy_core.contract import RateLimiter

__all__ = ["HONEST_LIMITERS", "LIMITER_MUTANTS"]


class HonestLimiter:
    """Counts with GCRA, in memory; several of them may count together."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        self.clock = clock
        # Not `or`: one that has counted nothing yet is as empty as None.
        self.counts = MemoryRateLimiter(clock) if counts is None else counts

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """See the contract."""
        return self.counts.hit_now(key, limit, cost=cost)


class LimiterCase(RateLimiterSuite):
    """The suite on a limiter in memory."""

    capabilities = frozenset({"exact", "shared"})
    product: ClassVar[type[Any]] = HonestLimiter

    @pytest.fixture
    def limiter(self) -> Any:  # noqa: ANN401 - an implementation that may be broken
        """Make the limiter."""
        self.clock = FakeClock()
        self.first = self.product(self.clock)
        return self.first

    def another(self) -> AbstractAsyncContextManager[RateLimiter]:
        """See the suite."""

        @asynccontextmanager
        async def opened() -> AsyncGenerator[RateLimiter, None]:
            yield self.product(self.clock, self.first.counts)

        return opened()


class CountsTwice(HonestLimiter):
    """Counts a hit twice where there is room for two."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Count, and count again."""
        decision = await super().hit(key, limit, cost=cost)
        if decision.remaining >= cost:
            await super().hit(key, limit, cost=cost)
        return decision


class CountsByTheWindow(HonestLimiter):
    """Counts in fixed windows, so that twice as many pass around a border."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._windows: dict[tuple[str, int], int] = {}

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Count in the window of now."""
        now = self.clock()
        number = int(now // limit.window)
        used = self._windows.get((key, number), 0)
        allowed = used + cost <= limit.count
        if allowed:
            used += cost
            self._windows[key, number] = used
        left = (number + 1) * limit.window - now
        return RateLimitDecision(allowed, limit, limit.count - used, 0.0 if allowed else left, left)


class AllowsABurstOnTop(HonestLimiter):
    """Refills at N per window and allows a burst on top of it: N + B in a window."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Refill too fast."""
        wide = RateLimit(limit.count + limit.burst, limit.window, limit.burst)
        return replace(await super().hit(key, wide, cost=cost), limit=limit)


class SavesUp(HonestLimiter):
    """Lets tokens pile up while nobody comes."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._tokens: dict[str, tuple[float, float]] = {}

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Add what has come since."""
        now = self.clock()
        tokens, since = self._tokens.get(key, (float(limit.burst), now))
        tokens += (now - since) / limit.interval
        allowed = tokens >= cost
        tokens -= cost if allowed else 0
        self._tokens[key] = (tokens, now)
        wait = 0.0 if allowed else (cost - tokens) * limit.interval
        reset = max(0.0, limit.burst - tokens) * limit.interval
        return RateLimitDecision(allowed, limit, int(tokens), wait, reset)


class ForgetsCost(HonestLimiter):
    """Counts every hit as one."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Count one."""
        return await super().hit(key, limit, cost=min(cost, 1))


class TakesWhatIsLeft(HonestLimiter):
    """Takes what is left of a cost that it refuses."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Take a part."""
        decision = await super().hit(key, limit, cost=cost)
        if not decision.allowed and decision.remaining:
            await super().hit(key, limit, cost=decision.remaining)
        return decision


class GivesBackForNegativeCosts(HonestLimiter):
    """Lets a hit with a negative cost make room."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Give back."""
        if cost < 1:
            self.counts = MemoryRateLimiter(self.clock)
            cost = 1
        return await super().hit(key, limit, cost=cost)


class CountsRefusedHits(HonestLimiter):
    """Counts hits that it refuses, so that knocking keeps the door shut."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._shut: dict[str, float] = {}

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Shut for longer."""
        now = self.clock()
        if now < self._shut.get(key, 0.0):
            self._shut[key] += limit.interval
            wait = self._shut[key] - now
            return RateLimitDecision(
                allowed=False, limit=limit, remaining=0, retry_after=wait, reset_after=wait
            )
        decision = await super().hit(key, limit, cost=cost)
        if not decision.allowed:
            self._shut[key] = now + decision.retry_after
        return decision


class HasOneKey(HonestLimiter):
    """Counts the keys of one hash tag together."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Cut the key."""
        return await super().hit(key.strip(":{}").partition("}")[0], limit, cost=cost)


class RacesItself(HonestLimiter):
    """Looks, waits, and counts what it saw."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Race."""
        free = self.counts.peek(key, limit) == 0
        await anyio.lowlevel.checkpoint()
        decision = await super().hit(key, limit, cost=cost)
        if free and not decision.allowed:
            return replace(decision, allowed=True, retry_after=0.0)
        return decision


class RemainsNegative(HonestLimiter):
    """Says that less than nothing remains."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Subtract once too often."""
        decision = await super().hit(key, limit, cost=cost)
        return replace(decision, remaining=decision.remaining - 1)


class AsksTooEarly(HonestLimiter):
    """Says half of the time that it takes."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Promise too much."""
        decision = await super().hit(key, limit, cost=cost)
        return replace(decision, retry_after=decision.retry_after / 2)


class AsksTooLate(HonestLimiter):
    """Says a whole window where less would do."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Promise too little."""
        decision = await super().hit(key, limit, cost=cost)
        return decision if decision.allowed else replace(decision, retry_after=limit.window)


class ResetsTooEarly(HonestLimiter):
    """Says that all is free when one hit is."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Promise too much."""
        decision = await super().hit(key, limit, cost=cost)
        return replace(decision, reset_after=min(decision.reset_after, limit.interval))


class ClingsToTheOldLimit(HonestLimiter):
    """Makes people wait as long as a limit that was lowered meanwhile."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._limits: dict[str, RateLimit] = {}

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Cling."""
        first = self._limits.setdefault(key, limit)
        return await super().hit(key, first, cost=cost)


class MixesDecisionsUp(HonestLimiter):
    """Has one connection, on which the answer of a cancelled hit waits for the next one."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._answers: list[RateLimitDecision] = []

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Send, wait, read what is there."""
        self._answers.append(await super().hit(key, limit, cost=cost))
        await anyio.lowlevel.checkpoint()
        return self._answers.pop(0)


class CountsAlone(HonestLimiter):
    """Counts what its own process sees."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock)
        del counts


class RefusesNewcomers(HonestLimiter):
    """Refuses whoever it has never seen."""

    def __init__(self, clock: Callable[[], float], counts: MemoryRateLimiter | None = None) -> None:
        super().__init__(clock, counts)
        self._seen: set[str] = set()

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Refuse once."""
        if key in self._seen:
            return await super().hit(key, limit, cost=cost)
        self._seen.add(key)
        wait = limit.interval
        return RateLimitDecision(
            allowed=False, limit=limit, remaining=0, retry_after=wait, reset_after=wait
        )


class GivesTooLittle(HonestLimiter):
    """Gives half of what the limit says."""

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """Halve."""
        half = RateLimit(limit.count, 2 * limit.window, limit.burst)
        return replace(await super().hit(key, half, cost=cost), limit=limit)


HONEST_LIMITERS: Final = (LimiterCase,)

_ANY_WINDOW: Final = "test_no_window_has_more_than_the_limit"
_REMAINING: Final = "test_remaining_is_what_is_accepted_now"

LIMITER_MUTANTS: Final = (
    mutant(LimiterCase, CountsTwice, _REMAINING),
    mutant(
        LimiterCase,
        CountsByTheWindow,
        "test_no_border_between_windows_lets_twice_as_many_through",
    ),
    mutant(LimiterCase, AllowsABurstOnTop, _ANY_WINDOW),
    mutant(LimiterCase, SavesUp, "test_being_idle_saves_nothing_up"),
    mutant(LimiterCase, ForgetsCost, "test_a_cost_is_taken_whole_or_not_at_all", _ANY_WINDOW),
    mutant(LimiterCase, TakesWhatIsLeft, "test_a_cost_is_taken_whole_or_not_at_all"),
    mutant(
        LimiterCase,
        GivesBackForNegativeCosts,
        "test_a_cost_that_makes_no_sense_gives_nothing_back",
    ),
    mutant(LimiterCase, CountsRefusedHits, "test_refused_hits_are_not_counted"),
    mutant(LimiterCase, HasOneKey, "test_keys_are_counted_apart"),
    mutant(LimiterCase, RacesItself, "test_T1_many_at_once_are_counted_one_by_one"),
    mutant(LimiterCase, RemainsNegative, "test_a_decision_says_what_was_decided", _REMAINING),
    mutant(LimiterCase, AsksTooEarly, "test_retry_after_is_honest"),
    mutant(LimiterCase, AsksTooLate, "test_before_retry_after_nothing_is_accepted"),
    mutant(LimiterCase, ResetsTooEarly, "test_after_reset_the_whole_burst_is_free"),
    mutant(
        LimiterCase,
        ClingsToTheOldLimit,
        "test_T10_a_lowered_limit_holds_and_asks_for_no_absurd_wait",
        "test_T10_a_raised_limit_gives_room",
    ),
    mutant(LimiterCase, MixesDecisionsUp, "test_a_cancelled_hit_gives_its_answer_to_nobody"),
    mutant(LimiterCase, CountsAlone, "test_T1_two_processes_count_together"),
    mutant(LimiterCase, RefusesNewcomers, "test_a_first_hit_is_accepted"),
    mutant(LimiterCase, GivesTooLittle, "test_the_limit_can_be_used"),
)
