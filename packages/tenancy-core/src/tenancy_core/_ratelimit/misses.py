"""Limits floods of unknown tenants by address, in process, before they reach the store."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from tenancy_core._ratelimit.memory import MemoryRateLimiter
from tenancy_core.contract import RateLimit
from tenancy_core.errors import RateLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MISSES", "MissLimiter"]

MISSES: Final = RateLimit(count=600, window=60.0, burst=300)
"""Store look-ups that find nobody, per address. Generous: behind a proxy that is not in
``trusted_proxies`` all clients share an address. Hits of the cache are never counted or refused."""


class MissLimiter:
    """Counts look-ups that found nobody; an address with too many is not looked up for a while."""

    __slots__ = ("_limit", "_limiter")

    def __init__(
        self, limit: RateLimit = MISSES, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._limit = limit
        self._limiter = MemoryRateLimiter(clock)

    def check(self, address: str | None) -> None:
        """Refuse an address that has used up its misses.

        Raises:
            RateLimitExceeded: It has to wait.
        """
        if address is not None and (wait := self._limiter.peek(address, self._limit)):
            raise RateLimitExceeded(retry_after=wait)

    def count(self, address: str | None) -> None:
        """Count a look-up that found nobody."""
        if address is not None:
            self._limiter.hit_now(address, self._limit)
