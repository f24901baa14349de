"""What the tenancy packages bring, so that an error can say what to install."""

from __future__ import annotations

from typing import Final

__all__ = ["BRINGS", "DATABASES", "EXTRAS"]

BRINGS: Final[dict[tuple[str, str], str]] = {
    ("cache backend", "redis"): "tenancy-redis",
    ("invalidation bus", "postgres"): "tenancy-postgres",
    ("invalidation bus", "redis"): "tenancy-redis",
    ("rate limiter", "redis"): "tenancy-redis",
    ("isolation strategy", "database@sqlite"): "tenancy-sqlite",
    ("isolation strategy", "schema@postgresql"): "tenancy-postgres",
    ("isolation strategy", "rls@postgresql"): "tenancy-postgres",
    ("isolation strategy", "database@postgresql"): "tenancy-postgres",
    ("isolation strategy", "hybrid@postgresql"): "tenancy-postgres",
    ("isolation strategy", "schema@mysql"): "tenancy-mysql",
    ("isolation strategy", "database@mysql"): "tenancy-mysql",
}
"""Kind and name (with its dialect) → the distribution of the tenancy project that offers it."""

EXTRAS: Final[dict[tuple[str, str], str]] = {("resolver", "jwt"): "'tenancy-core[jwt]'"}
"""Kind and name of what needs more than its distribution → what to install."""

DATABASES: Final[dict[str, str]] = {
    "sqlite": "tenancy-sqlite",
    "postgresql": "tenancy-postgres",
    "mysql": "tenancy-mysql",
}
"""Dialect → the distribution that brings its strategies."""
