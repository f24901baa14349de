"""Settings that are documented and whose feature is not there yet.

Setting one explicitly is an error with a sentence: a setting that is accepted and read by nothing
would be a false promise. A row leaves this table in the change that brings its feature.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LATER"]

LATER: Final[dict[str, str]] = {
    "redis_url": "the Redis cache, limiter and invalidation bus",
    "enable_metrics": "metrics",
    "enable_query_logging": "query logging",
    "slow_query_threshold_ms": "query logging",
}
"""Setting → the feature that it belongs to."""
