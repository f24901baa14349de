"""What is between this process and the server: a pooler, or a connection that is closed."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

if TYPE_CHECKING:
    from sqlalchemy import PoolProxiedConnection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["WITHOUT_PREPARED", "end_silent", "ends_when_silent", "is_pooled", "replace_closed"]

WITHOUT_PREPARED: Final[dict[str, Any]] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}
"""Arguments for connections that leave no prepared statement behind: every one is the unnamed one
(``str()`` is ``""``). A pooler that does not track prepared statements gives a server connection to
somebody else after each transaction, who would meet the names there."""


_SILENCE: Final = {
    # Linux, FreeBSD and Windows; macOS has another name for the first one.
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}
"""Seconds of silence before the other end's system is asked for a sign, seconds between attempts,
attempts, and milliseconds that what was sent may remain without a sign that it arrived. A link is
given up after one minute; by themselves, systems do so after two hours, or never."""


def ends_when_silent(driver: Any) -> None:  # noqa: ANN401 - DBAPI
    """Let the system close a connection whose other end is gone without a word.

    libpq asks the system for it (``keepalives``), and asyncpg does not: whoever waits for an answer
    from a machine that was switched off would wait, with their connection, for ever.

    Args:
        driver: asyncpg's connection.
    """
    # asyncpg has no public way to its transport; what is asked of that one is asyncio's.
    link = driver._transport.get_extra_info("socket")  # noqa: SLF001
    if link is None or link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENCE.items():
        if (option := getattr(socket, name, None)) is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)


def end_silent(engine: AsyncEngine) -> None:
    """Do so for each connection of an engine: see :func:`ends_when_silent`."""

    @event.listens_for(engine.sync_engine, "connect")
    def _ends(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI
        ends_when_silent(connection.driver_connection)


def replace_closed(engine: AsyncEngine) -> None:
    """Replace a connection that is known to be closed when it is taken from the pool.

    SQLAlchemy's own ping finds more, a link whose other end is gone without a word, and costs
    three round trips each time (measured: ``docs/explanation/performance.md``).
    """

    @event.listens_for(engine.sync_engine, "checkout")
    def _check(_connection: object, _record: object, fairy: PoolProxiedConnection) -> None:
        driver: Any = fairy.driver_connection
        if driver.is_closed():
            raise DisconnectionError("The connection was closed while it was idle.")


async def is_pooled(connection: AsyncConnection) -> bool:
    """Whether a pooler such as PgBouncer stands between this process and the server.

    The process id that the server announced when the connection was made is then the pooler's own
    invention, and no backend's.
    """
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    backend = (await connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()")).scalar_one()
    return bool(driver.get_server_pid() != backend)
