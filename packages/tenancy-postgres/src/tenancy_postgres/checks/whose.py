"""Which roles tenants' sessions have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from tenancy_postgres.marks import MARK
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.isolation import PostgresIsolation

__all__ = ["logins_of", "roles_of"]

_LOGINS: Final = text(
    """
    SELECT rolname::text FROM pg_catalog.pg_roles
     WHERE pg_catalog.shobj_description(oid, 'pg_authid') LIKE :mark
     ORDER BY 1
    """
)
"""The roles of tenants, and the one whose members they are."""


async def roles_of(isolation: PostgresIsolation) -> tuple[frozenset[str], str]:
    """Return the roles that sessions have by now, and the one that they use."""
    async with isolation.nobodys() as connection:
        facts = await facts_of(connection)
    return frozenset({facts.role, facts.login}), facts.role


async def logins_of(connection: AsyncConnection) -> Sequence[str]:
    """Return the roles of tenants on a server, and the one whose members they are."""
    return [*(await connection.execute(_LOGINS, {"mark": f"{MARK}%"})).scalars()]
