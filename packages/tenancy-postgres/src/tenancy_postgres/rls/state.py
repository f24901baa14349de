"""What a live database says about tables: whether they are there, and what protects them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_postgres.rls.held import has_floor, is_let_in
from tenancy_postgres.rls.reachable import REACHABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["PUBLIC", "PolicyState", "TableState", "states_of"]

PUBLIC: Final = ""
"""Stands for everybody among the roles of a policy. No role has this name."""

# A name without a schema is looked up as a statement would: in the search path of this role.
# Partitions and other children come with their table, for they can be read by their own names.
_TABLES: Final = text(
    f"""
    WITH RECURSIVE {REACHABLE}, wanted AS (
      SELECT w.number, (
        SELECT c.oid
          FROM pg_catalog.pg_class AS c
          JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
          LEFT JOIN pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY
            AS p (name, position) ON p.name = n.nspname
         -- Cut to 63 bytes, as the server does with names in statements.
         WHERE c.relname = CAST(w.name AS name)
           AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
           AND (n.nspname = CAST(w.schema AS name) OR (w.schema IS NULL AND p.name IS NOT NULL))
         ORDER BY p.position
         LIMIT 1
      ) AS oid
      FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])) WITH ORDINALITY
        AS w (schema, name, number)
    ), family AS (
      -- Down to those whose rows it shows, and up to those that show its own.
      SELECT number, oid, true AS is_parent, 0 AS way FROM wanted WHERE oid IS NOT NULL
      UNION
      SELECT f.number, CASE WHEN i.inhparent = f.oid THEN i.inhrelid ELSE i.inhparent END, false,
             CASE WHEN i.inhparent = f.oid THEN -1 ELSE 1 END
        FROM family AS f
        JOIN pg_catalog.pg_inherits AS i
          ON (f.way <= 0 AND i.inhparent = f.oid) OR (f.way >= 0 AND i.inhrelid = f.oid)
    )
    SELECT f.number::int - 1 AS number, f.is_parent, c.oid::bigint AS oid,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
           c.relkind IN ('r', 'p') AS is_table,
           c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced,
           pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
           pg_catalog.pg_get_userbyid(n.nspowner)::text AS schema_owner,
           -- Rules run as the owner, and FORCE does not hold such a one; nor does it one whom a
           -- policy lets in that nothing of ours is below.
           ARRAY(
             SELECT r.rulename::text
               FROM pg_catalog.pg_rewrite AS r
               JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
              WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'
                AND (o.rolsuper OR o.rolbypassrls
                     OR EXISTS (
                          SELECT FROM family AS g
                           WHERE {is_let_in("g.oid", "o.oid")}
                             AND NOT {has_floor("g.oid", "o.oid")}
                        ))
              ORDER BY 1
           ) AS rules,
           given.privileges, given.grantees
      FROM family AS f
      JOIN pg_catalog.pg_class AS c ON c.oid = f.oid
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     CROSS JOIN LATERAL (
       SELECT pg_catalog.array_agg(DISTINCT g.privilege_type) AS privileges,
              pg_catalog.array_agg(DISTINCT coalesce(o.rolname::text, '')) AS grantees
         FROM (
           SELECT a.grantee, a.privilege_type FROM pg_catalog.aclexplode(c.relacl) AS a
           UNION
           SELECT a.grantee, a.privilege_type
             FROM pg_catalog.pg_attribute AS t
            CROSS JOIN LATERAL pg_catalog.aclexplode(t.attacl) AS a
            WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL
         ) AS g
         LEFT JOIN pg_catalog.pg_roles AS o ON o.oid = g.grantee
        WHERE g.privilege_type = ANY (CAST(:privileges AS text[]))
          AND (g.grantee = 0 OR g.grantee IN (SELECT oid FROM reachable))
          -- Whoever can become the owner has them all, and is another finding.
          AND NOT pg_catalog.pg_has_role(CAST(:role AS text), c.relowner, 'MEMBER')
     ) AS given
     ORDER BY f.number, f.is_parent DESC, name
    """  # noqa: S608 - constants
)
_POLICIES: Final = text(
    """
    SELECT p.polrelid::bigint AS relation, p.polname::text AS name,
           p.polpermissive AS permissive, p.polcmd = '*' AS for_all,
           ARRAY(
             SELECT coalesce(r.rolname::text, '')
               FROM pg_catalog.unnest(p.polroles) AS held (oid)
               LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = held.oid
           ) AS roles,
           ARRAY(
             SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
              WHERE r.oid = ANY (p.polroles)
                AND pg_catalog.pg_has_role(CAST(:role AS text), r.oid, 'MEMBER')
           ) AS reachable,
           pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS reads,
           pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS writes
      FROM pg_catalog.pg_policy AS p
     WHERE p.polrelid = ANY (CAST(CAST(:relations AS bigint[]) AS oid[]))
     ORDER BY p.polrelid, p.polname
    """
)

_SEARCH_PATH: Final = text("SELECT pg_catalog.current_setting('search_path')")
_SET_SEARCH_PATH: Final = text("SELECT pg_catalog.set_config('search_path', :path, true)")

_UNRESTRAINED: Final = ("TRUNCATE", "REFERENCES", "TRIGGER")
"""Rights on a table that row policies do not restrain."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as it is.

    Attributes:
        name: Its name.
        permissive: Whether it lets in; else it keeps out.
        for_all: Whether it holds for every command.
        roles: For whom; :data:`PUBLIC` is everybody.
        reachable: Those of them that the role of tenants' sessions is, or can become.
        reads: ``USING``, as the server prints it.
        writes: ``WITH CHECK``, likewise; None where there is none.
    """

    name: str
    permissive: bool
    for_all: bool
    roles: frozenset[str]
    reachable: frozenset[str]
    reads: str | None
    writes: str | None


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as it is.

    Attributes:
        name: With its schema, quoted where it has to be.
        is_parent: Whether it is the table that was asked for; else a partition or child of it.
        is_table: Whether it is a table at all, and no view.
        enabled: Whether it has row-level security.
        forced: Whether its owner has it as well.
        oid: Its number.
        owner: The role that can switch it off.
        schema_owner: The role that can drop it.
        rules: Those that run as an owner whom no policy holds.
        privileges: Rights of the role, and of those that it can take, that no policy restrains.
        grantees: To whom they were given; :data:`PUBLIC` is everybody.
        policies: By name.
    """

    oid: int
    name: str
    is_parent: bool
    is_table: bool
    enabled: bool
    forced: bool
    owner: str
    schema_owner: str
    rules: tuple[str, ...]
    privileges: tuple[str, ...]
    grantees: frozenset[str]
    policies: dict[str, PolicyState] = field(default_factory=dict[str, PolicyState])


