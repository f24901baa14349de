"""Whether the server has room for all connections that processes may open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.sql.postgres import is_pooled
from tenancy_postgres.checks.sessions import sessions_of
from tenancy_postgres.checks.words import to_run
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["judge"]

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
class _Need:
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

    def __str__(self) -> str:
        if not self.told:
            return f"One process opens up to {self.ceiling} connections"
        return f"{self.workers} processes open up to {self.all} connections"


async def judge(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield where processes times ceiling is more than the server, or a role, may have."""
    need = _need(tenancy)
    pooled: set[str] = set()
    async for setting, opens in sessions_of(tenancy, strategies):
        async with opens() as connection:
            if await is_pooled(connection):
                pooled.add(setting)
                yield _pooled(need, setting)
    for isolation in strategies.shared:
        if "TENANCY_DATABASE_URL" in pooled:
            continue
        facts = isolation.tenants
        async with isolation.administering() as connection:
            limits = await _limits(connection, facts.role)
        for finding in _judge(need, limits, "this server", facts.role):
            yield finding
    for database in strategies.database:
        for alias, server in database.servers.items():
            if server.address.setting in pooled:
                continue
            name = None if server.address.own else server.address.url.username
            async with server.administering() as connection:
                limits = await _limits(connection, name)
            for finding in _judge(need, limits, f"the server {alias!r}", name):
                yield finding


def _need(tenancy: Any) -> _Need:  # noqa: ANN401 - as Check says
    given = tenancy.config.section("postgres", PostgresSettings).workers
    said = os.environ.get(_WORKERS, "")
    if given is None and said.isdecimal() and int(said) > 0:
        given = int(said)
    return _Need(tenancy.config.connection_ceiling, given or 1, given is not None)


async def _limits(connection: AsyncConnection, role: str | None) -> Row[Any]:
    return (await connection.execute(_LIMITS, {"role": role})).one()


def _pooled(need: _Need, setting: str) -> Finding:
    return Finding(
        _NAME,
        Severity.INFO,
        f"{need} to the pooler of {setting}, which does not say how many it takes.",
        f"max_client_conn in pgbouncer.ini has to be at least {need.all}, and more for other "
        "services and while you deploy. What it opens to the server is default_pool_size for each "
        "role and database.",
    )


def _judge(need: _Need, limits: Row[Any], where: str, role: str | None) -> Iterator[Finding]:
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
    if 0 <= limits.database_limit < need.all:
        what = f"the database {limits.database!r} is limited to {limits.database_limit}"
        line = f"ALTER DATABASE {quote_identifier(limits.database)} CONNECTION LIMIT {need.all}"
        yield _limited(need, what, line)
    if role is not None and limits.role_limit is not None and 0 <= limits.role_limit < need.all:
        what = f"the role {role!r} is limited to {limits.role_limit}"
        yield _limited(
            need, what, f"ALTER ROLE {quote_identifier(role)} CONNECTION LIMIT {need.all}"
        )


def _too_many(need: _Need, usable: int, what: str) -> Finding:
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


def _limited(need: _Need, what: str, line: str) -> Finding:
    return Finding(
        _NAME,
        Severity.WARNING,
        f"{need}, and {what}. {_others(need)}",
        to_run("a superuser", [line]),
    )


def _others(need: _Need) -> str:
    counted = "" if need.told else f" Set TENANCY_POSTGRES_WORKERS, or {_WORKERS}."
    return (
        "Processes on other machines, of other services and of the last deployment count as "
        f"well.{counted}"
    )
