"""Tables with a tenant's column that nobody declared and nothing protects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.sql.scoped import TENANT_COLUMN
from tenancy_core.sql.tables import NAMESPACE
from tenancy_postgres.marks import MARK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["strangers_of"]

# Views are another finding. The tenant store is nobody's but its own role's. In a tenant's own
# schema, which the strategy `schema` has marked, the column parts nobody from anybody.
_STRANGERS: Final = text(
    """
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
      FROM pg_catalog.pg_attribute AS a
      JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f')
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     WHERE a.attname = CAST(:column AS name) AND NOT a.attisdropped
       AND NOT c.relrowsecurity AND c.relpersistence <> 't'
       AND c.oid <> ALL (CAST(CAST(:known AS bigint[]) AS oid[]))
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', CAST(:namespace AS text))
       AND coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), '') NOT LIKE :mark
       AND pg_catalog.has_schema_privilege(CAST(:role AS text), n.oid, 'USAGE')
       AND (
         pg_catalog.has_table_privilege(CAST(:role AS text), c.oid, 'DELETE')
         OR pg_catalog.has_any_column_privilege(
              CAST(:role AS text), c.oid, 'SELECT, INSERT, UPDATE')
       )
     ORDER BY 1
    """
)


async def strangers_of(connection: AsyncConnection, known: Sequence[int], role: str) -> list[str]:
    """Return tables that the role can use, with a tenant in each row and without policies.

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
    }
    return [*(await connection.execute(_STRANGERS, wanted)).scalars()]
