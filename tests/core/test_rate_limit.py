"""GCRA: never more than N in any window of W, wherever it starts, and exact answers on the way."""

from __future__ import annotations

from fractions import Fraction
from math import ulp
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tenancy_core._ratelimit import MemoryRateLimiter, MissLimiter
from tenancy_core.contract import RateLimit
from tenancy_core.errors import RateLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import RateLimitDecision

TICK = 2.0**-10
"""A step of time that floats add up without rounding."""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@st.composite
def limits(draw: st.DrawFn) -> RateLimit:
    count = draw(st.integers(1, 60))
    window = draw(st.floats(0.01, 1e5) | st.sampled_from([1.0, 60.0, 3600.0]))
    return RateLimit(count, window, draw(st.integers(0, max(1, count - 1))))


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[RateLimit, float, list[tuple[float, int]]]:
    """A limit, when it begins, and hits: the time since the one before, and what it costs."""
    limit = draw(limits())
    gaps = (
        st.just(0.0)
        | st.floats(0, limit.interval * 2)
        | st.floats(0, limit.window * 1.5)
        | st.sampled_from([limit.interval, limit.window, limit.window / 2])
    )
    costs = st.integers(1, limit.burst) if draw(st.booleans()) else st.just(1)
    hits = draw(st.lists(st.tuples(gaps, costs), min_size=1, max_size=120))
    return limit, draw(st.floats(0, 1e7)), hits


def run(
    limit: RateLimit, start: float, hits: Iterable[tuple[float, int]]
) -> list[tuple[float, int]]:
    """Return when something was accepted, and what it cost."""
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    accepted: list[tuple[float, int]] = []
    for gap, cost in hits:
        clock.now += gap
        if limiter.hit_now("key", limit, cost=cost).allowed:
            accepted.append((clock.now, cost))
    return accepted


@given(arrivals())
def test_T1_never_more_than_n_are_accepted_in_any_half_open_window(
    drawn: tuple[RateLimit, float, list[tuple[float, int]]],
) -> None:
    limit, start, hits = drawn
    accepted = run(limit, start, hits)
    window = Fraction(limit.window)
    if limit.count == 1:
        # Only there is nothing between what is allowed and what the clock can tell apart.
        window -= 12 * Fraction(ulp(start + 2e5 * len(hits)))
    for first, (begin, _) in enumerate(accepted):
        # A window with the most in it can be moved to begin with an accepted hit.
        inside = [cost for at, cost in accepted[first:] if Fraction(at) - Fraction(begin) < window]
        assert sum(inside) <= limit.count


@given(limits(), st.floats(0, 1e7))
@example(RateLimit(100, 60.0), 0.0)
@example(RateLimit(1, 60.0), 0.0)
@example(RateLimit(2, 60.0, 1), 0.0)
def test_T1_a_client_that_never_stops_gets_its_burst_and_then_the_sustained_rate(
    limit: RateLimit, start: float
) -> None:
    assume(start * 1e-9 < limit.interval)
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    at_once = [limiter.hit_now("key", limit).allowed for _ in range(limit.burst + 3)]
    assert at_once == [True] * limit.burst + [False] * 3
    for number in range(1, 2 * limit.count + 1):
        clock.now = start + number * limit.interval * (1 + 1e-6)
        assert limiter.hit_now("key", limit).allowed
        assert not limiter.hit_now("key", limit).allowed


def exact(burst: int, interval_ticks: int, emissions: int) -> RateLimit:
    """A limit whose interval is a whole number of ticks, so that nothing is rounded."""
    return RateLimit(burst + emissions, interval_ticks * emissions * TICK, burst)


exact_limits = st.builds(
    exact, st.integers(1, 20), st.integers(1, 5000), st.sampled_from([1, 2, 4, 8, 16, 64])
)


@given(exact_limits, st.lists(st.integers(0, 3000), max_size=60), st.data())
def test_retry_after_is_exact_one_tick_earlier_is_refused_and_then_it_is_accepted(
    limit: RateLimit, gaps: list[int], data: st.DataObject
) -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    for gap in gaps:
        clock.now += gap * TICK
        limiter.hit_now("key", limit)
    cost = data.draw(st.integers(1, limit.burst))
    while (decision := limiter.hit_now("key", limit, cost=cost)).allowed:
        assert decision.retry_after == 0
    now = clock.now
    assert decision.retry_after > 0
    clock.now = now + decision.retry_after - TICK
    assert not limiter.hit_now("key", limit, cost=cost).allowed
    clock.now = now + decision.retry_after
    assert limiter.hit_now("key", limit, cost=cost).allowed


