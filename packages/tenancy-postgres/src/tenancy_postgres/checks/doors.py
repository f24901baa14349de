"""Which databases of a server let a tenant's login in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.memberships import by_membership
from tenancy_postgres.checks.words import listed, to_run
from tenancy_postgres.marks import MARK
from tenancy_postgres.quoting import quote_identifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from sqlalchemy import Row

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["connect"]

_NAME: Final = "postgres.connect"

# Who is connected by what everybody has would be locked out by the remedy.
_OPEN: Final = text(
    """
    SELECT d.datname::text AS name,
           ARRAY(
             SELECT DISTINCT r.rolname::text
               FROM pg_catalog.pg_stat_activity AS a
               JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
              WHERE a.datid = d.oid AND NOT r.rolsuper AND r.oid <> d.datdba
                AND coalesce(pg_catalog.shobj_description(r.oid, 'pg_authid'), '') NOT LIKE :mark
                AND NOT EXISTS (
                  SELECT FROM pg_catalog.aclexplode(d.datacl) AS given
                   WHERE given.privilege_type = 'CONNECT' AND given.grantee <> 0
                     AND pg_catalog.pg_has_role(r.oid, given.grantee, 'USAGE')
                )
              ORDER BY 1
           ) AS guests
      FROM pg_catalog.pg_database AS d
     WHERE d.datallowconn AND d.datconnlimit <> -2
       AND pg_catalog.has_database_privilege('public', d.oid, 'CONNECT')
     ORDER BY 1
    """
)
_FOREIGN: Final = text(
    """
    SELECT d.datname::text AS name, r.rolname::text AS role
      FROM pg_catalog.pg_database AS d
     CROSS JOIN LATERAL pg_catalog.aclexplode(d.datacl) AS given
      JOIN pg_catalog.pg_roles AS r ON r.oid = given.grantee
     WHERE given.privilege_type = 'CONNECT' AND r.rolname <> d.datname
       AND pg_catalog.shobj_description(r.oid, 'pg_authid') LIKE :mark
     ORDER BY 1, 2
    """
)
"""Tenants' roles, and the one whose members they are, where they were let in by name."""


async def connect(_tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield databases other than its own that a tenant's login can open."""
    for isolation in strategies.database:
        for alias, server in isolation.servers.items():
            if not server.address.own:
                continue
            async with server.administering() as connection:
                mark = {"mark": f"{MARK}%"}
                anybody = (await connection.execute(_OPEN, mark)).all()
                named = (await connection.execute(_FOREIGN, mark)).all()
                lent = [finding async for finding in by_membership(connection, alias)]
            if anybody:
                yield Finding(
                    _NAME,
                    Severity.WARNING,
                    f"Everybody, so every tenant's login too, may connect to these databases of "
                    f"the server {alias!r}: {listed(row.name for row in anybody)}.",
                    to_run("a superuser", _closing(anybody)),
                )
            for row in named:
                closing = (
                    f"REVOKE CONNECT ON DATABASE {quote_identifier(row.name)} FROM "
                    f"{quote_identifier(row.role)}"
                )
                yield Finding(
                    _NAME,
                    Severity.ERROR,
                    f"On the server {alias!r} the role {row.role!r} of tenants may connect to the "
                    f"database {row.name!r}, which is not its own.",
                    to_run(
                        "a superuser",
                        [closing],
                    ),
                )
            for finding in lent:
                yield finding


def _closing(rows: Iterable[Row[Any]]) -> Iterator[str]:
    """Let those in by name who are there now, then close to all others."""
    for row in rows:
        database = quote_identifier(row.name)
        if row.guests:
            guests = ", ".join(map(quote_identifier, row.guests))
            yield f"GRANT CONNECT ON DATABASE {database} TO {guests}"
        yield f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"
