"""Roles that no policy holds: whatever runs with their rights reaches the rows of all tenants."""

from __future__ import annotations

from typing import Final

from tenancy_postgres.quoting import quote_literal
from tenancy_postgres.rls.held import has_floor
from tenancy_postgres.rls.policies import FLOOR

__all__ = ["LET_IN", "is_unheld"]

LET_IN: Final = f"""
    let_in AS MATERIALIZED (
      SELECT p.polrelid AS relation, held.oid AS role
        FROM pg_catalog.pg_policy AS p CROSS JOIN LATERAL unnest(p.polroles) AS held (oid)
       WHERE p.polpermissive AND p.polrelid = ANY (CAST(CAST(:scoped AS bigint[]) AS oid[]))
         AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_policy AS f
                WHERE f.polrelid = p.polrelid AND f.polname = {quote_literal(FLOOR)}
                  AND NOT f.polpermissive AND f.polroles && ARRAY[held.oid, CAST(0 AS oid)]
             )
    )
"""  # noqa: S608 - constants
"""Behind ``WITH``, with the parameter ``scoped``, the numbers of tenants' tables and of their
partitions: whom a policy lets into one and ours does not keep out. Where tables have our policies
only, it is empty."""


def is_unheld(owner: str) -> str:
    """Return the condition that no policy holds a role other than the sessions' own.

    Args:
        owner: The alias of a row of ``pg_roles``. There are the CTE :data:`LET_IN`, and the
            parameter ``roles``: those of tenants' sessions.
    """
    return f"""(
        {owner}.rolsuper OR {owner}.rolbypassrls
        OR ({owner}.rolname <> ALL (CAST(:roles AS text[]))
            AND EXISTS (
                  SELECT FROM let_in AS l
                   WHERE (l.role = 0 OR pg_catalog.pg_has_role({owner}.oid, l.role, 'USAGE'))
                     AND NOT {has_floor("l.relation", f"{owner}.oid")}
                ))
    )"""
