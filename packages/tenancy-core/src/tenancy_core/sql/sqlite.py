"""Real transactions on SQLite, for the tenant store and for tenants' files alike.

Python's ``sqlite3`` by default begins a transaction only before a write, so that reads before it
see another state, and DDL is not part of it. Here every SQLAlchemy transaction is one SQLite
transaction: ``BEGIN IMMEDIATE`` by default, because a transaction that begins as a reader and then
writes fails with ``SQLITE_BUSY`` as soon as somebody else wrote in between, without waiting
(https://www.sqlite.org/lang_transaction.html, section 2.2); and ``BEGIN`` under the execution
option ``tenancy_read_only``, where any write is refused.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
from sqlalchemy import URL, event

from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql.forked import close_file, open_file

if TYPE_CHECKING:
    from pathlib import Path

    import aiosqlite
    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import PoolResetState

__all__ = [
    "READ_ONLY",
    "StoreConnection",
    "TransactionalConnection",
    "begin_transactions",
    "code_of",
    "connect_args",
    "empty_wal",
    "file_url",
    "make_file",
    "make_folder",
    "report_unavailable",
]

READ_ONLY: Final = "tenancy_read_only"
"""Execution option: the transaction only reads."""

_QUERY_ONLY: Final = "tenancy_query_only"

_CHECKPOINT_MILLISECONDS: Final = 1_000

_AGAIN_SECONDS: Final = 0.005

_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


def file_url(path: Path) -> URL:
    """Return the URL of a database file; nothing in the path is ever parsed as URL syntax."""
    return URL.create("sqlite+aiosqlite", database=str(path))


def make_folder(folder: Path, setting: str, *, mode: int = 0o777) -> None:
    """Make a folder for databases, if there is none, and those above it. Call it in a thread.

    Args:
        folder: The folder.
        setting: The variable that names it, for the message.
        mode: Of a folder that is new; the umask is taken off.

    Raises:
        ConfigurationError: It cannot be made.
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder that {setting} names cannot be made ({type(error).__name__}). Make it and "
            "let this user write to it, or name another."
        ) from error


def make_file(path: Path) -> None:
    """Make an empty database that only this user can read, if there is none. Call it in a thread.

    SQLite would let the umask decide. What it keeps beside a database has the database's mode.

    Raises:
        OSError: It cannot be made.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


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
        "factory": StoreConnection,
        "async_creator_fn": _connect,
    }


class TransactionalConnection(sqlite3.Connection):
    """Ends its transaction when it is closed, whatever became of its cursors.

    SQLite keeps a closed connection, with the lock of its transaction, for as long as a statement
    of it is not finished; and a cursor lives as long as somebody holds it, for instance the
    traceback of the exception that ended its loop.
    """

    def __init__(self, database: str, *, timeout: float = 5.0, **options: Any) -> None:
        open_file(self, database)
        try:
            super().__init__(database, timeout=timeout, **options)
        except BaseException:
            close_file(self)
            raise
        self._patience = timeout

    def write_ahead(self) -> None:
        """Use a write-ahead log: readers do not wait for the writer, nor the writer for them.

        SQLite does not wait where two connections change a file to it at once, as processes do
        that start together: one of them gets ``SQLITE_BUSY`` whatever the time-out, so that
        neither waits for the other for ever. Trying again is safe.

        Raises:
            sqlite3.OperationalError: The file is locked for longer than the connection's time-out.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
            else:
                break
            time.sleep(_AGAIN_SECONDS)
            self._wait_at_most(left)
        self._wait_at_most(self._patience)

    def _wait_at_most(self, seconds: float) -> None:
        self.execute(f"PRAGMA busy_timeout = {max(0, round(seconds * 1000))}")

    def close(self) -> None:
        """Roll back and close."""
        try:
            if self.in_transaction:
                self.rollback()
        except sqlite3.ProgrammingError:
            pass  # it is closed already
        finally:
            super().close()
            close_file(self)


class StoreConnection(TransactionalConnection):
    """Is set up for the tenant store. It is made in the driver's thread, and may wait there."""

    def __init__(self, database: str, **options: Any) -> None:
        super().__init__(database, **options)
        try:
            self.write_ahead()
            self.execute("PRAGMA synchronous = FULL")
            self.execute("PRAGMA foreign_keys = ON")
            # What is deleted is overwritten with zeros. Some builds of SQLite leave it readable in
            # free pages otherwise (https://www.sqlite.org/pragma.html#pragma_secure_delete).
            self.execute("PRAGMA secure_delete = ON")
        except BaseException:
            self.close()
            raise


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


async def empty_wal(engine: AsyncEngine) -> bool:
    """Bring everything from the write-ahead log into the file, and cut the log to nothing.

    What was overwritten or deleted in the file stays readable in the log's old frames until then.

    Returns:
        False if a reader or a writer kept it from being done within a second; nothing is lost, and
        the log is removed when the last connection to the file is closed.
    """
    async with engine.connect() as connection:
        return await connection.run_sync(_empty_wal)


def _empty_wal(connection: Connection) -> bool:
    # Below SQLAlchemy's transactions: inside of one there is no checkpoint.
    cursor: Any = connection.connection.cursor()
    try:
        cursor.execute("PRAGMA busy_timeout")
        patience: int = cursor.fetchone()[0]
        # Writers wait behind a checkpoint that waits for a reader.
        cursor.execute(f"PRAGMA busy_timeout = {min(patience, _CHECKPOINT_MILLISECONDS)}")
        try:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy = bool(cursor.fetchone()[0])
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {patience}")
    finally:
        cursor.close()
    return not busy


def code_of(error: BaseException | None) -> str | None:
    """Return the name of SQLite's code where an error means that the file cannot be used now."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or code & 0xFF not in _UNAVAILABLE:
        return None
    return getattr(error, "sqlite_errorname", "SQLITE_ERROR")


def report_unavailable(engine: AsyncEngine) -> None:
    """Turn "the file cannot be used right now" into ``BackendUnavailable``."""

    @event.listens_for(engine.sync_engine, "handle_error")
    def _translate(context: ExceptionContext) -> None:
        error = context.original_exception
        name = code_of(error)
        # A write in a transaction that only reads has the same code as a file that nobody may
        # write to, and is its caller's mistake.
        if name == "SQLITE_READONLY" and _only_reads(context.connection):
            return
        if name is not None:
            raise BackendUnavailable(f"The database file cannot be used now ({name}).") from error
        # A ping that finds the connection lost makes the pool open another, and nobody notices.
        if context.is_disconnect and not context.is_pre_ping and isinstance(error, sqlite3.Error):
            raise BackendUnavailable("The connection to the database file was lost.") from error


def _only_reads(connection: Connection | None) -> bool:
    return connection is not None and bool(connection.get_execution_options().get(READ_ONLY))


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
