"""Rights of tenants' own roles in other tenants' schemas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.places import PLACES
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.roles import ADMIN_OPTION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["foreign_rights"]

_NAME: Final = "postgres.role"

# Who has rights that no tenant's role can use, such as a role for backups, is no finding.
_GIVEN: Final = text(
    f"""
    WITH RECURSIVE {PLACES}, given AS (
      SELECT p.oid AS place, p.role, a.grantee, false AS owns
        FROM place AS p CROSS JOIN LATERAL pg_catalog.aclexplode(p.nspacl) AS a
       WHERE a.grantee <> p.nspowner
      UNION
      SELECT p.oid, p.role, a.grantee, false
        FROM place AS p
        JOIN pg_catalog.pg_class AS c ON c.relnamespace = p.oid
       CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
       WHERE a.grantee <> c.relowner
      UNION
      SELECT p.oid, p.role, a.grantee, false
        FROM place AS p
        JOIN pg_catalog.pg_class AS c ON c.relnamespace = p.oid
        JOIN pg_catalog.pg_attribute AS t ON t.attrelid = c.oid AND t.attacl IS NOT NULL
       CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) AS a
       WHERE a.grantee <> c.relowner
      UNION
      SELECT p.oid, p.role, p.nspowner, true FROM place AS p
    ), foreigners AS (
      SELECT place, grantee, owns FROM given
       WHERE grantee = 0 OR EXISTS (
               SELECT FROM reach AS r
                WHERE r.role = given.grantee AND r.root IS DISTINCT FROM given.role
             )
      EXCEPT
      SELECT place, role, owns FROM given
    )
    SELECT g.rolname::text AS grantee, f.owns,
           pg_catalog.array_agg(p.nspname::text ORDER BY p.nspname) AS places
      FROM foreigners AS f
      JOIN place AS p ON p.oid = f.place
      LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = f.grantee
     WHERE f.grantee = 0 OR NOT (g.rolsuper OR g.rolname = current_user)
     GROUP BY f.grantee, g.rolname, f.owns
     ORDER BY g.rolname NULLS FIRST, f.owns
    """  # noqa: S608 - constants
)
_LENT: Final = text(
    f"""
    WITH RECURSIVE {PLACES}
    SELECT pg_catalog.pg_get_userbyid(r.root)::text AS role,
           pg_catalog.pg_get_userbyid(r.first)::text AS first,
           pg_catalog.array_agg(DISTINCT pg_catalog.pg_get_userbyid(r.grantor)::text) AS grantors,
           pg_catalog.array_agg(DISTINCT p.nspname::text) AS places
      FROM reach AS r
      JOIN place AS p ON p.role = r.role AND r.role <> r.root
     GROUP BY r.root, r.first
     ORDER BY 1, 2
    """  # noqa: S608 - constants
)


async def foreign_rights(
    connection: AsyncConnection, admin: str, version: int
) -> AsyncIterator[Finding]:
    """Yield what lets a tenant's role into a schema that is another tenant's.

    Args:
        connection: Of the role that makes schemas.
        admin: That role.
        version: The server's.
    """
    mark = {"mark": f"{MARK}%"}
    for row in (await connection.execute(_GIVEN, mark)).all():
        who = "Everybody, and so every other tenant,"
        if row.grantee is not None:
            who = f"The role {row.grantee!r}, which another tenant's sessions have,"
        does = "owns" if row.owns else "has rights in"
        yield Finding(
            _NAME,
            Severity.ERROR,
            f"{who} {does} these schemas of tenants: {listed(row.places)}.",
            to_run("a superuser", _closing(row, admin)),
        )
    for row in (await connection.execute(_LENT, mark)).all():
        yield Finding(
            _NAME,
            Severity.ERROR,
            f"The role {row.role!r} of a tenant is a member of {row.first!r}, and so has the "
            f"rights of other tenants in their schemas: {listed(row.places)}.",
            to_run("a superuser", _leaving(row, version)),
        )


def _closing(row: Row[Any], admin: str) -> Iterator[str]:
    if row.owns:
        for place in row.places:
            yield f"ALTER SCHEMA {quote_identifier(place)} OWNER TO {quote_identifier(admin)}"
        return
    whose = "PUBLIC" if row.grantee is None else quote_identifier(row.grantee)
    places = ", ".join(map(quote_identifier, row.places))
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {places} FROM {whose}"
    yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {places} FROM {whose}"
    yield f"REVOKE ALL ON SCHEMA {places} FROM {whose}"


def _leaving(row: Row[Any], version: int) -> Iterator[str]:
    for grantor in row.grantors:
        giver = f" GRANTED BY {quote_identifier(grantor)}" if version >= ADMIN_OPTION else ""
        yield f"REVOKE {quote_identifier(row.first)} FROM {quote_identifier(row.role)}{giver}"
