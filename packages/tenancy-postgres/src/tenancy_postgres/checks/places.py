"""Tenants' schemas with their roles, as the statements of several items see them."""

from __future__ import annotations

from typing import Final

__all__ = ["PLACES"]

PLACES: Final = """
    place AS (
      SELECT n.oid, n.nspname, n.nspowner, n.nspacl, r.oid AS role
        FROM pg_catalog.pg_namespace AS n
        LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = n.nspname
       WHERE pg_catalog.obj_description(n.oid, 'pg_namespace') LIKE :mark
    ), reach AS (
      SELECT role AS root, role, CAST(NULL AS oid) AS first, CAST(NULL AS oid) AS grantor
        FROM place WHERE role IS NOT NULL
      UNION
      SELECT r.root, m.roleid, coalesce(r.first, m.roleid), coalesce(r.grantor, m.grantor)
        FROM reach AS r
        JOIN pg_catalog.pg_roles AS o ON o.oid = r.role
        JOIN pg_catalog.pg_auth_members AS m ON m.member = r.role
       WHERE r.first IS NULL
          OR (NOT o.rolsuper AND o.rolname <> current_user
              AND r.role NOT IN (SELECT role FROM place WHERE role IS NOT NULL))
    )
"""
"""Behind ``WITH RECURSIVE``, with the parameter ``mark``: tenants' schemas, each with the role of
its name; and each such role, ``root``, with those that it is a member of, inherited or not, the
first of them on the way, and who gave that membership.

Behind another tenant's role the search ends, as it begins there too; behind superusers and the role
that makes schemas as well, which ``postgres.role`` tells of. All tenants at once: there may be
thousands.
"""
