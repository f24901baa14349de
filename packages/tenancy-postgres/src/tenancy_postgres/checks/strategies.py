"""Which of this package's strategies a service has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenancy_postgres.database import DatabaseIsolation
from tenancy_postgres.hybrid import HybridIsolation
from tenancy_postgres.rls import RlsIsolation
from tenancy_postgres.schema import SchemaIsolation

if TYPE_CHECKING:
    from tenancy_postgres.isolation import PostgresIsolation

__all__ = ["Strategies", "strategies_of"]


@dataclass(frozen=True, slots=True)
class Strategies:
    """Those that there are; of somebody else's strategy nothing is known, and so nothing found.

    Attributes:
        rls: With tables that all tenants are in.
        schema: With a schema for each.
        database: With a database for each.
    """

    rls: tuple[RlsIsolation, ...]
    schema: tuple[SchemaIsolation, ...]
    database: tuple[DatabaseIsolation, ...]

    @property
    def shared(self) -> tuple[PostgresIsolation, ...]:
        """Those with one database for all."""
        return (*self.rls, *self.schema)


def strategies_of(isolation: Any) -> Strategies:  # noqa: ANN401 - of whatever package
    """Return a service's strategies.

    Args:
        isolation: What the service has; of a hybrid, its two are looked at.
    """
    both = isinstance(isolation, HybridIsolation)
    found = (isolation.standard, isolation.premium) if both else (isolation,)
    return Strategies(
        rls=tuple(one for one in found if isinstance(one, RlsIsolation)),
        schema=tuple(one for one in found if isinstance(one, SchemaIsolation)),
        database=tuple(one for one in found if isinstance(one, DatabaseIsolation)),
    )
