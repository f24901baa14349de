"""Keys of live tables that reach across tenants, which no row policy prevents.

:mod:`tenancy_core.sql.flaws` reads what the application declares. Tables that were there before, or
that somebody changed by hand, can have others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import UniqueConstraint, text

from tenancy_core.sql.scoped import is_global
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.rls.reachable import REACHABLE
from tenancy_postgres.rls.referring import referring_keys_of
from tenancy_postgres.rls.remaking import remade_foreign_key, remade_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Row, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["OpenKey", "loose_keys_of", "open_keys_of"]


class OpenKey(NamedTuple):
    """A key that does not hold the tenant.

    Attributes:
        sentence: What it lets through, without a full stop.
        remedies: Statements that make it anew, with the tenant.
    """

    sentence: str
    remedies: Sequence[str]


_SCOPED: Final = """
    scoped AS (
      SELECT s.oid::oid AS oid, a.attnum
        FROM unnest(CAST(:relations AS bigint[]), CAST(:columns AS text[])) AS s (oid, name)
        JOIN pg_catalog.pg_attribute AS a
          ON a.attrelid = s.oid::oid AND a.attname = CAST(s.name AS name) AND NOT a.attisdropped
    )
"""
_UNIQUE: Final = text(
    f"""
    WITH {_SCOPED}
    SELECT i.indrelid::bigint AS relation, c.relname::text AS name,
           i.indisexclusion AS is_exclusion,
           pg_catalog.format('%I.%I', n.nspname, t.relname) AS holder,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS index,
           pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
           pg_catalog.pg_get_constraintdef(k.oid) AS body,
           ARRAY(
             SELECT a.attname::text
               FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = i.indrelid AND a.attnum = ANY (keys.numbers)
              ORDER BY 1
           ) AS columns
      FROM scoped AS s
      JOIN pg_catalog.pg_index AS i ON i.indrelid = s.oid
      JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
      JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
      LEFT JOIN pg_catalog.pg_constraint AS k
        ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
     CROSS JOIN LATERAL (
       SELECT (CAST(i.indkey AS smallint[]))[0:i.indnkeyatts - 1] AS numbers
     ) AS keys
     WHERE (i.indisunique OR i.indisexclusion) AND s.attnum <> ALL (keys.numbers)
     ORDER BY 1, 2
    """  # noqa: S608 - constants
)
# A key of a partition repeats that of its table.
_FOREIGN: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, {_SCOPED}
    SELECT k.conrelid::bigint AS relation, k.conname::text AS name,
           pg_catalog.format('%I.%I', n.nspname, r.relname) AS target,
           pg_catalog.format('%I.%I', own.nspname, t.relname) AS holder,
           pg_catalog.pg_get_constraintdef(k.oid) AS body, there.name AS referred,
           other.oid IS NOT NULL AS is_scoped,
           ARRAY(
             SELECT pair.number FROM unnest(k.conkey, k.confkey) AS pair (number, referred)
              WHERE pair.number = s.attnum AND pair.referred = other.attnum
           ) <> '{{}}' AS holds_tenant,
           given.followed, given.roles
      FROM scoped AS s
      JOIN pg_catalog.pg_constraint AS k
        ON k.conrelid = s.oid AND k.contype = 'f' AND k.conparentid = 0
      JOIN pg_catalog.pg_class AS r ON r.oid = k.confrelid
      JOIN pg_catalog.pg_namespace AS n ON n.oid = r.relnamespace
      JOIN pg_catalog.pg_class AS t ON t.oid = k.conrelid
      JOIN pg_catalog.pg_namespace AS own ON own.oid = t.relnamespace
      LEFT JOIN scoped AS other ON other.oid = k.confrelid
      LEFT JOIN LATERAL (
        SELECT pg_catalog.format('%I', a.attname) AS name FROM pg_catalog.pg_attribute AS a
         WHERE a.attrelid = other.oid AND a.attnum = other.attnum
      ) AS there ON true
     CROSS JOIN LATERAL (
       SELECT pg_catalog.array_agg(DISTINCT done.word) AS followed,
              pg_catalog.array_agg(DISTINCT o.rolname::text) AS roles
         FROM (VALUES ('DELETE', k.confdeltype), ('UPDATE', k.confupdtype)) AS done (word, how)
        CROSS JOIN reachable JOIN pg_catalog.pg_roles AS o ON o.oid = reachable.oid
        WHERE done.how IN ('c', 'n', 'd') AND other.oid IS NULL
          AND (pg_catalog.has_table_privilege(o.oid, r.oid, done.word)
               OR (done.word = 'UPDATE' AND pg_catalog.has_any_column_privilege(
                     o.oid, r.oid, done.word)))
     ) AS given
     ORDER BY 1, 2
    """  # noqa: S608 - constants
)
_LOOSE: Final = text(
    f"""
    WITH {_SCOPED}
    SELECT i.indrelid::bigint AS relation, c.relname::text AS name, i.indisprimary AS is_primary,
           false AS is_exclusion,
           pg_catalog.format('%I.%I', n.nspname, t.relname) AS holder,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS index,
           pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
           pg_catalog.pg_get_constraintdef(k.oid) AS body,
           ARRAY(
             SELECT a.attname::text
               FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = i.indrelid
                AND a.attnum = ANY ((CAST(i.indkey AS smallint[]))[0:i.indnkeyatts - 1])
              ORDER BY 1
           ) AS columns
      FROM scoped AS s
      JOIN pg_catalog.pg_index AS i ON i.indrelid = s.oid
      JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
      JOIN pg_catalog.pg_am AS m ON m.oid = c.relam AND m.amname = 'btree'
      JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
      JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
      LEFT JOIN pg_catalog.pg_constraint AS k
        ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
     WHERE i.indkey[0] <> s.attnum AND NOT i.indisexclusion
       -- One of a partition is made with that of its table.
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = c.oid)
       AND NOT (
         i.indisunique
         AND s.attnum <> ALL ((CAST(i.indkey AS smallint[]))[0:i.indnkeyatts - 1])
       )
     ORDER BY 1, 2
    """  # noqa: S608 - constants
)


