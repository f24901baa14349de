"""What of the tenant store a role may use, as the statements of several checks ask it."""

from __future__ import annotations

from typing import Any, Final

from tenancy_core.sql.tables import NAMESPACE, tenants

__all__ = ["STORE", "STORE_NAMES", "uses_store"]

STORE_NAMES: Final[dict[str, Any]] = {"namespace": NAMESPACE, "store": tenants.name}
"""The parameters of :data:`STORE`."""

STORE: Final = """
    store AS MATERIALIZED (
      SELECT c.oid, c.relkind, n.oid AS place
        FROM pg_catalog.pg_class AS t
        JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
        JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
         AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
       WHERE n.nspname = CAST(:namespace AS text) AND t.relname = CAST(:store AS text)
    )
"""
"""Behind ``WITH``: all that is in the schema of the tenant store, keys and secrets as well. None of
it, where no table of tenants is in a schema of that name: it is somebody else's.

It is read once, however many roles are asked about: the server has no index for what a schema
holds.
"""


def uses_store(role: str) -> str:
    """Return the condition that a role has a right on something of :data:`STORE`.

    Args:
        role: An SQL expression: the number of a role, or a text with its name.
    """
    # Whoever may make triggers there runs what it likes as whoever writes, and keys that refer
    # there tell what there is. `has_table_privilege` knows nothing of rights on columns.
    return f"""
        EXISTS (
          SELECT FROM store AS s
           WHERE pg_catalog.has_schema_privilege({role}, s.place, 'USAGE')
             AND CASE WHEN s.relkind = 'S'
                      THEN pg_catalog.has_sequence_privilege(
                             {role}, s.oid, 'SELECT, UPDATE, USAGE')
                      ELSE pg_catalog.has_table_privilege(
                             {role}, s.oid, 'DELETE, TRUNCATE, TRIGGER')
                           OR pg_catalog.has_any_column_privilege(
                                {role}, s.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
                 END
        )
    """
