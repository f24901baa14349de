"""Real transactions on SQLite, for the tenant store and for tenants' files alike.

Python's ``sqlite3`` by default begins a transaction only before a write, so that reads before it
see another state, and DDL is not part of it. Here every SQLAlchemy transaction is one SQLite
transaction: ``BEGIN IMMEDIATE`` by default, because a transaction that begins as a reader and then
writes fails with ``SQLITE_BUSY`` as soon as somebody else wrote in between, without waiting
(https://www.sqlite.org/lang_transaction.html, section 2.2); and ``BEGIN`` under the execution
option ``tenancy_read_only``, where any write is refused.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from sqlalchemy import URL, event

from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    import aiosqlite
    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolResetState

__all__ = [
    "READ_ONLY",
    "TransactionalConnection",
    "begin_transactions",
    "configure_connections",
    "connect_args",
    "file_url",
    "report_unavailable",
]

READ_ONLY: Final = "tenancy_read_only"
"""Execution option: the transaction only reads."""

_QUERY_ONLY: Final = "tenancy_query_only"

_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
    }
)


def file_url(path: Path) -> URL:
    """Return the URL of a database file; nothing in the path is ever parsed as URL syntax."""
    return URL.create("sqlite+aiosqlite", database=str(path))


def connect_args(busy_timeout: float) -> dict[str, Any]:
    """Return arguments for ``sqlite3.connect``.

    Args:
        busy_timeout: Seconds to wait for another process's write.
    """
    # isolation_level=None leaves BEGIN and COMMIT to the events below. Without uri=True a file
    # name that looks like a URI is just a file name.
    return {
        "isolation_level": None,
        "timeout": busy_timeout,
        "uri": False,
        "factory": TransactionalConnection,
        "async_creator_fn": _connect,
    }


class TransactionalConnection(sqlite3.Connection):
    """Ends its transaction when it is closed, whatever became of its cursors.

    SQLite keeps a closed connection, with the lock of its transaction, for as long as a statement
    of it is not finished; and a cursor lives as long as somebody holds it, for instance the
    traceback of the exception that ended its loop.
    """

    def close(self) -> None:
        """Roll back and close."""
        try:
            if self.in_transaction:
                self.rollback()
        except sqlite3.ProgrammingError:
            pass  # it is closed already
        finally:
            super().close()


async def _connect(*args: Any, **options: Any) -> aiosqlite.Connection:
    import aiosqlite  # noqa: PLC0415 - the driver, only where it is used

    connection = aiosqlite.connect(*args, **options)
    # As SQLAlchemy, for the same purpose.
    thread = connection._thread  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    thread.daemon = True
    try:
        return await connection
    except Exception:
        # aiosqlite tells the thread to end and goes away. If that were the end of the program as
        # well, the thread would find the event loop closed, and print a traceback of its own over
        # the one that matters.
        await anyio.to_thread.run_sync(thread.join)
        raise


def configure_connections(engine: AsyncEngine) -> None:
    """Set up every new connection of an engine: WAL, flushed commits, checked foreign keys."""

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(dbapi_connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI
        cursor = dbapi_connection.cursor()
        try:
            # WAL: readers do not wait for the writer, nor the writer for them.
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        finally:
            cursor.close()


def report_unavailable(engine: AsyncEngine) -> None:
    """Turn "the file cannot be used right now" into ``BackendUnavailable``."""

    @event.listens_for(engine.sync_engine, "handle_error")
    def _translate(context: ExceptionContext) -> None:
        error = context.original_exception
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _UNAVAILABLE:
            name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
            raise BackendUnavailable(f"The database file cannot be used now ({name}).") from error
        # A ping that finds the connection lost makes the pool open another, and nobody notices.
        if context.is_disconnect and not context.is_pre_ping and isinstance(error, sqlite3.Error):
            raise BackendUnavailable("The connection to the database file was lost.") from error


def begin_transactions(engine: AsyncEngine) -> None:
    """Make every SQLAlchemy transaction of an engine one SQLite transaction from its start."""

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = bool(connection.get_execution_options().get(READ_ONLY))
        # query_only outlives the transaction on this connection, so it is set back when needed.
        if reads != bool(connection.info.get(_QUERY_ONLY)):
            connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reads else 'OFF'}")
            connection.info[_QUERY_ONLY] = reads
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    @event.listens_for(engine.sync_engine, "reset")
    def _end(dbapi_connection: Any, _record: object, state: PoolResetState) -> None:  # noqa: ANN401 - DBAPI
        # A COMMIT that fails (a deferred constraint, a full disk) ends the transaction in
        # SQLAlchemy's eyes and not in SQLite, which keeps it, and its lock, for another try.
        if state.asyncio_safe and dbapi_connection.driver_connection.in_transaction:
            dbapi_connection.rollback()
