"""Whether the role of tenants' sessions could step around the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

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
           r.rolcreaterole AS creates_roles, r.rolreplication AS replicates
      FROM reach JOIN pg_catalog.pg_roles AS r ON r.oid = reach.oid
     ORDER BY r.rolname
    """
)

_LIKE_SUPERUSERS: Final = frozenset(
    {"pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"}
)
"""They reach the server's files, and so its tables' (https://www.postgresql.org/docs/current/predefined-roles.html).
``pg_read_all_data`` and ``pg_write_all_data`` are held by policies."""

_ADMIN_OPTION: Final = 160_000
"""From this version on CREATEROLE gives no membership in roles that somebody else made."""


async def dangers_of(
    connection: AsyncConnection, roles: frozenset[str], owners: frozenset[str], version: int
) -> list[str]:
    """Return why policies would not hold roles, as sentences without a full stop.

    Args:
        connection: Of any role.
        roles: That of tenants' sessions, and the one that they logged in with.
        owners: Roles that own tables of tenants.
        version: The server's, such as 170010.
    """
    found = await connection.execute(_REACH, {"roles": sorted(roles)})
    return [danger for row in found for danger in _dangers(row, roles, owners, version)]


def _dangers(
    row: Row[tuple[str, bool, bool, bool, bool]],
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
    if row.name in _LIKE_SUPERUSERS:
        yield f"{who} reaches the server's files"
    if row.replicates:
        yield f"{who} has REPLICATION and can copy the whole server"
    if row.creates_roles and version < _ADMIN_OPTION:
        yield f"{who} has CREATEROLE and can become a member of any owner"
