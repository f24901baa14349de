"""What every limiter does: never more than N in any window, and answers that are true."""

from __future__ import annotations

import random
from functools import partial
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, ClassVar, Final

import anyio.lowlevel
import pytest

from tenancy_core.contract import RateLimit, RateLimitDecision
from tenancy_core.testing.suite import Suite, cancel_after, requires, run_together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from tenancy_core.contract import RateLimiter

__all__ = ["RateLimiterSuite"]

KEYS: Final = (
    "acme",
    "acme:",
    ":acme",
    "a:b",
    "a",
    "b",
    "{a}",
    "{a}b",
    "a{b}",
    "*",
    "a*",
    "a b",
    "A",
    "",
)


ROUNDING: Final = 0.001
"""Seconds by which a wait may miss its exact value: clocks of servers count whole milliseconds."""


class RateLimiterSuite(Suite, published=True):
    """Conformance of a :class:`~tenancy_core.contract.RateLimiter`.

    A subclass gives the fixture ``limiter``: open, and without any hits. Where the limiter can be
    given a clock, the fixture sets ``self.clock``; windows are then minutes and cost nothing.
    Else they are short, and the tests wait.
    """

    known_capabilities: ClassVar[Mapping[str, str]] = {
        "exact": "`remaining` and `retry_after` are no estimates: so many hits are accepted now, "
        "and none before that time",
        "shared": "several processes count together; give `another` as well",
    }

    @pytest.fixture
    def limiter(self) -> RateLimiter:
        """Give the limiter that is tested."""
        raise NotImplementedError(f"{type(self).__name__} has to give the fixture `limiter`.")

    def another(self) -> AbstractAsyncContextManager[RateLimiter]:
        """Open a second client of the same limiter, as another process has it."""
        raise NotImplementedError(
            f"{type(self).__name__} declares `shared` and has to define `another`."
        )

    @property
    def window(self) -> float:
        """Seconds of a window in these tests."""
        return 0.6 if self.clock is None else 60.0

    # -- never more than the limit -----------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(6))
    async def test_no_window_has_more_than_the_limit(self, limiter: RateLimiter, seed: int) -> None:
        """Never more than N are accepted in any half-open window, whatever comes, and when."""
        chance = random.Random(seed)  # noqa: S311 - to be repeatable
        count = chance.choice((1, 2, 5, 10, 30))
        limit = RateLimit(count, self.window, chance.randint(1, max(1, count - 1)))
        hits = _Hits(self._now)
        for _ in range(12 if self.clock is None else 300):
            for _ in range(chance.choice((0, 1, 1, 3, 2 * count))):
                cost = chance.randint(1, limit.burst)
                await hits.add(limiter, "acme", limit, cost)
            await self.advance(chance.choice((0.0, 0.03, 0.1, 0.4)) * self.window)
        hits.check(limit)

    async def test_no_border_between_windows_lets_twice_as_many_through(
        self, limiter: RateLimiter
    ) -> None:
        """There is no moment around which a second limit's worth of hits is accepted."""
        limit = RateLimit(10, self.window)
        for phase in range(10):
            key = f"phase-{phase}"
            hits = _Hits(self._now)
            for pause in (0.2, 0.2, 0.0):
                for _ in range(limit.count + 1):
                    await hits.add(limiter, key, limit)
                await self.advance(pause * limit.window)
            hits.check(limit)
            await self.advance(0.7 * limit.window)

    async def test_T1_many_at_once_are_counted_one_by_one(self, limiter: RateLimiter) -> None:
        """Of 200 hits at the same time no more are accepted than of 200 one after the other."""
        limit = RateLimit(50, 3600.0, 20)
        found = await run_together([partial(limiter.hit, "acme", limit)] * 200)
        accepted = sum(decision.allowed for decision in found)
        assert 1 <= accepted <= limit.count
        if "exact" in self.capabilities:
            assert accepted == limit.burst

    async def test_being_idle_saves_nothing_up(self, limiter: RateLimiter) -> None:
        """After a long silence a burst is accepted, and not more."""
        limit = RateLimit(10, self.window, 4)
        for _ in range(3):
            hits = _Hits(self._now)
            for _ in range(3 * limit.count):
                await hits.add(limiter, "acme", limit)
            hits.check(limit)
            await self.advance((1.5 if self.clock is None else 1000) * limit.window)

    # -- what is accepted --------------------------------------------------------------------------

    async def test_a_first_hit_is_accepted(self, limiter: RateLimiter) -> None:
        """Whoever was never seen has room, also under a limit of one."""
        for count in (1, 2, 100):
            decision = await limiter.hit(f"first-{count}", RateLimit(count, self.window))
            assert decision.allowed

    async def test_the_limit_can_be_used(self, limiter: RateLimiter) -> None:
        """Who comes as soon as ``retry_after`` says gets N - 1 at the least in a window."""
        limit = RateLimit(6, self.window, 3)
        began = self._now()
        accepted = 0
        while self._now() - began < limit.window * (1 - 1e-6):
            decision = await limiter.hit("acme", limit)
            accepted += decision.allowed
            if not decision.allowed:
                await self.advance(decision.retry_after)
        # A machine that is busy comes late, on a clock that is not ours.
        assert accepted >= (limit.count - 1 if self.clock is not None else limit.burst)

    async def test_keys_are_counted_apart(self, limiter: RateLimiter) -> None:
        """What one key used up is missing under no other, whatever characters they have."""
        limit = RateLimit(1, 3600.0)
        for key in KEYS:
            assert (await limiter.hit(key, limit)).allowed, f"the key {key!r}"
        for key in KEYS:
            assert not (await limiter.hit(key, limit)).allowed, f"the key {key!r}"

    async def test_a_cost_is_taken_whole_or_not_at_all(self, limiter: RateLimiter) -> None:
        """A hit that costs more than what is left is refused, and what is left stays."""
        limit = RateLimit(100, 3600.0, 5)
        assert (await limiter.hit("acme", limit, cost=3)).allowed
        assert not (await limiter.hit("acme", limit, cost=3)).allowed
        assert (await limiter.hit("acme", limit, cost=2)).allowed
        assert not (await limiter.hit("acme", limit)).allowed

    async def test_a_cost_that_makes_no_sense_gives_nothing_back(
        self, limiter: RateLimiter
    ) -> None:
        """Costs of 0 or less, or above the burst, are a ValueError; they never make room."""
        limit = RateLimit(100, 3600.0, 5)
        assert (await limiter.hit("acme", limit, cost=5)).allowed
        for cost in (0, -1, -100, 6, 101):
            with pytest.raises(ValueError):  # noqa: PT011 - the words are the limiter's own
                await limiter.hit("acme", limit, cost=cost)
            assert not (await limiter.hit("acme", limit)).allowed

    # -- what it says ------------------------------------------------------------------------------

    async def test_a_decision_says_what_was_decided(self, limiter: RateLimiter) -> None:
        """A decision names its limit; its numbers are finite, and never negative."""
        limit = RateLimit(10, self.window, 4)
        for _ in range(limit.count):
            _plausible(await limiter.hit("acme", limit), limit)

    async def test_refused_hits_are_not_counted(self, limiter: RateLimiter) -> None:
        """Knocking while the door is shut does not keep it shut for longer."""
        limit = RateLimit(5, self.window, 2)
        refused = await _exhaust(limiter, "acme", limit)
        began = self._now()
        for _ in range(200):
            await limiter.hit("acme", limit)
        await self.advance(max(0.0, refused.retry_after - (self._now() - began)))
        if self.clock is None:
            # Knocking takes time there, in which a hit may have been accepted.
            await self.advance(2 * limit.interval)
        assert (await limiter.hit("acme", limit)).allowed

    @pytest.mark.parametrize("cost", [1, 2, 4])
    async def test_retry_after_is_honest(self, limiter: RateLimiter, cost: int) -> None:
        """After ``retry_after`` seconds a hit of the same cost is accepted."""
        limit = RateLimit(10, self.window, 4)
        await _exhaust(limiter, "acme", limit)
        for _ in range(3):
            refused = await limiter.hit("acme", limit, cost=cost)
            if refused.allowed:
                continue
            await self.advance(refused.retry_after)
            assert (await limiter.hit("acme", limit, cost=cost)).allowed

    @requires("exact")
    async def test_before_retry_after_nothing_is_accepted(self, limiter: RateLimiter) -> None:
        """A hit that comes earlier than ``retry_after`` said is refused."""
        limit = RateLimit(10, 60.0, 4)
        refused = await _exhaust(limiter, "acme", limit)
        assert refused.retry_after > limit.interval / 2
        if self.clock is not None:
            await self.advance(refused.retry_after * 0.9)
        assert not (await limiter.hit("acme", limit)).allowed

    @requires("exact")
    async def test_remaining_is_what_is_accepted_now(self, limiter: RateLimiter) -> None:
        """So many hits as ``remaining`` says are accepted at once, and the next is refused."""
        limit = RateLimit(100, 3600.0, 20)
        for used in (1, 7, 12):
            decision = await limiter.hit(f"used-{used}", limit, cost=used)
            assert decision.remaining == limit.burst - used
            for _ in range(decision.remaining):
                assert (await limiter.hit(f"used-{used}", limit)).allowed
            refused = await limiter.hit(f"used-{used}", limit)
            assert (refused.allowed, refused.remaining) == (False, 0)

    async def test_after_reset_the_whole_burst_is_free(self, limiter: RateLimiter) -> None:
        """After ``reset_after`` seconds a whole burst is accepted at once."""
        limit = RateLimit(10, self.window, 4)
        refused = await _exhaust(limiter, "acme", limit)
        await self.advance(refused.reset_after)
        assert (await limiter.hit("acme", limit, cost=limit.burst)).allowed

    # -- what changes meanwhile --------------------------------------------------------------------

    async def test_T10_a_lowered_limit_holds_and_asks_for_no_absurd_wait(
        self, limiter: RateLimiter
    ) -> None:
        """When a limit is lowered nobody waits longer than its window; no number is negative."""
        high, low = RateLimit(1000, 10 * self.window, 999), RateLimit(2, self.window)
        for _ in range(50):
            await limiter.hit("acme", high, cost=15)
        decision = await limiter.hit("acme", low)
        _plausible(decision, low)
        assert decision.retry_after <= low.window + ROUNDING
        assert decision.reset_after <= low.window + ROUNDING
        await self.advance(decision.retry_after)
        assert decision.allowed or (await limiter.hit("acme", low)).allowed

    async def test_T10_a_raised_limit_gives_room(self, limiter: RateLimiter) -> None:
        """When a limit is raised its numbers count, after its own interval at the latest."""
        low, high = RateLimit(1, self.window), RateLimit(100, self.window, 50)
        await _exhaust(limiter, "acme", low)
        decision = await limiter.hit("acme", high)
        _plausible(decision, high)
        await self.advance(decision.retry_after)
        assert decision.allowed or (await limiter.hit("acme", high)).allowed

    # -- many clients ------------------------------------------------------------------------------

    async def test_a_cancelled_hit_gives_its_answer_to_nobody(self, limiter: RateLimiter) -> None:
        """After a hit that was cancelled at any moment, other keys get their own answers."""
        one, other = RateLimit(1, 3600.0), RateLimit(50, 3600.0, 49)
        await limiter.hit("used-up", one)
        for steps in range(25):
            await cancel_after(steps, partial(limiter.hit, "used-up", one))
            decision = await limiter.hit("free", other)
            assert (decision.allowed, decision.limit) == (True, other)
            assert not (await limiter.hit("used-up", one)).allowed

    @requires("shared")
    async def test_T1_two_processes_count_together(self, limiter: RateLimiter) -> None:
        """What one client counted, another client counts as well."""
        limit = RateLimit(50, 3600.0, 20)
        async with self.another() as other:
            hits: Sequence[Callable[[], Awaitable[RateLimitDecision]]] = [
                partial(each.hit, "acme", limit) for each in (limiter, other) for _ in range(60)
            ]
            accepted = sum(decision.allowed for decision in await run_together(hits))
            assert 1 <= accepted <= limit.count
            if "exact" in self.capabilities:
                assert accepted == limit.burst
            for each in (limiter, other):
                assert not (await each.hit("acme", limit, cost=limit.burst)).allowed

    # -- helpers -----------------------------------------------------------------------------------

    def _now(self) -> float:
        return monotonic() if self.clock is None else self.clock()


