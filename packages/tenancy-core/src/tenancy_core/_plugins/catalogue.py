"""What the tenancy packages bring, so that an error can say what to install."""

from __future__ import annotations

from typing import Final

__all__ = ["BRINGS", "DATABASES", "LATER"]

BRINGS: Final[dict[tuple[str, str], str]] = {
    ("cache backend", "redis"): "tenancy-redis",
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

LATER: Final = frozenset({("resolver", "jwt")})
"""Kind and name of what is documented and not part of this version."""

DATABASES: Final[dict[str, str]] = {
    "sqlite": "tenancy-sqlite",
    "postgresql": "tenancy-postgres",
    "mysql": "tenancy-mysql",
}
"""Dialect → the distribution that brings its strategies."""
