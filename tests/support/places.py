"""What tenancy has made on a PostgreSQL server: databases, roles, who is a member of what."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from support.waiting import WITHIN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from support.services.databases import PostgresDatabase

_DATABASES = """
    SELECT datname::text, datallowconn, datconnlimit, datacl::text,
           pg_catalog.shobj_description(oid, 'pg_database')
      FROM pg_catalog.pg_database WHERE pg_catalog.pg_get_userbyid(datdba) = $1
"""
_ROLES = """
    SELECT rolname::text, rolcanlogin, rolinherit, rolcreatedb OR rolcreaterole OR rolsuper,
           pg_catalog.shobj_description(oid, 'pg_authid')
      FROM pg_catalog.pg_roles AS r
     WHERE rolname = $1 || '_tenants'
        OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS m
                    WHERE m.member = r.oid AND r.rolname <> $1
                      AND pg_catalog.pg_get_userbyid(m.roleid) = $1 || '_tenants')
"""
_MEMBERS = """
    SELECT DISTINCT m.roleid::regrole::text, m.member::regrole::text, m.admin_option
      FROM pg_catalog.pg_auth_members AS m
     WHERE m.roleid::regrole::text LIKE '%\\_tenants'
        OR pg_catalog.pg_get_userbyid(m.member) = $1
"""
_OF_NOTHING = """
    SELECT description FROM pg_catalog.pg_shdescription AS s
     WHERE description LIKE 'tenancy %'
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_database WHERE oid = s.objoid)
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_authid WHERE oid = s.objoid)
"""


async def places(database: PostgresDatabase) -> dict[str, list[tuple[Any, ...]]]:
    """Everything on the server that the control role made, and what is said of it."""
    assert not await database.fetch(_OF_NOTHING)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for what, query in (("databases", _DATABASES), ("roles", _ROLES)):
        found[what] = sorted(await database.fetch(query, database.control), key=str)
    names = {str(role) for role, *_ in found["roles"]}
    members = await database.fetch(_MEMBERS, database.control)
    found["members"] = sorted(
        (row for row in members if row[0].strip('"') in names),
        key=str,
    )
    return found


@asynccontextmanager
async def connected(database: PostgresDatabase, name: str) -> AsyncGenerator[asyncpg.Connection]:
    """Be connected to any database of the server, as the superuser."""
    server = database.server
    connection = await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        database=name,
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=60)


async def until_seen(
    connection: asyncpg.Connection, query: str, *values: Any, gone: bool = False
) -> None:
    """Wait until a query has a value that is true, or none any more; fail if it never is so."""
    async with asyncio.timeout(WITHIN):
        while bool(await connection.fetchval(query, *values)) is gone:
            await asyncio.sleep(0.005)
