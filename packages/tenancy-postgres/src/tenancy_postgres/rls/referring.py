"""Foreign keys that refer to tenants' tables from others: whoever writes there asks for keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text

from tenancy_core.sql.scoped import TENANT_COLUMN
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.held import has_floor, is_let_in, is_not_asked
from tenancy_postgres.rls.reachable import REACHABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["Referring", "referring_keys_of"]


class Referring(NamedTuple):
    """A foreign key that tells which keys a tenants' table holds.

    Attributes:
        relation: The number of the tenants' table.
        sentence: What it tells, without a full stop.
        remedies: Statements that take the right to ask away.
    """

    relation: int
    sentence: str
    remedies: Sequence[str]


# The server compares with all tenants' rows: who may write the key learns whether it is there. One
# that holds the tenant on both sides tells nothing, where the floor lets nobody write another one.
_REFERRING: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, scoped AS (
      SELECT s.oid::oid AS oid, a.attnum
        FROM unnest(CAST(:relations AS bigint[]), CAST(:columns AS text[])) AS s (oid, name)
        JOIN pg_catalog.pg_attribute AS a
          ON a.attrelid = s.oid::oid AND a.attname = CAST(s.name AS name) AND NOT a.attisdropped
    ), referring AS MATERIALIZED (
      SELECT s.oid AS relation, k.conname, k.conrelid, k.conkey, c.relowner,
             pg_catalog.format('%I.%I', n.nspname, c.relname) AS holder,
             c.relrowsecurity, c.relforcerowsecurity,
             EXISTS (
               SELECT FROM unnest(k.conkey, k.confkey) AS pair (number, referred)
                 JOIN pg_catalog.pg_attribute AS a
                   ON a.attrelid = k.conrelid AND a.attnum = pair.number
                WHERE pair.referred = s.attnum AND a.attname = CAST(:tenant AS name)
             ) AS holds_tenant
        FROM scoped AS s
        JOIN pg_catalog.pg_constraint AS k
          ON k.confrelid = s.oid AND k.contype = 'f' AND k.conparentid = 0
        JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
       WHERE k.conrelid NOT IN (SELECT oid FROM scoped)
    ), asking AS (
      SELECT k.relation, k.conname, k.holder, o.rolname
        FROM referring AS k
        JOIN reachable AS r
          ON pg_catalog.has_any_column_privilege(r.oid, k.conrelid, 'INSERT')
          OR EXISTS (
               SELECT FROM unnest(k.conkey) AS key (number)
                WHERE pg_catalog.has_column_privilege(r.oid, k.conrelid, key.number, 'UPDATE')
             )
        JOIN pg_catalog.pg_roles AS o ON o.oid = r.oid
       WHERE o.rolbypassrls
          OR {is_not_asked("k", "r.oid")}
          OR ({is_let_in("k.conrelid", "r.oid")}
              AND NOT (k.holds_tenant AND {has_floor("k.conrelid", "r.oid")}))
    )
    SELECT relation::bigint AS relation, conname::text AS name, holder,
           pg_catalog.array_agg(rolname::text ORDER BY rolname) AS roles
      FROM asking
     GROUP BY relation, conname, holder
     ORDER BY 1, 3, 2
    """  # noqa: S608 - constants
)


async def referring_keys_of(
    connection: AsyncConnection, wanted: dict[str, Any], role: str
) -> list[Referring]:
    """Return foreign keys from tables that tenants are not in to those that they are in.

    Args:
        connection: Of any role.
        wanted: ``relations``, the numbers of tenants' tables and partitions, and ``columns``, the
            tenant's in each.
        role: Of tenants' sessions.
    """
    names = {"roles": [role], "tenant": TENANT_COLUMN}
    return [
        Referring(
            row.relation,
            f"the foreign key {row.name} of {row.holder}, to which {_listed(row.roles, role)} may "
            "write, refers to it: one tenant can find out which keys another has",
            [
                f"REVOKE INSERT, UPDATE ON {row.holder} FROM PUBLIC, "
                + ", ".join(map(quote_identifier, row.roles))
            ],
        )
        for row in await connection.execute(_REFERRING, {**wanted, **names})
    ]


def _listed(roles: Sequence[str], own: str) -> str:
    others = [f"{name!r}, whom it can become," for name in roles if name != own]
    return f"the role {own!r}" if own in roles else " and ".join(others)