@given(arrivals())
def test_whoever_waits_as_long_as_told_is_accepted(
    drawn: tuple[RateLimit, float, list[tuple[float, int]]],
) -> None:
    limit, start, hits = drawn
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    for gap, cost in hits:
        clock.now += gap
        decision = limiter.hit_now("key", limit, cost=cost)
        if decision.allowed:
            continue
        longest = limit.burst * limit.interval
        assert 0 < decision.retry_after <= longest + (limit.burst + 10) * ulp(clock.now + longest)
        clock.now += decision.retry_after
        assert limiter.hit_now("key", limit, cost=cost).allowed


@given(exact_limits, st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 20)), max_size=60))
def test_the_numbers_of_a_decision_are_true(limit: RateLimit, hits: list[tuple[int, int]]) -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    for gap, cost in hits:
        clock.now += gap * TICK
        decision = limiter.hit_now("key", limit, cost=min(cost, limit.burst))
        assert decision.limit is limit
        assert 0 <= decision.remaining <= limit.burst
        assert 0 <= decision.reset_after <= limit.burst * limit.interval
        probe = copy(limiter, clock)
        for _ in range(decision.remaining):
            assert probe.hit_now("key", limit).allowed
        assert not probe.hit_now("key", limit).allowed
        # When it is over, the whole burst is there again, and not before.
        probe = copy(limiter, Clock(clock.now + decision.reset_after))
        assert probe.hit_now("key", limit, cost=limit.burst).allowed
        if decision.reset_after > 0:
            probe = copy(limiter, Clock(clock.now + decision.reset_after - TICK))
            assert not probe.hit_now("key", limit, cost=limit.burst).allowed


def copy(limiter: MemoryRateLimiter, clock: Clock) -> MemoryRateLimiter:
    made = MemoryRateLimiter(clock)
    made._arrivals = dict(limiter._arrivals)
    return made


@given(exact_limits, st.integers(1, 20))
def test_what_is_refused_costs_nothing(limit: RateLimit, hits: int) -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    limiter.hit_now("key", limit, cost=limit.burst)
    first = limiter.hit_now("key", limit)
    again: RateLimitDecision = first
    for _ in range(hits):
        again = limiter.hit_now("key", limit)
    assert again == first


def test_all_of_a_cost_is_taken_or_nothing() -> None:
    limiter = MemoryRateLimiter(Clock())
    limit = RateLimit(10, 64.0, 5)
    assert limiter.hit_now("key", limit, cost=3).remaining == 2
    refused = limiter.hit_now("key", limit, cost=3)
    assert (refused.allowed, refused.remaining) == (False, 2)
    assert limiter.hit_now("key", limit, cost=2).allowed


