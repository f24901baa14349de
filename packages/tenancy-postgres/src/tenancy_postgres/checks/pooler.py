"""Whether a pooler stands between this process and the server, and what it carries."""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import text

from tenancy_core.contract import Finding, Severity
from tenancy_core.errors import BackendUnavailable, IsolationError
from tenancy_core.sql.postgres import is_pooled
from tenancy_postgres.checks.sessions import sessions_of
from tenancy_postgres.settings import PostgresSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.checks.strategies import Strategies

__all__ = ["pooler"]

_NAME: Final = "postgres.pooler"

_BY_NAME: Final = text("SELECT 1 FROM pg_catalog.pg_prepared_statements WHERE name = :name")


async def pooler(tenancy: Any, strategies: Strategies) -> AsyncIterator[Finding]:  # noqa: ANN401 - as Check says
    """Yield what a pooler does not carry, or would carry if it were used."""
    settings = tenancy.config.section("postgres", PostgresSettings)
    async for setting, opens in sessions_of(tenancy, strategies):
        try:
            async with opens() as connection:
                pooled, tracked = await _look_for_pooler(connection)
        except (BackendUnavailable, IsolationError) as error:
            if not await _is_by_statement(strategies):
                raise
            yield Finding(
                _NAME,
                Severity.ERROR,
                f"The pooler of {setting} is in statement mode, where nothing that belongs to a "
                f"tenant lasts: every request is 503. ({type(error).__name__})",
                "Set pool_mode = transaction in pgbouncer.ini, and RELOAD.",
            )
            continue
        if pooled:
            yield _with_pooler(setting, settings.prepared_statements, tracked=tracked)
        elif settings.prepared_statements == "off":
            yield Finding(
                _NAME,
                Severity.INFO,
                f"No pooler stands between this process and the server of {setting}, and no "
                "statement is kept prepared.",
                "Unset TENANCY_POSTGRES_PREPARED_STATEMENTS: auto keeps them where it can.",
            )


async def _look_for_pooler(connection: AsyncConnection) -> tuple[bool, bool]:
    """Return whether a pooler is there, and whether it tracks prepared statements.

    One that tracks them gives them names of its own, which the server shows. In session mode none
    does, nor has to; from here it looks like one that cannot.
    """
    if not await is_pooled(connection):
        return False, True
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    name = f"tenancy_{token_hex(8)}"
    # The driver closes a statement that nobody holds.
    held = await driver.prepare("SELECT 1", name=name)
    tracked = (await connection.execute(_BY_NAME, {"name": name})).first() is None
    if not tracked:
        await driver.execute(f"DEALLOCATE {name}")
    del held
    return True, tracked


async def _is_by_statement(strategies: Strategies) -> bool:
    """Whether single statements go through, and transactions do not."""
    for isolation in strategies.shared:
        try:
            async with isolation.unbegun() as driver:
                await driver.execute("SELECT 1")
                try:
                    await driver.execute("BEGIN")
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    return True
        except (BackendUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            continue
    return False


def _with_pooler(setting: str, choice: str, *, tracked: bool) -> Finding:
    there = f"A pooler in transaction or session mode stands before the server of {setting}"
    if choice == "on" and not tracked:
        return Finding(
            _NAME,
            Severity.WARNING,
            f"{there}. It does not track prepared statements, and they are kept: in session mode "
            "that is well, in transaction mode requests fail when server connections take turns.",
            "Unset TENANCY_POSTGRES_PREPARED_STATEMENTS; or set max_prepared_statements = 200 in "
            "pgbouncer.ini (1.21 or newer), and RELOAD.",
        )
    if choice != "on" and tracked:
        return Finding(
            _NAME,
            Severity.INFO,
            f"{there}. It tracks prepared statements, and none is kept.",
            "Set TENANCY_POSTGRES_PREPARED_STATEMENTS=on.",
        )
    kept = "are" if choice == "on" else "are not"
    return Finding(
        _NAME,
        Severity.INFO,
        f"{there}. Prepared statements {kept} kept, as it can carry.",
        "Nothing has to be done. See docs/how-to/operate-postgresql.md, Behind PgBouncer.",
    )
