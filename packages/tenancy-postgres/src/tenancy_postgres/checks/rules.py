"""Rules on tables that are not tenants', and that lead into tables that are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.unheld import LET_IN, is_unheld
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.rls.reachable import REACHABLE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["lending_rules"]

# Whatever a rule does it does with the rights of its table's owner, of a view that asks who reads
# as well. Those on tenants' own tables are flaws of these; what a view shows is the views' item.
_RULES: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, {LET_IN}, leads AS (
      SELECT oid FROM unnest(CAST(CAST(:scoped AS bigint[]) AS oid[])) AS given (oid)
      UNION
      SELECT w.ev_class
        FROM leads AS l
        JOIN pg_catalog.pg_depend AS d
          ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = l.oid
         AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
    )
    SELECT pg_catalog.quote_ident(w.rulename) AS name,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS holder,
           o.rolname::text AS owner,
           pg_catalog.array_to_string(pg_catalog.array_agg(
             DISTINCT pg_catalog.format('%I.%I', tn.nspname, t.relname)
           ), ', ') AS tables
      FROM leads AS l
      JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = l.oid
       AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
      JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid AND w.ev_class <> l.oid
      JOIN pg_catalog.pg_class AS c ON c.oid = w.ev_class
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
      JOIN pg_catalog.pg_class AS t ON t.oid = l.oid
      JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
     WHERE w.rulename <> '_RETURN'
       AND w.ev_class <> ALL (CAST(CAST(:scoped AS bigint[]) AS oid[]))
       AND {is_unheld("o")}
       AND EXISTS (
             SELECT FROM reachable AS r
              WHERE pg_catalog.has_table_privilege(r.oid, c.oid, 'DELETE')
                 OR pg_catalog.has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE')
           )
     GROUP BY w.oid, w.rulename, n.nspname, c.relname, o.rolname
     ORDER BY 2, 1
    """  # noqa: S608 - constants
)


async def lending_rules(
    connection: AsyncConnection, roles: list[str], scoped: list[int]
) -> list[Finding]:
    """Return rules that reach tenants' tables with the rights of somebody whom no policy holds.

    Args:
        connection: Of any role.
        roles: Of tenants' sessions.
        scoped: Numbers of the tables that tenants are in, and of their partitions.
    """
    wanted = {"roles": roles, "scoped": scoped}
    return [
        Finding(
            "postgres.functions",
            Severity.ERROR,
            f"The rule {row.name} on {row.holder}, which tenants' sessions may write to, reaches "
            f"{row.tables} with the rights of its owner {row.owner!r}, whom nothing keeps from any "
            "tenant's rows.",
            to_run("its owner", [f"DROP RULE {row.name} ON {row.holder}"]),
        )
        for row in await connection.execute(_RULES, wanted)
    ]
