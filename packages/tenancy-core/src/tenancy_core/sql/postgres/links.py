"""What is between this process and the server: a pooler, or a connection that is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

if TYPE_CHECKING:
    from sqlalchemy import PoolProxiedConnection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["WITHOUT_PREPARED", "is_pooled", "replace_closed"]

WITHOUT_PREPARED: Final[dict[str, Any]] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": str,
}
"""Arguments for connections that leave no prepared statement behind: every one is the unnamed one
(``str()`` is ``""``). A pooler that does not track prepared statements gives a server connection to
somebody else after each transaction, who would meet the names there."""


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
