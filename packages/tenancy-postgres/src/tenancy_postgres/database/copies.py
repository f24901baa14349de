"""Databases that are made as copies of others, and removed with whoever is connected to them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from tenancy_core.errors import BackendUnavailable
from tenancy_postgres.administering import LONGEST
from tenancy_postgres.quoting import quote_identifier, quote_literal

__all__ = ["drop_database", "make_copy", "require_removable"]

if TYPE_CHECKING:
    Driver = asyncpg.Connection[Any]

_STRATEGIES: Final = 150_000
"""From this version on a copy can be written to the log, which is quicker for small databases."""
_BUSY_FIRST: Final = 0.05
_BUSY_MOST: Final = 1.0
"""Seconds between attempts while somebody is connected to what is to be copied."""

_PREPARED: Final = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = $1 ORDER BY 1"
_END_SESSIONS: Final = """
    SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
     WHERE datname = $1 AND usename IS NOT NULL
       AND pg_catalog.pg_has_role(usename, 'USAGE')
"""


async def make_copy(driver: Driver, name: str, *, of: str, patience: float) -> None:
    """Make a database that nobody can connect to yet. It is there as a whole, or not at all.

    Args:
        driver: Connected as a role that makes databases.
        name: Of the copy.
        of: The original.
        patience: Seconds to wait until nobody is connected to the original.

    Raises:
        BackendUnavailable: Somebody was for longer.
        asyncpg.PostgresError: The server refuses it.
    """
    strategy = ""
    if driver.get_server_version().major * 10_000 >= _STRATEGIES:
        strategy = " STRATEGY wal_log"
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + patience, _BUSY_FIRST
    while True:
        try:
            await driver.execute(
                f"CREATE DATABASE {quote_identifier(name)} TEMPLATE {quote_identifier(of)}"
                f"{strategy} ALLOW_CONNECTIONS false",
                timeout=LONGEST,
            )
        except asyncpg.ObjectInUseError as error:
            # The server has waited for five seconds by itself.
            if loop.time() + pause > deadline:
                raise BackendUnavailable(
                    f"Somebody is connected to the database {of!r}, of which a copy is to be made: "
                    "that takes a moment in which nobody is."
                ) from error
        else:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _BUSY_MOST)


async def require_removable(driver: Driver, name: str) -> None:
    """Refuse a database that has prepared transactions: the server would not remove it.

    They can only be ended by somebody who is connected to it, so it must not be closed before.

    Args:
        driver: Connected to any database there.
        name: Of the database.

    Raises:
        BackendUnavailable: There are some.
    """
    prepared = [row[0] for row in await driver.fetch(_PREPARED, name)]
    if prepared:
        raise BackendUnavailable(
            f"The database {name!r} was not removed: transactions were prepared in it "
            f"(PREPARE TRANSACTION) and not ended. Run, connected to it, as a superuser: "
            f"{'; '.join(f'ROLLBACK PREPARED {quote_literal(gid)}' for gid in prepared)}. Then try "
            "again."
        )


async def drop_database(driver: Driver, name: str, *, setting: str) -> None:
    """Remove a database, whoever is connected to it.

    Args:
        driver: Connected as its owner.
        name: Of the database; nobody can connect to it any more.
        setting: The variable that names the owner, for messages.

    Raises:
        BackendUnavailable: Somebody is connected whose session the owner may not end.
    """
    place = quote_identifier(name)
    try:
        await driver.execute(f"DROP DATABASE {place} WITH (FORCE)", timeout=LONGEST)
    except asyncpg.InsufficientPrivilegeError:
        # The server's own autovacuum is nobody's that one could be a member of. Without force the
        # server sends it away by itself, and waits for whoever was told to go.
        await driver.fetch(_END_SESSIONS, name)
        try:
            await driver.execute(f"DROP DATABASE {place}", timeout=LONGEST)
        except asyncpg.ObjectInUseError as error:
            raise BackendUnavailable(
                f"The database {name!r} was not removed: somebody is connected to it whose session "
                f"the role of {setting} may not end. Wait until they are gone, or grant that role "
                "membership in theirs or in pg_signal_backend."
            ) from error
