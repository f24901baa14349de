"""What has to be known of a server, a role and the link between, before tenants are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["ServerFacts", "facts_of"]

# Other sessions' roles are visible to everybody; the start of the server and the object id of the
# database tell whether two URLs lead to the same one, whatever poolers are on the way. As a number:
# each role may have a time zone of its own.
_FACTS: Final = text(
    """
    SELECT current_user::text AS role,
           session_user::text AS login,
           r.rolsuper AS superuser,
           r.rolbypassrls AS bypasses,
           r.rolinherit AS inherits,
           pg_catalog.pg_backend_pid() AS backend,
           d.oid::text || ' ' || (
               pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000
           )::bigint::text AS place,
           d.datname::text AS database,
           pg_catalog.current_setting('server_version_num')::int AS version
      FROM pg_catalog.pg_roles AS r, pg_catalog.pg_database AS d
     WHERE r.rolname = current_user AND d.datname = pg_catalog.current_database()
    """
)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one connection sees.

    Attributes:
        role: Its role.
        login: The role that it logged in with, which RESET ROLE goes back to.
        superuser: Whether that is a superuser.
        bypasses: Whether it bypasses row-level security.
        inherits: Whether it has the rights of the roles that it is a member of.
        pooled: Whether a pooler stands between: the process id that was announced on connecting
            is then no backend's.
        place: Equal for two connections to the same database of the same server.
        database: The database's name.
        version: Such as 170010.
    """

    role: str
    login: str
    superuser: bool
    bypasses: bool
    inherits: bool
    pooled: bool
    place: str
    database: str
    version: int


async def facts_of(connection: AsyncConnection) -> ServerFacts:
    """Ask for them."""
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    row = (await connection.execute(_FACTS)).one()
    return ServerFacts(
        role=row.role,
        login=row.login,
        superuser=row.superuser,
        bypasses=row.bypasses,
        inherits=row.inherits,
        pooled=driver.get_server_pid() != row.backend,
        place=row.place,
        database=row.database,
        version=row.version,
    )
