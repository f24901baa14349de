"""What a server, a database and a role take, beside what processes may open."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = [
    "Need",
    "beyond_database",
    "beyond_pooler",
    "beyond_role",
    "beyond_server",
    "limits_of",
    "need_of",
]

_NAME: Final = "postgres.connections"
_WORKERS: Final = "WEB_CONCURRENCY"
_LEAST: Final = 2
"""The smallest ceiling that there is."""

# reserved_connections came with PostgreSQL 16. Limits do not hold superusers.
_LIMITS: Final = text(
    """
    SELECT pg_catalog.current_setting('max_connections')::int AS most,
           pg_catalog.current_setting('superuser_reserved_connections')::int
             + coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0)
             AS reserved,
           d.datname::text AS database, d.datconnlimit AS database_limit,
           CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END AS role_limit
      FROM pg_catalog.pg_database AS d
      LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = CAST(:role AS text)
     WHERE d.datname = pg_catalog.current_database()
    """
)


@dataclass(frozen=True, slots=True)
class Need:
    """What processes may open.

    Attributes:
        ceiling: Of one.
        workers: How many there are, as far as anybody said.
        told: Whether anybody did.
    """

    ceiling: int
    workers: int
    told: bool

    @property
    def all(self) -> int:
        """Of all processes together."""
        return self.ceiling * self.workers

    def at_most(self, ceiling: int) -> Need:
        """Return what they open where one opens so many, unless its ceiling is lower."""
        return replace(self, ceiling=min(self.ceiling, ceiling))

    def __str__(self) -> str:
        if not self.told:
            return f"One process opens up to {self.ceiling} connections"
        return f"{self.workers} processes open up to {self.all} connections"


def need_of(tenancy: Any) -> Need:  # noqa: ANN401 - as Check says
    """Return what the processes of a service may open together."""
    given = tenancy.config.section("postgres", PostgresSettings).workers
    said = os.environ.get(_WORKERS, "")
    if given is None and said.isdecimal() and int(said) > 0:
        given = int(said)
    return Need(tenancy.config.connection_ceiling, given or 1, given is not None)


async def limits_of(connection: AsyncConnection, role: str | None) -> Row[Any]:
    """Ask for the limits of a server, of the connection's database, and of a role if one is named.

    Args:
        connection: Of any role.
        role: A name; its ``role_limit`` is None where there is no such role.
    """
    return (await connection.execute(_LIMITS, {"role": role})).one()


def beyond_pooler(need: Need, setting: str) -> Finding:
    """Return what is to be known of a pooler, which does not say how many it takes.

    Args:
        need: Of processes.
        setting: Leads to it.
    """
    return Finding(
        _NAME,
        Severity.INFO,
        f"{need} to the pooler of {setting}, which does not say how many it takes.",
        f"max_client_conn in pgbouncer.ini has to be at least {need.all}, and more for other "
        "services and while you deploy. What it opens to the server is default_pool_size for each "
        "role and database.",
    )


def beyond_server(need: Need, limits: Row[Any], where: str) -> Iterator[Finding]:
    """Yield that the server takes fewer.

    Args:
        need: Of processes.
        limits: As :func:`limits_of` returns them.
        where: What the server is called.
    """
    usable = limits.most - limits.reserved
    if need.all > usable:
        yield _too_many(need, usable, f"{where} has {usable} for roles that are no superusers")
    elif not need.told and 2 * need.ceiling > usable:
        yield Finding(
            _NAME,
            Severity.INFO,
            f"{need}, and {where} has {usable}: a second process would not have all of its own. "
            "How many there are is not known.",
            f"Set TENANCY_POSTGRES_WORKERS, or {_WORKERS}, to the processes of this service on all "
            "machines.",
        )


def beyond_database(need: Need, limits: Row[Any]) -> Iterator[Finding]:
    """Yield that the database takes fewer; the arguments are those of :func:`beyond_server`."""
    if 0 <= limits.database_limit < need.all:
        what = f"the database {limits.database!r} is limited to {limits.database_limit}"
        line = f"ALTER DATABASE {quote_identifier(limits.database)} CONNECTION LIMIT {need.all}"
        yield _limited(need, what, line)


def beyond_role(need: Need, limits: Row[Any], role: str, of: str = "") -> Iterator[Finding]:
    """Yield that the role may have fewer.

    Args:
        need: Of processes.
        limits: Of that role, as :func:`limits_of` returns them.
        role: Its name.
        of: The settings that name it; nothing for that of tenants' sessions.
    """
    if limits.role_limit is not None and 0 <= limits.role_limit < need.all:
        whose = f" of {of}" if of else ""
        what = f"the role {role!r}{whose} is limited to {limits.role_limit}"
        yield _limited(
            need, what, f"ALTER ROLE {quote_identifier(role)} CONNECTION LIMIT {need.all}"
        )


def _too_many(need: Need, usable: int, what: str) -> Finding:
    fits = usable // need.workers
    smaller = (
        f"Set TENANCY_MAX_DATABASE_CONNECTIONS={fits}, or less"
        if fits >= _LEAST
        else "Start fewer processes"
    )
    return Finding(
        _NAME,
        Severity.WARNING,
        f"{need}, and {what}. {_others(need)}",
        f"{smaller}; or raise max_connections in postgresql.conf, and restart the server; or put a "
        "pooler in between.",
    )


def _limited(need: Need, what: str, line: str) -> Finding:
    return Finding(
        _NAME,
        Severity.WARNING,
        f"{need}, and {what}. {_others(need)}",
        to_run("a superuser", [line]),
    )


def _others(need: Need) -> str:
    counted = "" if need.told else f" Set TENANCY_POSTGRES_WORKERS, or {_WORKERS}."
    return (
        "Processes on other machines, of other services and of the last deployment count as "
        f"well.{counted}"
    )