async def states_of(
    connection: AsyncConnection, tables: Sequence[Table], role: str
) -> list[list[TableState]]:
    """Return for each table how it is, and behind it how its partitions and children are.

    Args:
        connection: Of any role; names without a schema are looked up in its search path.
        tables: Those of the application.
        role: Of tenants' sessions.

    Returns:
        As many lists as there are tables; one is empty where the table is not there.
    """
    wanted = {
        "schemas": [table.schema for table in tables],
        "names": [table.name for table in tables],
        "role": role,
        "roles": [role],
        "privileges": list(_UNRESTRAINED),
    }
    found = (await connection.execute(_TABLES, wanted)).all()
    relations = {"relations": sorted({row.oid for row in found}), "role": role}
    policies: dict[int, dict[str, PolicyState]] = {}
    for row in await _policies(connection, relations):
        policies.setdefault(row.relation, {})[row.name] = PolicyState(
            name=row.name,
            permissive=row.permissive,
            for_all=row.for_all,
            roles=frozenset(row.roles),
            reachable=frozenset(row.reachable),
            reads=row.reads,
            writes=row.writes,
        )
    states = [list[TableState]() for _ in tables]
    for row in found:
        number: int = row.number
        state = TableState(
            oid=row.oid,
            name=row.name,
            is_parent=row.is_parent,
            is_table=row.is_table,
            enabled=row.enabled,
            forced=row.forced,
            owner=row.owner,
            schema_owner=row.schema_owner,
            rules=tuple(row.rules),
            privileges=tuple(one for one in _UNRESTRAINED if one in (row.privileges or ())),
            grantees=frozenset(row.grantees or ()),
            policies=policies.get(row.oid, {}),
        )
        states[number].append(state)
    return states


async def _policies(connection: AsyncConnection, wanted: dict[str, Any]) -> Sequence[Row[Any]]:
    """Read policies as they are printed where nothing but the server's own needs no schema.

    Another role's search path could make a function of somebody's look like the server's.
    """
    path = (await connection.execute(_SEARCH_PATH)).scalar_one()
    await connection.execute(_SET_SEARCH_PATH, {"path": "pg_catalog"})
    found = (await connection.execute(_POLICIES, wanted)).all()
    await connection.execute(_SET_SEARCH_PATH, {"path": path})
    return found
