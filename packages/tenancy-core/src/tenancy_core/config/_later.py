"""Settings that are documented and whose feature is not there yet.

Setting one explicitly is an error with a sentence: a setting that is accepted and read by nothing
would be a false promise. A row leaves this table in the change that brings its feature.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LATER", "LATER_IN_PLANS"]

_JWT: Final = "the jwt resolver"
_HYBRID: Final = "hybrid isolation"
_ENCRYPTION: Final = "encryption of tenants' secrets"

LATER: Final[dict[str, str]] = {
    "database_url_template": "a database server per tenant",
    "jwt_secret": _JWT,
    "jwt_algorithms": _JWT,
    "jwt_tenant_claim": _JWT,
    "jwt_audience": _JWT,
    "jwt_issuer": _JWT,
    "jwt_jwks_url": _JWT,
    "jwt_issuers": _JWT,
    "jwt_types": _JWT,
    "jwt_max_lifetime": _JWT,
    "jwt_leeway": _JWT,
    "schema_prefix": "schema isolation",
    "rls_setting": "row-level security",
    "standard_isolation_strategy": _HYBRID,
    "premium_isolation_strategy": _HYBRID,
    "premium_plans": _HYBRID,
    "premium_tenants": _HYBRID,
    "redis_url": "the Redis cache, limiter and invalidation bus",
    "enable_encryption": _ENCRYPTION,
    "encryption_keys": _ENCRYPTION,
    "signing_keys": "signing of cached tenants, jobs and row policies",
    "enable_soft_delete": "archiving of tenants",
    "archive_retention_days": "archiving of tenants",
    "max_tenants": "a limit on the number of tenants",
    "enable_metrics": "metrics",
    "enable_query_logging": "query logging",
    "slow_query_threshold_ms": "query logging",
}
"""Setting → the feature that it belongs to."""

LATER_IN_PLANS: Final = ("concurrency", "statement_timeout", "lock_timeout", "idle_timeout")
"""Values of a plan whose feature is not there yet."""
