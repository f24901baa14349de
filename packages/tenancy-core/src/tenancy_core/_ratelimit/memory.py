"""GCRA in the memory of one process: exact, one number per key.

Source: ITU-T I.371 (Generic Cell Rate Algorithm, virtual scheduling). The emission interval is
T = W / (N - B), so that a burst of B and the N - B that follow it within W are N at most, in *any*
half-open window.
"""

from __future__ import annotations

from math import ulp
from time import monotonic
from typing import TYPE_CHECKING, Final

from tenancy_core.contract import RateLimitDecision

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenancy_core.contract import RateLimit

__all__ = ["MemoryRateLimiter"]

_SWEEP_EVERY: Final = 1024


class MemoryRateLimiter:
    """Implements :class:`~tenancy_core.contract.RateLimiter`; each process counts for itself.

    Args:
        clock: Seconds, never going back.
    """

    __slots__ = ("_arrivals", "_clock", "_sweep_at")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # Key → theoretical arrival time: when the burst is whole again.
        self._arrivals: dict[str, float] = {}
        self._sweep_at = _SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._arrivals)

    async def hit(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """See the contract."""
        return self.hit_now(key, limit, cost=cost)

    def hit_now(self, key: str, limit: RateLimit, /, *, cost: int = 1) -> RateLimitDecision:
        """As :meth:`hit`, without awaiting.

        Raises:
            ValueError: ``cost`` is not from 1 to the limit's burst; it could never be accepted.
        """
        if not 1 <= cost <= limit.burst:
            raise ValueError(f"A hit costs from 1 to {limit.burst} (the burst), not {cost}.")
        now = self._clock()
        interval = limit.interval
        whole = limit.burst * interval
        stored = self._arrivals.get(key, now)
        arrival = min(max(stored, now), now + whole)
        if arrival < stored:
            # A limit that was lowered meanwhile must not make anybody wait longer than it says.
            self._arrivals[key] = arrival
        later = arrival + cost * interval
        rounding = _rounding(limit, later)
        wait = later - whole - now
        if wait > rounding:
            return RateLimitDecision(
                allowed=False,
                limit=limit,
                remaining=int((now + whole - arrival + rounding) / interval),
                retry_after=wait,
                reset_after=arrival - now,
            )
        self._arrivals[key] = later
        if len(self._arrivals) > self._sweep_at:
            self._sweep(now)
        return RateLimitDecision(
            allowed=True,
            limit=limit,
            remaining=int((now + whole - later + rounding) / interval),
            retry_after=0.0,
            reset_after=later - now,
        )

    def peek(self, key: str, limit: RateLimit, /) -> float:
        """Return the seconds until a hit would be accepted, without counting one."""
        now = self._clock()
        stored = self._arrivals.get(key, now)
        arrival = min(stored, now + limit.burst * limit.interval)
        if arrival < stored:
            # As for a hit: kept, or the wait would be as long again when it is over.
            self._arrivals[key] = arrival
        wait = arrival - (limit.burst - 1) * limit.interval - now
        return wait if wait > _rounding(limit, arrival) else 0.0

    def _sweep(self, now: float) -> None:
        """Forget keys whose burst is whole: they are as good as new."""
        self._arrivals = {key: at for key, at in self._arrivals.items() if at > now}
        self._sweep_at = max(_SWEEP_EVERY, 2 * len(self._arrivals))


def _rounding(limit: RateLimit, at: float) -> float:
    """Return by how much a sum of that many intervals may miss its exact value.

    A hit that is let through so much too early still makes no more than N: T leaves one unused.
    """
    return min((limit.burst + 8) * ulp(at), limit.interval / 2)
