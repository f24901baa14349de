"""Multi-tenancy on PostgreSQL: a database or a schema for each tenant, or row-level security.

Installed beside ``tenancy-core``, it is selected by a ``postgresql+asyncpg://`` URL; no code names
it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tenancy_postgres.database import DatabaseIsolation
    from tenancy_postgres.hybrid import HybridIsolation
    from tenancy_postgres.rls import RlsIsolation
    from tenancy_postgres.schema import SchemaIsolation
    from tenancy_postgres.settings import PostgresSettings

__all__ = [
    "DatabaseIsolation",
    "HybridIsolation",
    "PostgresSettings",
    "RlsIsolation",
    "SchemaIsolation",
]

_ROOMS: Final = {
    "DatabaseIsolation": "tenancy_postgres.database",
    "HybridIsolation": "tenancy_postgres.hybrid",
    "PostgresSettings": "tenancy_postgres.settings",
    "RlsIsolation": "tenancy_postgres.rls",
    "SchemaIsolation": "tenancy_postgres.schema",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
