"""Rate limiters that the core ships."""

from tenancy_core._ratelimit.memory import MemoryRateLimiter
from tenancy_core._ratelimit.misses import MissLimiter

__all__ = ["MemoryRateLimiter", "MissLimiter"]
