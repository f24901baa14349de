"""Functions that run with their owner's rights, or name another tenant's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.scoped import scope_column
from tenancy_postgres.checks.rules import lending_rules
from tenancy_postgres.checks.unheld import LET_IN, is_unheld
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.marks import MARK
from tenancy_postgres.rls.reachable import REACHABLE, sessions_roles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.checks.strategies import Strategies
    from tenancy_postgres.isolation import PostgresIsolation

__all__ = ["functions"]

_NAME: Final = "postgres.functions"

# Within such a function nobody can take another role, so of an owner's memberships only the
# inherited rights count. Of sessions each counts: SET ROLE makes use of it.
#
# A trigger runs its function whoever may call that, and whoever writes to a table fires the
# triggers of its partitions, of what follows it by a foreign key, and of what a view or a rule
# leads to: from the triggers up to what sessions may write to. And a right on the schema is asked
# for only where a name is read: a view, a default and the like know the function by its number.
_DEFINERS: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, {LET_IN}, definer AS MATERIALIZED (
      SELECT p.oid, p.proname, p.pronamespace, p.proconfig, o.rolname AS owner, o.rolsuper,
             {is_unheld("o")} AS is_unheld
        FROM pg_catalog.pg_proc AS p
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_roles AS o ON o.oid = p.proowner
       WHERE p.prosecdef
         AND n.nspname NOT IN ('pg_catalog', 'information_schema')
         AND (
           {is_unheld("o")}
           OR EXISTS (
                SELECT FROM pg_catalog.pg_roles AS b
                 WHERE b.rolname = ANY (CAST(:owners AS text[]))
                   AND pg_catalog.pg_has_role(o.oid, b.oid, 'USAGE')
              )
         )
    ), fires AS (
      SELECT t.tgfoid AS function, t.tgrelid AS relation
        FROM pg_catalog.pg_trigger AS t
       WHERE t.tgfoid IN (SELECT oid FROM definer)
      UNION
      SELECT f.function, above.oid
        FROM fires AS f
       CROSS JOIN LATERAL (
         SELECT i.inhparent AS oid FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = f.relation
         UNION ALL
         SELECT k.confrelid FROM pg_catalog.pg_constraint AS k
          WHERE k.conrelid = f.relation AND k.contype = 'f'
            AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
         UNION ALL
         SELECT w.ev_class
           FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_rewrite AS w ON w.oid = d.objid
          WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.refobjid = f.relation
       ) AS above
    ), fired AS MATERIALIZED (
      SELECT DISTINCT f.function
        FROM fires AS f
       WHERE EXISTS (
               SELECT FROM reachable AS r
                WHERE pg_catalog.has_table_privilege(r.oid, f.relation, 'DELETE, TRUNCATE')
                   OR pg_catalog.has_any_column_privilege(r.oid, f.relation, 'INSERT, UPDATE')
             )
    ), called AS (
      SELECT p.*,
             p.oid IN (SELECT function FROM fired) AS is_fired,
             EXISTS (
               SELECT FROM reachable AS r
                WHERE pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE')
             ) AS is_callable,
             EXISTS (
               SELECT FROM reachable AS r
                WHERE pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE')
                  AND pg_catalog.has_schema_privilege(r.oid, p.pronamespace, 'USAGE')
             ) OR EXISTS (
               SELECT FROM pg_catalog.pg_depend AS d
                WHERE d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                  AND d.refobjid = p.oid
                  AND d.classid <> 'pg_catalog.pg_trigger'::pg_catalog.regclass
             ) AS is_named
        FROM definer AS p
    )
    SELECT pg_catalog.format(
             '%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)
           ) AS name,
           p.owner::text AS owner, p.rolsuper AS superuser, p.is_unheld,
           p.is_fired OR p.is_named AS is_run,
           EXISTS (
             SELECT FROM pg_catalog.unnest(p.proconfig) AS line
              WHERE pg_catalog.starts_with(line, 'search_path=')
           ) AS has_path
      FROM called AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
     WHERE p.is_fired OR p.is_callable
     ORDER BY 1
    """  # noqa: S608 - constants
)

# In the text of a function a name stands as it is written; what a function puts together from
# pieces is not seen.
_STRAYING: Final = text(
    """
    WITH place AS (
      SELECT oid, nspname FROM pg_catalog.pg_namespace
       WHERE pg_catalog.obj_description(oid, 'pg_namespace') LIKE :mark
    )
    SELECT DISTINCT
           pg_catalog.format(
             '%I.%I(%s)', own.nspname, p.proname,
             pg_catalog.pg_get_function_identity_arguments(p.oid)
           ) AS name,
           other.nspname::text AS other
      FROM pg_catalog.pg_proc AS p
      JOIN place AS own ON own.oid = p.pronamespace
     CROSS JOIN LATERAL pg_catalog.regexp_matches(p.prosrc, '(\\w+)"?\\s*\\.', 'g') AS word (parts)
      JOIN place AS other ON other.nspname = CAST(word.parts[1] AS name) AND other.oid <> own.oid
     ORDER BY 1, 2
    """
)


async def functions(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield functions that tenants' sessions run with rights that are not theirs."""
    for rls in strategies.rls:
        async with rls.administering() as connection:
            verdicts = await rls.judge(connection)
            scoped = [
                number
                for verdict in verdicts
                if scope_column(verdict.table) is not None
                for number in verdict.relations
            ]
            found = await _definers(connection, rls, rls.owners(verdicts), scoped)
            rules = await lending_rules(connection, sessions_roles(rls), scoped)
        for row in found:
            yield _finding(row, severe=row.is_unheld)
        for finding in rules:
            yield finding
    for schema in strategies.schema:
        async with schema.administering() as connection:
            found = await _definers(connection, schema, {schema.admin.role}, [])
            strays = (await connection.execute(_STRAYING, {"mark": f"{MARK}%"})).all()
        for row in found:
            yield _finding(row, severe=row.superuser)
        for row in strays:
            yield Finding(
                _NAME,
                Severity.WARNING,
                f"The function {row.name} of one tenant names the schema {row.other} of another.",
                to_run("its owner", [f"DROP ROUTINE {row.name}"]) + "\nMake it anew, without the "
                "name of a schema.",
            )


async def _definers(
    connection: AsyncConnection,
    isolation: PostgresIsolation,
    owners: Collection[str],
    scoped: list[int],
) -> list[Row[Any]]:
    wanted = {"owners": sorted(owners), "roles": sessions_roles(isolation), "scoped": scoped}
    return [*(await connection.execute(_DEFINERS, wanted)).all()]


def _finding(row: Row[Any], *, severe: bool) -> Finding:
    does = "run" if row.is_run else "may call"
    if severe:
        what = "whom nothing keeps from any tenant's rows"
    else:
        what = "who owns what keeps tenants apart, and can switch it off"
    closed = ""
    if not row.is_run:
        closed = (
            " They have no right on its schema, which is not asked for where a view, a default or "
            "the like calls it."
        )
    path = "" if row.has_path else " It has no search_path of its own, so its caller's holds in it."
    return Finding(
        _NAME,
        Severity.ERROR if severe and row.is_run else Severity.WARNING,
        f"The function {row.name} that tenants' sessions {does} has the rights of its owner "
        f"{row.owner!r}, {what}.{closed}{path}",
        to_run("its owner", [f"ALTER ROUTINE {row.name} SECURITY INVOKER"]),
    )
