"""The roles that tenants' sessions have or can take, as several checks ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tenancy_postgres.isolation import PostgresIsolation

__all__ = ["REACHABLE", "sessions_roles"]

REACHABLE: Final = """
    reachable AS (
      SELECT oid FROM pg_catalog.pg_roles
       WHERE rolname = ANY (CAST(:roles AS text[])) AND NOT rolsuper
      UNION
      SELECT o.oid
        FROM reachable AS r
        JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
        JOIN pg_catalog.pg_roles AS o ON o.oid = m.roleid AND NOT o.rolsuper
    )
"""
"""Behind ``WITH RECURSIVE``, with the parameter ``roles``: the column ``oid`` of the roles of
sessions, and of all that these are members of.

Every membership counts, inherited or not: ``SET ROLE`` makes use of it, and ``has_*_privilege`` of
the sessions' role alone sees the inherited rights only. Superusers are left out, for whom there are
no rights: ``postgres.role`` tells of them.
"""


def sessions_roles(isolation: PostgresIsolation) -> list[str]:
    """Return the roles that tenants' sessions begin with: their own, and the one that logged in.

    Args:
        isolation: One that is open.
    """
    return sorted({isolation.tenants.role, isolation.tenants.login})