@pytest.mark.parametrize("cost", [0, -1, 6])
def test_a_cost_that_could_never_be_accepted_is_an_error(cost: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 5"):
        MemoryRateLimiter(Clock()).hit_now("key", RateLimit(10, 60.0, 5), cost=cost)


def test_each_key_is_counted_for_itself() -> None:
    limiter = MemoryRateLimiter(Clock())
    limit = RateLimit(10, 60.0, 1)
    for key in ("a", "b", "a:b", ""):
        assert limiter.hit_now(key, limit).allowed
        assert not limiter.hit_now(key, limit).allowed


def test_a_clock_that_is_set_back_locks_nobody_out_for_longer_than_the_limit_says() -> None:
    clock = Clock(1_000_000.0)
    limiter = MemoryRateLimiter(clock)
    limit = RateLimit(10, 60.0, 5)
    limiter.hit_now("key", limit, cost=5)
    clock.now = 0.0
    decision = limiter.hit_now("key", limit)
    assert decision.retry_after <= 5 * limit.interval
    clock.now += decision.retry_after
    assert limiter.hit_now("key", limit).allowed


# -- limits that change ----------------------------------------------------------------------------


@given(limits(), limits(), st.lists(st.floats(0, 100), max_size=30))
def test_T10_a_limit_that_changes_never_leads_to_a_negative_or_endless_wait(
    old: RateLimit, new: RateLimit, gaps: list[float]
) -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    for _ in range(old.burst):
        limiter.hit_now("key", old)
    for gap in gaps:
        clock.now += gap
        decision = limiter.hit_now("key", new)
        longest = new.burst * new.interval
        longest += (new.burst + 10) * ulp(clock.now + longest)
        assert 0 <= decision.retry_after <= longest
        assert 0 <= decision.reset_after <= longest
        assert 0 <= decision.remaining <= new.burst
        assert (decision.retry_after == 0) is decision.allowed


def test_T10_a_lowered_limit_holds_from_the_next_hit_on() -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    high, low = RateLimit(1000, 64.0, 500), RateLimit(3, 64.0, 1)
    for _ in range(500):
        assert limiter.hit_now("key", high).allowed
    decision = limiter.hit_now("key", low)
    assert not decision.allowed
    assert decision.retry_after == low.interval == 32.0
    accepted = 0
    for _ in range(64):
        clock.now += 1.0
        accepted += limiter.hit_now("key", low).allowed
    assert accepted == 2


# -- memory ----------------------------------------------------------------------------------------


def test_T6_keys_whose_burst_is_whole_again_are_forgotten() -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    limit = RateLimit(10, 60.0, 2)
    most = 0
    for number in range(50_000):
        clock.now += 0.1
        assert limiter.hit_now(f"key {number}", limit).allowed
        most = max(most, len(limiter))
    # 75 keys are at work at any moment.
    assert most <= 1025


def test_T6_nobody_is_let_off_by_a_flood_of_other_keys() -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    limit = RateLimit(10, 60.0, 2)
    for _ in range(2):
        limiter.hit_now("busy", limit)
    for number in range(10_000):
        limiter.hit_now(f"key {number}", limit)
        assert not limiter.hit_now("busy", limit).allowed
    assert len(limiter) == 10_001
    clock.now += 60.0
    for number in range(20_000):
        limiter.hit_now(f"new {number}", limit)
    assert "key 1" not in limiter._arrivals


# -- looking without counting ----------------------------------------------------------------------


@given(exact_limits, st.lists(st.integers(0, 3000), max_size=40))
def test_a_peek_says_what_a_hit_would_say_and_counts_nothing(
    limit: RateLimit, gaps: list[int]
) -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    assert limiter.peek("key", limit) == 0
    for gap in gaps:
        clock.now += gap * TICK
        before = dict(limiter._arrivals)
        wait = limiter.peek("key", limit)
        assert limiter._arrivals == before
        assert wait == limiter.hit_now("key", limit).retry_after


def test_misses_are_limited_by_address_and_only_misses_count() -> None:
    clock = Clock()
    misses = MissLimiter(RateLimit(10, 60.0, 3), clock=clock)
    for _ in range(100):
        misses.check("a")
    for _ in range(3):
        misses.check("a")
        misses.count("a")
    with pytest.raises(RateLimitExceeded) as refused:
        misses.check("a")
    misses.check("b")
    misses.check(None)
    misses.count(None)
    assert refused.value.retry_after is not None
    clock.now += refused.value.retry_after
    misses.check("a")


# -- the limit itself ------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(1e-3, 1e6))
def test_the_burst_is_a_fifth_by_default(count: int, window: float) -> None:
    limit = RateLimit(count, window)
    assert limit.burst == max(1, count // 5)
    assert limit.interval > 0


@pytest.mark.parametrize(
    ("count", "window", "burst"),
    [(0, 60.0, 1), (-1, 60.0, 1), (10, 0.0, 1), (10, -1.0, 1), (10, 60.0, 10), (10, 60.0, -1),
     (10, float("nan"), 1), (1, 60.0, 2)],
)  # fmt: skip
def test_a_limit_that_makes_no_sense_is_refused(count: int, window: float, burst: int) -> None:
    with pytest.raises(ValueError, match="A rate limit's"):
        RateLimit(count, window, burst)
