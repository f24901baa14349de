"""Settings that are documented and whose feature is not there yet.

Setting one explicitly is an error with a sentence: a setting that is accepted and read by nothing
would be a false promise. A row leaves this table in the change that brings its feature.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LATER", "LATER_IN_PLANS"]

_HYBRID: Final = "hybrid isolation"

LATER: Final[dict[str, str]] = {
    "database_url_template": "a database server per tenant",
    "standard_isolation_strategy": _HYBRID,
    "premium_isolation_strategy": _HYBRID,
    "premium_plans": _HYBRID,
    "premium_tenants": _HYBRID,
    "redis_url": "the Redis cache, limiter and invalidation bus",
    "enable_metrics": "metrics",
    "enable_query_logging": "query logging",
    "slow_query_threshold_ms": "query logging",
}
"""Setting → the feature that it belongs to."""

LATER_IN_PLANS: Final = ("concurrency",)
"""Values of a plan whose feature is not there yet."""
