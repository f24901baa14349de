"""What this package offers. Nothing here imports a driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tenancy_core.hookspecs import hookimpl
from tenancy_core.providers import BuildContext, Provider, Section
from tenancy_postgres.settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tenancy_core.contract import Check, InvalidationBus, IsolationStrategy

TENANCY_HOOK_API = 1

_SECTION: Final = Section("postgres", PostgresSettings)
_DIALECTS: Final = frozenset({"postgresql"})


def _schema(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.schema import SchemaIsolation

    return SchemaIsolation.from_context(context, settings)


def _database(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.database import DatabaseIsolation

    return DatabaseIsolation.from_context(context, settings)


def _rls(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.rls import RlsIsolation

    return RlsIsolation.from_context(context, settings)


def _hybrid(context: BuildContext, settings: PostgresSettings) -> IsolationStrategy:
    from tenancy_postgres.hybrid import HybridIsolation

    return HybridIsolation.from_context(context, settings, _KINDS)


def _bus(context: BuildContext, settings: PostgresSettings) -> InvalidationBus:
    from tenancy_postgres.invalidation.bus import PostgresBus

    return PostgresBus.from_context(context, settings)


_KINDS: Final = {"database": _database, "rls": _rls, "schema": _schema}


@hookimpl
def tenancy_isolation_strategies() -> Iterable[Provider[Any, IsolationStrategy]]:
    """Return ``schema``, ``rls``, ``database``, and ``hybrid``, which is two of them."""
    return [
        Provider("schema", _schema, section=_SECTION, dialects=_DIALECTS),
        Provider("rls", _rls, section=_SECTION, dialects=_DIALECTS),
        Provider("database", _database, section=_SECTION, dialects=_DIALECTS),
        Provider("hybrid", _hybrid, section=_SECTION, dialects=_DIALECTS),
    ]


@hookimpl
def tenancy_invalidation_buses() -> Iterable[Provider[Any, InvalidationBus]]:
    """Return ``postgres``: LISTEN and NOTIFY in the tenant store's database."""
    return [Provider("postgres", _bus, section=_SECTION)]


@hookimpl
def tenancy_checks() -> Iterable[Check]:
    """Return this package's items of the production checklist."""
    from tenancy_postgres.checks import POSTGRES_CHECKS

    return POSTGRES_CHECKS
