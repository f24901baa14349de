"""Functions that run with their owner's rights, or name another tenant's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.marks import MARK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["functions"]

_NAME: Final = "postgres.functions"

# A trigger runs its function whoever may call it. Within such a function nobody can take another
# role, so of an owner's memberships only the inherited rights count.
_DEFINERS: Final = text(
    """
    SELECT CAST(p.oid::pg_catalog.regprocedure AS text) AS shown,
           pg_catalog.format(
             '%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)
           ) AS name,
           o.rolname::text AS owner,
           o.rolsuper AS superuser,
           o.rolsuper OR o.rolbypassrls AS bypasses,
           EXISTS (
             SELECT FROM pg_catalog.unnest(p.proconfig) AS line
              WHERE pg_catalog.starts_with(line, 'search_path=')
           ) AS has_path
      FROM pg_catalog.pg_proc AS p
      JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
      JOIN pg_catalog.pg_roles AS o ON o.oid = p.proowner
     WHERE p.prosecdef
       AND n.nspname NOT IN ('pg_catalog', 'information_schema')
       AND (
         o.rolsuper OR o.rolbypassrls
         OR EXISTS (
              SELECT FROM pg_catalog.pg_roles AS b
               WHERE b.rolname = ANY (CAST(:owners AS text[]))
                 AND pg_catalog.pg_has_role(o.oid, b.oid, 'USAGE')
            )
       )
       AND (
         (pg_catalog.has_function_privilege(CAST(:role AS text), p.oid, 'EXECUTE')
          AND pg_catalog.has_schema_privilege(CAST(:role AS text), n.oid, 'USAGE'))
         OR EXISTS (
              SELECT FROM pg_catalog.pg_trigger AS t
               WHERE t.tgfoid = p.oid AND NOT t.tgisinternal
                 AND pg_catalog.has_any_column_privilege(
                       CAST(:role AS text), t.tgrelid, 'INSERT, UPDATE')
            )
       )
     ORDER BY 2
    """
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
            owners = rls.owners(await rls.judge(connection))
            found = await _definers(connection, owners, rls.tenants.role)
        for row in found:
            yield _finding(row, severe=row.bypasses)
    for schema in strategies.schema:
        async with schema.administering() as connection:
            found = await _definers(connection, {schema.admin.role}, schema.tenants.role)
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
    connection: AsyncConnection, owners: Collection[str], role: str
) -> list[Row[Any]]:
    wanted = {"owners": sorted(owners), "role": role}
    return [*(await connection.execute(_DEFINERS, wanted)).all()]


def _finding(row: Row[Any], *, severe: bool) -> Finding:
    if severe:
        what = "whom nothing keeps from any tenant's rows"
    else:
        what = "who owns what keeps tenants apart, and can switch it off"
    path = "" if row.has_path else " It has no search_path of its own, so its caller's holds in it."
    return Finding(
        _NAME,
        Severity.ERROR if severe else Severity.WARNING,
        f"The function {row.name} that tenants' sessions run has the rights of its owner "
        f"{row.owner!r}, {what}.{path}",
        to_run("its owner", [f"ALTER ROUTINE {row.name} SECURITY INVOKER"]),
    )
