"""How far row policies let a role into a table, as conditions of SQL statements."""

from __future__ import annotations

from tenancy_postgres.quoting import quote_literal
from tenancy_postgres.rls.policies import FLOOR

__all__ = ["has_floor", "is_let_in", "is_not_asked"]


def is_not_asked(table: str, role: str) -> str:
    """Return the condition that no policy of a table is asked about a role.

    Args:
        table: The alias of a row of ``pg_class``.
        role: An SQL expression: the number of a role.
    """
    owns = f"pg_catalog.pg_has_role({role}, {table}.relowner, 'USAGE')"
    return f"(NOT {table}.relrowsecurity OR (NOT {table}.relforcerowsecurity AND {owns}))"


def is_let_in(table: str, role: str) -> str:
    """Return the condition that a policy of a table lets a role in.

    Args:
        table: An SQL expression: the number of a table.
        role: Likewise of a role.
    """
    return _exists(table, role, "p.polpermissive")


def has_floor(table: str, role: str) -> str:
    """Return the condition that ``tenancy_floor`` of a table holds a role.

    Args:
        table: An SQL expression: the number of a table.
        role: Likewise of a role.
    """
    return _exists(table, role, f"NOT p.polpermissive AND p.polname = {quote_literal(FLOOR)}")


def _exists(table: str, role: str, kind: str) -> str:
    # A policy is for whoever has the rights of one of its roles; for everybody, where that is 0.
    return f"""
        EXISTS (
          SELECT FROM pg_catalog.pg_policy AS p CROSS JOIN LATERAL unnest(p.polroles) AS held (oid)
           WHERE p.polrelid = {table} AND {kind}
             AND (held.oid = 0 OR pg_catalog.pg_has_role({role}, held.oid, 'USAGE'))
        )
    """
