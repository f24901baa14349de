"""Tables with a tenant's column that nobody declared and nothing protects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text

from tenancy_core.sql.scoped import TENANT_COLUMN
from tenancy_core.sql.tables import NAMESPACE
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.held import has_floor, is_let_in, is_not_asked
from tenancy_postgres.rls.reachable import REACHABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["Stranger", "strangers_of"]

# Views are another finding. The tenant store is nobody's but its own role's. In a tenant's own
# schema, which the strategy `schema` has marked, the column parts nobody from anybody. What is
# asked of each role comes last, and of few tables: there may be thousands of both.
_STRANGERS: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, candidate AS MATERIALIZED (
      SELECT c.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relnamespace,
             pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
        FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f')
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
       WHERE a.attname = CAST(:column AS name) AND NOT a.attisdropped
         AND c.relpersistence <> 't'
         AND c.oid <> ALL (CAST(CAST(:known AS bigint[]) AS oid[]))
         AND n.nspname NOT IN ('pg_catalog', 'information_schema', CAST(:namespace AS text))
         AND coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), '') NOT LIKE :mark
    ), sessions AS (
      SELECT oid FROM reachable
      UNION
      -- Whoever opened with a superuser is told of tables that are not declared all the same.
      SELECT oid FROM pg_catalog.pg_roles WHERE rolname = CAST(:role AS text)
    )
    SELECT c.name, pg_catalog.array_agg(o.rolname::text ORDER BY o.rolname) AS roles
      FROM candidate AS c
      JOIN sessions AS r
        ON pg_catalog.has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
       AND (
         pg_catalog.has_table_privilege(r.oid, c.oid, 'DELETE, TRUNCATE')
         OR pg_catalog.has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE')
       )
       AND (
         {is_not_asked("c", "r.oid")}
         OR ({is_let_in("c.oid", "r.oid")} AND NOT {has_floor("c.oid", "r.oid")})
       )
      JOIN pg_catalog.pg_roles AS o ON o.oid = r.oid
     GROUP BY c.name
     ORDER BY 1
    """  # noqa: S608 - constants
)


class Stranger(NamedTuple):
    """A table that nobody declared.

    Attributes:
        name: With its schema, quoted where it has to be.
        remedy: A statement for its owner that takes the rights on it away.
    """

    name: str
    remedy: str


async def strangers_of(
    connection: AsyncConnection, known: Sequence[int], role: str
) -> list[Stranger]:
    """Return tables with a tenant in each row that a role can use, and that nothing of ours holds.

    Either they have no row-level security, or a policy lets the role in and no ``tenancy_floor``
    says how far. Whatever role it can take counts as well.

    Args:
        connection: Of any role.
        known: Numbers of the application's tables, which are judged by other means.
        role: Of tenants' sessions.
    """
    wanted: dict[str, Any] = {
        "column": TENANT_COLUMN,
        "known": [*known],
        "mark": f"{MARK}%",
        "namespace": NAMESPACE,
        "role": role,
        "roles": [role],
    }
    return [
        Stranger(
            row.name,
            f"REVOKE ALL ON {row.name} FROM PUBLIC, {', '.join(map(quote_identifier, row.roles))}",
        )
        for row in await connection.execute(_STRANGERS, wanted)
    ]