class _Hits:
    """What was accepted, each between two readings of the clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._accepted: list[tuple[float, float, int]] = []

    async def add(self, limiter: RateLimiter, key: str, limit: RateLimit, cost: int = 1) -> None:
        began = self._now()
        decision = await limiter.hit(key, limit, cost=cost)
        if decision.allowed:
            self._accepted.append((began, self._now(), cost))

    def check(self, limit: RateLimit) -> None:
        assert self._accepted, "Nothing at all was accepted."
        for began, _, _ in self._accepted:
            # What surely lies in the window that opens with this hit, wherever exactly it was.
            inside = [
                cost
                for start, end, cost in self._accepted
                if start >= began and end < began + limit.window
            ]
            assert sum(inside) <= limit.count, f"{sum(inside)} in a window of {limit}"


async def _exhaust(limiter: RateLimiter, key: str, limit: RateLimit) -> RateLimitDecision:
    """Hit until refused; return the refusal."""
    for _ in range(2 * limit.count + 1):
        decision = await limiter.hit(key, limit)
        if not decision.allowed:
            return decision
        await anyio.lowlevel.checkpoint()
    raise AssertionError(f"{2 * limit.count + 1} hits at once were all accepted under {limit}.")


def _plausible(decision: RateLimitDecision, limit: RateLimit) -> None:
    assert type(decision.allowed) is bool
    assert decision.limit == limit
    assert type(decision.remaining) is int
    assert 0 <= decision.remaining <= limit.count
    assert isfinite(decision.retry_after)
    assert isfinite(decision.reset_after)
    assert decision.reset_after >= 0
    if decision.allowed:
        assert decision.retry_after == 0
    else:
        assert 0 < decision.retry_after <= limit.window + ROUNDING
