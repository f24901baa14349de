"""What tenants' logins get at as members of other roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.roles import ADMIN_OPTION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["by_membership"]

# Every membership counts, inherited or not: SET ROLE makes use of it. Behind a role of tenants the
# search ends, because it begins there as well; and so it does behind the role that makes databases
# and behind superusers, of which ``postgres.role`` tells. All tenants are members of their group.
_BY_MEMBERSHIP: Final = text(
    """
    WITH RECURSIVE marked AS (
      SELECT oid, rolname,
             pg_catalog.shobj_description(oid, 'pg_authid') = CAST(:group AS text) AS is_group
        FROM pg_catalog.pg_roles
       WHERE pg_catalog.shobj_description(oid, 'pg_authid') LIKE :mark
    ), reach AS (
      SELECT oid AS root, oid AS role, CAST(NULL AS oid) AS first, CAST(NULL AS oid) AS grantor
        FROM marked
      UNION
      SELECT r.root, m.roleid, coalesce(r.first, m.roleid), coalesce(r.grantor, m.grantor)
        FROM reach AS r
        JOIN pg_catalog.pg_roles AS o ON o.oid = r.role
        JOIN pg_catalog.pg_auth_members AS m ON m.member = r.role
       WHERE r.first IS NULL
          OR (NOT o.rolsuper AND o.rolname <> current_user
              AND r.role NOT IN (SELECT oid FROM marked))
    ), doors AS (
      SELECT DISTINCT given.grantee, d.datname
        FROM pg_catalog.pg_database AS d
       CROSS JOIN LATERAL pg_catalog.aclexplode(
               coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))
             ) AS given
       WHERE given.privilege_type = 'CONNECT'
    )
    SELECT root.rolname::text AS role,
           pg_catalog.pg_get_userbyid(r.first)::text AS first,
           pg_catalog.array_agg(DISTINCT pg_catalog.pg_get_userbyid(r.grantor)::text) AS grantors,
           pg_catalog.array_agg(DISTINCT d.datname::text)
             FILTER (WHERE d.datname IS NOT NULL) AS databases,
           pg_catalog.array_agg(DISTINCT o.rolname::text) AS roles,
           pg_catalog.current_setting('server_version_num')::int AS version
      FROM reach AS r
      JOIN marked AS root ON root.oid = r.root
      JOIN pg_catalog.pg_roles AS o ON o.oid = r.role
      LEFT JOIN marked AS other ON other.oid = r.role
      LEFT JOIN doors AS d ON d.grantee = r.role AND d.datname <> root.rolname
     WHERE r.first IS NOT NULL AND NOT o.rolsuper AND o.rolname <> current_user
       AND (d.datname IS NOT NULL OR NOT other.is_group)
     GROUP BY 1, 2
     ORDER BY 1, 2
    """
)


async def by_membership(connection: AsyncConnection, alias: str) -> AsyncIterator[Finding]:
    """Yield memberships by which a tenant's login gets at what is not its own.

    Args:
        connection: Of the role that makes databases.
        alias: Of the server.
    """
    wanted = {"mark": f"{MARK}%", "group": f"{MARK}tenants"}
    for row in (await connection.execute(_BY_MEMBERSHIP, wanted)).all():
        if row.databases:
            which = "which is" if len(row.databases) == 1 else "which are"
            what = f"may connect to {listed(row.databases)}, {which} not its own"
        else:
            what = f"has the rights of {listed(row.roles)}, or can take them"
        yield Finding(
            "postgres.connect",
            Severity.ERROR,
            f"On the server {alias!r} the role {row.role!r} of tenants is a member of "
            f"{row.first!r}, and so {what}.",
            to_run("a superuser", _leaving(row)),
        )


def _leaving(row: Row[Any]) -> Iterator[str]:
    for grantor in row.grantors:
        giver = f" GRANTED BY {quote_identifier(grantor)}" if row.version >= ADMIN_OPTION else ""
        yield f"REVOKE {quote_identifier(row.first)} FROM {quote_identifier(row.role)}{giver}"
