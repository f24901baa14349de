"""Views over the tables that all tenants are in: with whose rights they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.checks.words import to_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Row

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["views"]

_NAME: Final = "postgres.views"

_INVOKER: Final = 150_000
"""From this version on a view can read with the rights of whoever reads it."""

# A view over a view reads what that one reads, unless that one asks who reads. What a rule does
# besides is a flaw of its table.
_VIEWS: Final = text(
    """
    WITH RECURSIVE reads AS (
      SELECT DISTINCT w.ev_class AS view, d.refobjid AS relation
        FROM pg_catalog.pg_rewrite AS w
        JOIN pg_catalog.pg_class AS c ON c.oid = w.ev_class
        JOIN pg_catalog.pg_depend AS d
          ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = w.oid
         AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
         AND d.refobjid <> w.ev_class
       WHERE w.rulename = '_RETURN'
         AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) AS o
                WHERE c.relkind = 'v' AND o.option_name = 'security_invoker'
                  AND o.option_value::boolean
             )
    ), reached AS (
      SELECT view, relation FROM reads
       WHERE relation = ANY (CAST(CAST(:scoped AS bigint[]) AS oid[]))
      UNION
      SELECT r.view, f.relation FROM reads AS r JOIN reached AS f ON f.view = r.relation
    )
    SELECT pg_catalog.format('%I.%I', n.nspname, v.relname) AS name,
           v.relkind = 'm' AS is_stored,
           pg_catalog.pg_get_userbyid(v.relowner)::text AS owner,
           pg_catalog.string_agg(
             DISTINCT pg_catalog.format('%I.%I', tn.nspname, t.relname), ', '
           ) AS tables,
           ARRAY(
             SELECT coalesce(pg_catalog.quote_ident(g.rolname), 'PUBLIC')
               FROM (
                 SELECT (pg_catalog.aclexplode(v.relacl)).grantee
                 UNION
                 SELECT (pg_catalog.aclexplode(a.attacl)).grantee
                   FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = v.oid
               ) AS given
               LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = given.grantee
              WHERE given.grantee <> v.relowner
                AND (given.grantee = 0
                     OR pg_catalog.pg_has_role(CAST(:role AS text), given.grantee, 'MEMBER'))
              ORDER BY 1
           ) AS grantees
      FROM reached AS f
      JOIN pg_catalog.pg_class AS v ON v.oid = f.view
      JOIN pg_catalog.pg_namespace AS n ON n.oid = v.relnamespace
      JOIN pg_catalog.pg_class AS t ON t.oid = f.relation
      JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
     WHERE pg_catalog.has_schema_privilege(CAST(:role AS text), n.oid, 'USAGE')
       AND (
         pg_catalog.has_table_privilege(CAST(:role AS text), v.oid, 'DELETE')
         OR pg_catalog.has_any_column_privilege(
              CAST(:role AS text), v.oid, 'SELECT, INSERT, UPDATE')
       )
     GROUP BY v.oid, n.nspname
     ORDER BY 1
    """
)


async def views(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield views that sessions may use and that read tenants' tables as somebody else."""
    for isolation in strategies.rls:
        async with isolation.administering() as connection:
            verdicts = await isolation.judge(connection)
            scoped = [
                number
                for verdict in verdicts
                if scope_column(verdict.table) is not None
                for number in verdict.relations
            ]
            wanted = {"scoped": scoped, "role": isolation.tenants.role}
            found = (await connection.execute(_VIEWS, wanted)).all()
        for row in found:
            yield _finding(row, isolation.admin.version)


def _finding(row: Row[Any], version: int) -> Finding:
    grantees = ", ".join(row.grantees) or "PUBLIC"
    revoke = f"REVOKE ALL ON {row.name} FROM {grantees}"
    if row.is_stored:
        what = (
            f"The materialized view {row.name} holds rows of {row.tables} for all who may read it: "
            "no policy is asked."
        )
        return Finding(_NAME, Severity.ERROR, what, to_run("its owner", [revoke]))
    what = (
        f"The view {row.name} reads {row.tables} with the rights of its owner {row.owner!r}, and "
        "not of the tenant."
    )
    line = revoke
    if version >= _INVOKER:
        line = f"ALTER VIEW {row.name} SET (security_invoker = true)"
    return Finding(_NAME, Severity.ERROR, what, to_run("its owner", [line]))