async def open_keys_of(
    connection: AsyncConnection, scoped: Mapping[int, tuple[Table, str]], role: str
) -> dict[int, list[OpenKey]]:
    """Return keys of live tables that let something through.

    Args:
        connection: Of any role.
        scoped: By the number of a table or partition: what it belongs to among the application's
            tables, and the name of the tenant's column.
        role: Of tenants' sessions.

    Returns:
        By the same numbers; one is missing where there is nothing to say.
    """
    wanted = _wanted(scoped)
    found: dict[int, list[OpenKey]] = {}
    for row in await connection.execute(_UNIQUE, wanted):
        if not _is_meant(scoped[row.relation][0], row):
            kind = "exclusion" if row.is_exclusion else "unique key"
            key = OpenKey(
                f"the {kind} {row.name} does not hold the tenant, so one tenant can find out what "
                "another has",
                remade_index(row, scoped[row.relation][1]),
            )
            found.setdefault(row.relation, []).append(key)
    for row in await connection.execute(_FOREIGN, {**wanted, "roles": [role]}):
        for key in _reaching(row, scoped[row.relation][1]):
            found.setdefault(row.relation, []).append(key)
    for other in await referring_keys_of(connection, wanted, role):
        found.setdefault(other.relation, []).append(OpenKey(other.sentence, other.remedies))
    return found


async def loose_keys_of(
    connection: AsyncConnection, scoped: Mapping[int, tuple[Table, str]]
) -> dict[int, list[OpenKey]]:
    """Return indexes that do not begin with the tenant: a query of one reads through all others'.

    Args:
        connection: Of any role.
        scoped: As for :func:`open_keys_of`.

    Returns:
        By the same numbers. Those that :func:`open_keys_of` returns are not among them.
    """
    found: dict[int, list[OpenKey]] = {}
    for row in await connection.execute(_LOOSE, _wanted(scoped)):
        if _is_meant(scoped[row.relation][0], row):
            continue
        kind = "the primary key" if row.is_primary else "the index"
        key = OpenKey(
            f"{kind} {row.name} does not begin with the tenant",
            remade_index(row, scoped[row.relation][1]),
        )
        found.setdefault(row.relation, []).append(key)
    return found


def _wanted(scoped: Mapping[int, tuple[Table, str]]) -> dict[str, Any]:
    return {"relations": [*scoped], "columns": [column for _, column in scoped.values()]}


def _is_meant(table: Table, row: Row[Any]) -> bool:
    """Whether the application declares a key to hold across tenants: by its name or its columns."""
    constraints: list[Any] = [
        one for one in table.constraints if isinstance(one, UniqueConstraint) or _excludes(one)
    ]
    return any(
        is_global(one) and (str(one.name) == row.name or _columns(one) == row.columns)
        for one in [*constraints, *table.indexes]
    )


def _excludes(constraint: Any) -> bool:  # noqa: ANN401 - any constraint
    return bool(constraint.__visit_name__ == "exclude_constraint")


def _columns(item: Any) -> Sequence[str]:  # noqa: ANN401 - of several kinds
    return sorted(column.name for column in item.columns)


def _reaching(row: Row[Any], column: str) -> Iterator[OpenKey]:
    if row.is_scoped and not row.holds_tenant:
        yield OpenKey(
            f"the foreign key {row.name} to {row.target} does not hold the tenant on both sides, "
            "so what one tenant deletes could take another's rows along",
            remade_foreign_key(row, column),
        )
    if row.followed:
        names = " and ".join(map(repr, row.roles))
        grantees = ", ".join(["PUBLIC", *map(quote_identifier, row.roles)])
        yield OpenKey(
            f"the foreign key {row.name} follows what is done to {row.target}, where the role "
            f"{names} has the right {' and '.join(row.followed)}: one tenant could change what "
            "others have",
            [f"REVOKE {', '.join(row.followed)} ON {row.target} FROM {grantees}"],
        )
