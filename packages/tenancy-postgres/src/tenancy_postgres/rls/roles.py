"""Whether the role of tenants' sessions could step around the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from tenancy_core.sql.tables import NAMESPACE, tenants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["dangers_of"]

# Every membership counts, inherited or not: SET ROLE makes use of it, and ADMIN can change it.
_REACH: Final = text(
    """
    WITH RECURSIVE reach AS (
      SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY (CAST(:roles AS text[]))
      UNION
      SELECT m.roleid FROM reach AS r JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
    )
    SELECT r.rolname::text AS name, r.rolsuper AS superuser, r.rolbypassrls AS bypasses,
           r.rolcreaterole AS creates_roles, r.rolreplication AS replicates,
           d.datdba = r.oid AS owns_database,
           EXISTS (
             SELECT FROM pg_catalog.pg_class AS c
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
              WHERE n.nspname = CAST(:namespace AS text) AND c.relname = CAST(:store AS text)
                AND pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
                AND pg_catalog.has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE')
           ) AS reads_store
      FROM reach JOIN pg_catalog.pg_roles AS r ON r.oid = reach.oid
      JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
     ORDER BY r.rolname
    """
)

_PRESET: Final = text(
    """
    SELECT DISTINCT coalesce('role ' || r.rolname, 'database ' || d.datname, 'every role') AS place
      FROM pg_catalog.pg_db_role_setting AS s
      LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
      LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
     WHERE (s.setrole = 0 OR r.rolname = ANY (CAST(:roles AS text[])))
       AND (s.setdatabase = 0 OR d.datname = pg_catalog.current_database())
       AND EXISTS (
         SELECT FROM pg_catalog.unnest(s.setconfig) AS line
          WHERE pg_catalog.starts_with(line, CAST(:setting AS text) || '=')
       )
     ORDER BY 1
    """
)

_LIKE_SUPERUSERS: Final = {
    **dict.fromkeys(
        ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"),
        "reaches the server's files",
    ),
    "pg_read_all_data": "reads statistics of all tenants' rows, passwords and the tenant store",
    "pg_write_all_data": "writes to the tenant store, and to whatever has no policies",
}
"""What they do that no policy restrains
(https://www.postgresql.org/docs/current/predefined-roles.html)."""

_ADMIN_OPTION: Final = 160_000
"""From this version on CREATEROLE gives no membership in roles that somebody else made."""


async def dangers_of(
    connection: AsyncConnection,
    roles: frozenset[str],
    owners: frozenset[str],
    version: int,
    setting: str,
) -> list[str]:
    """Return why policies would not hold roles, as sentences without a full stop.

    Args:
        connection: Of any role.
        roles: That of tenants' sessions, and the one that they logged in with.
        owners: Roles that own tables of tenants, or the schemas that these are in.
        version: The server's, such as 170010.
        setting: The configuration's ``rls_setting``.
    """
    wanted = {
        "roles": sorted(roles),
        "store": tenants.name,
        "namespace": NAMESPACE,
    }
    found = await connection.execute(_REACH, wanted)
    dangers = [danger for row in found for danger in _dangers(row, roles, owners, version)]
    preset = await connection.execute(_PRESET, {"roles": sorted(roles), "setting": setting})
    dangers += [
        f"it is a tenant without being told: {setting} is set for {place}"
        for place in preset.scalars()
    ]
    return dangers


def _dangers(
    row: Row[tuple[str, bool, bool, bool, bool, bool, bool]],
    roles: frozenset[str],
    owners: frozenset[str],
    version: int,
) -> Iterator[str]:
    who = "it" if row.name in roles else f"it is a member of {row.name!r}, which"
    if row.superuser:
        yield f"{who} is a superuser"
    elif row.bypasses:
        yield f"{who} has BYPASSRLS"
    if row.name in owners:
        yield f"{who} owns tables of tenants and can switch row-level security off"
    if row.owns_database:
        yield f"{who} owns the database, and can drop what is in it"
    if row.name in _LIKE_SUPERUSERS:
        yield f"{who} {_LIKE_SUPERUSERS[row.name]}"
    elif row.reads_store and not row.superuser:
        yield f"{who} has rights on the tenant store"
    if row.replicates:
        yield f"{who} has REPLICATION and can copy the whole server"
    if row.creates_roles and version < _ADMIN_OPTION:
        yield f"{who} has CREATEROLE and can become a member of any owner"
