"""The limiter: never more than it says in any window, and its answers are true to the moment."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tenancy_core._ratelimit import MemoryRateLimiter
from tenancy_core._ratelimit.memory import _SWEEP_EVERY
from tenancy_core.contract import RateLimit, RateLimitDecision


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@st.composite
def limits(draw: st.DrawFn) -> RateLimit:
    count = draw(st.integers(1, 200))
    burst = draw(st.integers(0, max(1, count - 1)))
    return RateLimit(count, draw(st.floats(0.5, 3600)), burst)


# A machine's monotonic clock counts from its start: what it adds to is small or large.
starts = st.one_of(st.just(0.0), st.floats(0, 1e6))
# In parts of the window, as what happens at its ends and at each interval matters most.
gaps = st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 1.5))


def exhaust(limiter: MemoryRateLimiter, limit: RateLimit, key: str = "acme") -> RateLimitDecision:
    """Hit until refused."""
    for _ in range(limit.burst + 1):
        decision = limiter.hit_now(key, limit)
        if not decision.allowed:
            return decision
    pytest.fail(f"More than a burst of {limit.burst} was accepted at once.")


# -- what a limit is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "burst"), [(1, 1), (2, 1), (4, 1), (5, 1), (9, 1), (10, 2), (100, 20)]
)
def test_a_burst_is_a_fifth_of_the_count_and_at_least_one(count: int, burst: int) -> None:
    assert RateLimit(count).burst == burst


@pytest.mark.parametrize(("count", "burst"), [(1, 1), (2, 1), (10, 1), (10, 9)])
def test_a_burst_may_be_from_one_to_one_less_than_the_count(count: int, burst: int) -> None:
    assert RateLimit(count, burst=burst).burst == burst


@pytest.mark.parametrize(("count", "burst"), [(1, 2), (2, 2), (10, 10), (10, 11), (10, -1)])
def test_no_other_burst_may_be(count: int, burst: int) -> None:
    with pytest.raises(ValueError, match="burst is from 1 to count - 1"):
        RateLimit(count, burst=burst)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_is_at_least_one(count: int) -> None:
    with pytest.raises(ValueError, match="count is at least 1"):
        RateLimit(count)


@pytest.mark.parametrize("window", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_window_is_above_zero_and_ends(window: float) -> None:
    with pytest.raises(ValueError, match="window is above 0"):
        RateLimit(10, window)


@pytest.mark.parametrize(
    ("limit", "interval"),
    [(RateLimit(1, 60), 60), (RateLimit(2, 60), 60), (RateLimit(10, 60, 4), 10)],
)
def test_the_interval_is_the_window_over_what_the_burst_leaves(
    limit: RateLimit, interval: float
) -> None:
    assert limit.interval == interval


# -- never more than the limit -------------------------------------------------------------------


@given(limits(), starts, st.lists(st.tuples(gaps, st.integers(1, 200)), max_size=300))
def test_no_window_wherever_it_starts_has_more_than_the_limit(
    limit: RateLimit, start: float, arrivals: list[tuple[float, int]]
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    accepted: list[tuple[Fraction, int]] = []
    for gap, wish in arrivals:
        clock.now += gap * limit.window
        cost = 1 + wish % limit.burst
        if limiter.hit_now("acme", limit, cost=cost).allowed:
            accepted.append((Fraction(clock.now), cost))
    # The fullest window starts with an accepted hit.
    for first, _ in accepted:
        end = first + Fraction(limit.window)
        assert sum(cost for at, cost in accepted if first <= at < end) <= limit.count


@given(limits(), starts)
@example(RateLimit(600, 60, 300), 1_000_000.1)
@example(RateLimit(1), 0.0)
def test_the_greediest_client_gets_the_limit_and_not_more(limit: RateLimit, start: float) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    accepted = 0
    # Everything at once, and then each hit at the moment it is accepted again.
    for _ in range(2 * limit.count + 2):
        if clock.now - start >= limit.window * (1 - 1e-6):
            break
        decision = limiter.hit_now("acme", limit)
        accepted += decision.allowed
        clock.now += decision.retry_after
    assert max(1, limit.count - 1) <= accepted <= limit.count


@given(limits(), starts)
@example(RateLimit(600, 60, 300), 1_000_000.1)
@example(RateLimit(10_000, 60), 1_000_000.1)
def test_a_whole_burst_may_come_at_once_however_long_the_machine_is_up(
    limit: RateLimit, start: float
) -> None:
    limiter = MemoryRateLimiter(Clock(start))
    decisions = [limiter.hit_now("acme", limit) for _ in range(limit.burst + 1)]
    assert [decision.allowed for decision in decisions] == [True] * limit.burst + [False]
    assert [decision.remaining for decision in decisions] == [*range(limit.burst)[::-1], 0]


def test_keys_are_counted_apart() -> None:
    limiter, limit = MemoryRateLimiter(Clock()), RateLimit(10)
    exhaust(limiter, limit, "acme")
    assert limiter.hit_now("beta", limit).remaining == limit.burst - 1


# -- the answers are true ------------------------------------------------------------------------


@given(limits(), starts, st.lists(gaps, max_size=20), st.integers(0, 200))
@example(RateLimit(10, 60.0, 4), 0.0, [], 1)
def test_a_hit_is_refused_just_before_retry_after_and_accepted_at_it(
    limit: RateLimit, start: float, arrivals: list[float], wish: int
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    cost = 1 + wish % limit.burst
    for gap in arrivals:
        clock.now += gap * limit.window
        limiter.hit_now("acme", limit)
    exhaust(limiter, limit)
    now, refused = clock.now, limiter.hit_now("acme", limit, cost=cost)
    assert not refused.allowed
    assert 0 < refused.retry_after <= cost * limit.interval * (1 + 1e-6)
    instant = limit.interval / 100
    assume(refused.retry_after > instant)
    clock.now = now + refused.retry_after - instant
    assert not limiter.hit_now("acme", limit, cost=cost).allowed
    clock.now = now + refused.retry_after
    accepted = limiter.hit_now("acme", limit, cost=cost)
    assert accepted.allowed
    assert accepted.retry_after == 0


@given(limits(), starts, st.lists(st.tuples(gaps, st.integers(0, 200)), max_size=20))
def test_remaining_is_what_would_be_accepted_right_now(
    limit: RateLimit, start: float, arrivals: list[tuple[float, int]]
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    decision = limiter.hit_now("acme", limit)
    for gap, wish in arrivals:
        clock.now += gap * limit.window
        decision = limiter.hit_now("acme", limit, cost=1 + wish % limit.burst)
    assert decision.limit is limit
    assert [limiter.hit_now("acme", limit).allowed for _ in range(decision.remaining + 1)] == [
        *[True] * decision.remaining,
        False,
    ]


@given(limits(), starts, st.integers(1, 200))
def test_the_whole_burst_is_free_at_reset_after_and_not_just_before(
    limit: RateLimit, start: float, hits: int
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    decision = limiter.hit_now("acme", limit)
    for _ in range(hits - 1):
        decision = limiter.hit_now("acme", limit)
    assert decision.reset_after == pytest.approx(min(hits, limit.burst) * limit.interval, rel=1e-6)
    clock.now = start + decision.reset_after - limit.interval / 100
    assert not limiter.hit_now("acme", limit, cost=limit.burst).allowed
    clock.now = start + decision.reset_after
    assert limiter.hit_now("acme", limit, cost=limit.burst).allowed


def test_a_refused_hit_costs_nothing() -> None:
    clock = Clock()
    limiter, limit = MemoryRateLimiter(clock), RateLimit(10, 60.0, 4)
    first = exhaust(limiter, limit)
    for _ in range(100):
        assert limiter.hit_now("acme", limit) == first
    clock.now += first.retry_after
    assert limiter.hit_now("acme", limit).allowed


def test_a_hit_of_several_is_counted_whole_or_not_at_all() -> None:
    limiter, limit = MemoryRateLimiter(Clock()), RateLimit(10, 60.0, 4)
    accepted = limiter.hit_now("acme", limit, cost=3)
    assert (accepted.allowed, accepted.remaining, accepted.reset_after) == (True, 1, 30)
    refused = limiter.hit_now("acme", limit, cost=2)
    assert (refused.allowed, refused.remaining, refused.retry_after) == (False, 1, 10)
    assert refused.reset_after == 30
    assert limiter.hit_now("acme", limit).remaining == 0


@pytest.mark.parametrize("cost", [0, -1, 5])
def test_a_cost_that_could_never_be_accepted_is_an_error(cost: int) -> None:
    limiter = MemoryRateLimiter(Clock())
    with pytest.raises(ValueError, match=r"from 1 to 4 \(the burst\)"):
        limiter.hit_now("acme", RateLimit(10, 60.0, 4), cost=cost)
    assert len(limiter) == 0


@pytest.mark.anyio
async def test_awaiting_a_hit_counts_it_like_any_other() -> None:
    limiter, limit = MemoryRateLimiter(Clock()), RateLimit(10, 60.0, 4)
    assert (await limiter.hit("acme", limit, cost=3)).remaining == 1
    assert limiter.hit_now("acme", limit).remaining == 0
    assert not (await limiter.hit("acme", limit)).allowed


# -- peeking -------------------------------------------------------------------------------------


def test_peeking_counts_nothing_and_remembers_nobody() -> None:
    limiter, limit = MemoryRateLimiter(Clock()), RateLimit(10, 60.0, 4)
    for _ in range(100):
        assert limiter.peek("acme", limit) == 0
    assert len(limiter) == 0
    for left in (3, 2, 1, 0):
        assert limiter.peek("acme", limit) == 0
        assert limiter.hit_now("acme", limit).remaining == left
    for _ in range(100):
        assert limiter.peek("acme", limit) == 10
    assert limiter.hit_now("acme", limit).retry_after == 10


@given(limits(), starts, st.lists(gaps, max_size=50))
def test_peeking_says_what_a_hit_would(
    limit: RateLimit, start: float, arrivals: list[float]
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    for gap in arrivals:
        clock.now += gap * limit.window
        wait = limiter.peek("acme", limit)
        decision = limiter.hit_now("acme", limit)
        assert decision.allowed is (wait == 0)
        assert decision.retry_after == pytest.approx(wait, rel=1e-6, abs=limit.interval * 1e-6)


# -- a limit that changes ------------------------------------------------------------------------


@given(limits(), limits(), starts, st.floats(0, 1), st.integers(0, 200))
@example(RateLimit(1001, 1000.0, 1000), RateLimit(11, 10.0, 10), 1000.0, 0.0, 0)
def test_T10_a_limit_that_changes_never_makes_anybody_wait_longer_than_it_says(
    before: RateLimit, after: RateLimit, start: float, pause: float, wish: int
) -> None:
    clock = Clock(start)
    limiter = MemoryRateLimiter(clock)
    exhaust(limiter, before)
    clock.now += pause * before.interval
    cost = 1 + wish % after.burst
    decision = limiter.hit_now("acme", after, cost=cost)
    assert 0 <= decision.retry_after <= cost * after.interval * (1 + 1e-6)
    assert 0 <= decision.remaining <= after.burst
    assert 0 <= decision.reset_after <= after.burst * after.interval * (1 + 1e-6)
    if not decision.allowed:
        clock.now += decision.retry_after
        assert limiter.hit_now("acme", after, cost=cost).allowed


def test_T10_peeking_at_a_lowered_limit_tells_the_truth() -> None:
    clock = Clock()
    limiter = MemoryRateLimiter(clock)
    exhaust(limiter, RateLimit(1001, 1000.0, 1000))
    lowered = RateLimit(6, 50.0, 5)
    wait = limiter.peek("acme", lowered)
    assert wait == lowered.interval
    clock.now += wait
    assert limiter.peek("acme", lowered) == 0
    assert limiter.hit_now("acme", lowered).allowed


def test_T10_a_clock_that_went_back_makes_nobody_wait_for_it() -> None:
    clock = Clock(1_000_000.0)
    limiter, limit = MemoryRateLimiter(clock), RateLimit(10, 60.0, 4)
    exhaust(limiter, limit)
    clock.now = 0.0
    wait = limiter.hit_now("acme", limit).retry_after
    assert wait == limit.interval
    clock.now += wait
    assert limiter.hit_now("acme", limit).allowed


# -- memory --------------------------------------------------------------------------------------


def test_keys_that_are_as_good_as_new_are_forgotten() -> None:
    clock = Clock()
    limiter, limit = MemoryRateLimiter(clock), RateLimit(10, 60.0, 4)
    largest = 0
    for number in range(20 * _SWEEP_EVERY):
        limiter.hit_now(f"address-{number}", limit)
        largest = max(largest, len(limiter))
        # About one hundred keys are waiting for anything at any time.
        clock.now += limit.interval / 100
    assert largest <= _SWEEP_EVERY


def test_a_sweep_forgets_nobody_who_has_to_wait() -> None:
    clock = Clock()
    limiter, limit = MemoryRateLimiter(clock), RateLimit(10, 60.0, 4)
    for number in range(4 * _SWEEP_EVERY):
        exhaust(limiter, limit, str(number))
    assert len(limiter) == 4 * _SWEEP_EVERY
    assert all(limiter.peek(str(number), limit) for number in range(4 * _SWEEP_EVERY))
    # They may be many for a while, and are gone when there is no more need for them.
    clock.now += limit.window
    for number in range(8 * _SWEEP_EVERY):
        limiter.hit_now(f"later-{number}", limit)
        clock.now += limit.interval / 100
    assert len(limiter) <= _SWEEP_EVERY


def test_who_is_only_refused_or_looked_at_takes_no_room() -> None:
    limiter, limit = MemoryRateLimiter(Clock()), RateLimit(1)
    limiter.hit_now("acme", limit)
    for number in range(100):
        assert not limiter.hit_now("acme", limit).allowed
        limiter.peek(str(number), limit)
    assert len(limiter) == 1
