"""What this package offers. Nothing here imports a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section
from tenancy_postgres.settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import IsolationStrategy

TENANCY_HOOK_API = 1

_SECTION: Final = Section("postgres", PostgresSettings)
_DIALECTS: Final = frozenset({"postgresql"})


def _schema(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.schema import SchemaIsolation

    return SchemaIsolation.from_context(context, settings)


def _rls(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.rls import RlsIsolation

    return RlsIsolation.from_context(context, settings)


@hookimpl
def tenancy_isolation_strategies() -> Iterable[Provider[Any, IsolationStrategy]]:
    """Return ``schema``, a schema for each tenant, and ``rls``, row-level security."""
    return [
        Provider("schema", _schema, section=_SECTION, dialects=_DIALECTS),
        Provider("rls", _rls, section=_SECTION, dialects=_DIALECTS),
    ]
