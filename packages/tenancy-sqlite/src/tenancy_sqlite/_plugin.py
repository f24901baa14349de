"""What this package offers. Nothing here imports a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section
from tenancy_sqlite.settings import SqliteSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import IsolationStrategy

TENANCY_HOOK_API = 1


def _database(context: BuildContext, settings: SqliteSettings) -> IsolationStrategy:
    from tenancy_sqlite.isolation import SqliteDatabaseIsolation

    return SqliteDatabaseIsolation.from_context(context, settings)


@hookimpl
def tenancy_isolation_strategies() -> Iterable[Provider[Any, IsolationStrategy]]:
    """Return ``database``: a file per tenant."""
    return [
        Provider(
            "database",
            _database,
            section=Section("sqlite", SqliteSettings),
            dialects=frozenset({"sqlite"}),
        )
    ]
