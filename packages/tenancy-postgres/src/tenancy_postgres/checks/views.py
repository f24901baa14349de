"""Views over tenants' tables: with whose rights they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.checks.places import PLACES
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.marks import MARK
from tenancy_postgres.rls.reachable import REACHABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Row

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["views"]

_NAME: Final = "postgres.views"

_INVOKER: Final = 150_000
"""From this version on a view can read with the rights of whoever reads it."""

# What a rule does besides is a flaw of its table.
_READS: Final = """
    reads AS (
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
    )
"""
"""Which view reads which relation with the rights of its owner."""

# A view over a view reads what that one reads, unless that one asks who reads.
_VIEWS: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, {_READS}, reached AS (
      SELECT view, relation FROM reads
       WHERE relation = ANY (CAST(CAST(:scoped AS bigint[]) AS oid[]))
      UNION
      SELECT r.view, f.relation FROM reads AS r JOIN reached AS f ON f.view = r.relation
    )
    SELECT pg_catalog.format('%I.%I', n.nspname, v.relname) AS name,
           v.relkind = 'm' AS is_stored,
           pg_catalog.pg_get_userbyid(v.relowner)::text AS owner,
           pg_catalog.array_agg(
             DISTINCT pg_catalog.format('%I.%I', tn.nspname, t.relname)
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
                     OR given.grantee IN (SELECT oid FROM reachable))
              ORDER BY 1
           ) AS grantees
      FROM reached AS f
      JOIN pg_catalog.pg_class AS v ON v.oid = f.view
      JOIN pg_catalog.pg_namespace AS n ON n.oid = v.relnamespace
      JOIN pg_catalog.pg_class AS t ON t.oid = f.relation
      JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
     WHERE EXISTS (
             SELECT FROM reachable AS r
              WHERE pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
                AND (pg_catalog.has_table_privilege(r.oid, v.oid, 'DELETE')
                     OR pg_catalog.has_any_column_privilege(
                          r.oid, v.oid, 'SELECT, INSERT, UPDATE'))
           )
     GROUP BY v.oid, n.nspname
     ORDER BY 1
    """  # noqa: S608 - constants
)
# What a tenant's own role reads of its own schema is no finding, wherever the view is; that another
# tenant is a member of that role, ``postgres.role`` tells.
_VIEWS_OF_SCHEMAS: Final = text(
    f"""
    WITH RECURSIVE {PLACES}, {_READS}, reached AS (
      SELECT r.view, r.relation, p.oid AS place
        FROM reads AS r
        JOIN pg_catalog.pg_class AS c ON c.oid = r.relation
        JOIN place AS p ON p.oid = c.relnamespace
      UNION
      SELECT r.view, f.relation, f.place FROM reads AS r JOIN reached AS f ON f.view = r.relation
    ), given AS (
      SELECT v.oid AS view, a.grantee, a.privilege_type
        FROM pg_catalog.pg_class AS v CROSS JOIN LATERAL pg_catalog.aclexplode(v.relacl) AS a
       WHERE v.oid IN (SELECT view FROM reached)
      UNION
      SELECT t.attrelid, a.grantee, a.privilege_type
        FROM pg_catalog.pg_attribute AS t CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) AS a
       WHERE t.attacl IS NOT NULL AND t.attrelid IN (SELECT view FROM reached)
    ), shown AS (
      SELECT f.view, f.relation, g.grantee
        FROM reached AS f
        JOIN place AS p ON p.oid = f.place
        JOIN pg_catalog.pg_class AS v ON v.oid = f.view
        JOIN given AS g ON g.view = f.view AND g.grantee <> v.relowner
         AND g.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
       WHERE (
               g.grantee = 0
               AND (
                 pg_catalog.has_schema_privilege('public', v.relnamespace, 'USAGE')
                 OR EXISTS (
                      SELECT FROM place AS o
                       WHERE o.oid <> p.oid
                         AND pg_catalog.has_schema_privilege(o.role, v.relnamespace, 'USAGE')
                    )
               )
             )
          OR EXISTS (
               SELECT FROM reach AS r
                WHERE r.role = g.grantee AND r.root IS DISTINCT FROM p.role
                  AND r.role IS DISTINCT FROM p.role
                  AND (pg_catalog.has_schema_privilege(r.root, v.relnamespace, 'USAGE')
                       OR pg_catalog.has_schema_privilege(r.role, v.relnamespace, 'USAGE'))
             )
    )
    SELECT pg_catalog.format('%I.%I', n.nspname, v.relname) AS name,
           v.relkind = 'm' AS is_stored,
           pg_catalog.pg_get_userbyid(v.relowner)::text AS owner,
           pg_catalog.array_agg(
             DISTINCT pg_catalog.format('%I.%I', tn.nspname, t.relname)
           ) AS tables,
           pg_catalog.array_agg(
             DISTINCT coalesce(pg_catalog.quote_ident(g.rolname), 'PUBLIC')
           ) AS grantees
      FROM shown AS s
      JOIN pg_catalog.pg_class AS v ON v.oid = s.view
      JOIN pg_catalog.pg_namespace AS n ON n.oid = v.relnamespace
      JOIN pg_catalog.pg_class AS t ON t.oid = s.relation
      JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
      LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = s.grantee
     GROUP BY v.oid, n.nspname
     ORDER BY 1
    """  # noqa: S608 - constants
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
            roles = sorted({isolation.tenants.role, isolation.tenants.login})
            wanted = {"scoped": scoped, "roles": roles}
            found = (await connection.execute(_VIEWS, wanted)).all()
        for row in found:
            yield _finding(row, isolation.admin.version)
    for schema in strategies.schema:
        # Where all tenants have one role, it has rights on all that is theirs anyway.
        if not schema.has_roles:
            continue
        async with schema.administering() as connection:
            found = (await connection.execute(_VIEWS_OF_SCHEMAS, {"mark": f"{MARK}%"})).all()
        for row in found:
            yield _finding(row, schema.admin.version)


def _finding(row: Row[Any], version: int) -> Finding:
    grantees = ", ".join(row.grantees) or "PUBLIC"
    tables = listed(row.tables)
    revoke = f"REVOKE ALL ON {row.name} FROM {grantees}"
    if row.is_stored:
        what = f"The materialized view {row.name} holds rows of {tables} for all who may read it."
        return Finding(_NAME, Severity.ERROR, what, to_run("its owner", [revoke]))
    what = (
        f"The view {row.name} reads {tables} with the rights of its owner {row.owner!r}, and "
        "not of the tenant."
    )
    line = revoke
    if version >= _INVOKER:
        line = f"ALTER VIEW {row.name} SET (security_invoker = true)"
    return Finding(_NAME, Severity.ERROR, what, to_run("its owner", [line]))
