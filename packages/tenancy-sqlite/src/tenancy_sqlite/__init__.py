"""Multi-tenancy on SQLite: a database file per tenant.

Installed beside ``tenancy-core``, it is selected by a ``sqlite+aiosqlite://`` URL; no code names
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenancy_sqlite.isolation import SqliteDatabaseIsolation
    from tenancy_sqlite.settings import SqliteSettings

__all__ = ["SqliteDatabaseIsolation", "SqliteSettings"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name == "SqliteDatabaseIsolation":
        from tenancy_sqlite.isolation import SqliteDatabaseIsolation

        return SqliteDatabaseIsolation
    if name == "SqliteSettings":
        from tenancy_sqlite.settings import SqliteSettings

        return SqliteSettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
