"""A cache in a SQLite file, for the processes of one machine."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Final, Self, TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

from tenancy_core.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

__all__ = ["FileCacheBackend"]

T = TypeVar("T")

MESSAGES_KEPT: Final = 10_000
"""A subscriber that is further behind is told that it missed some."""

PATIENCE: Final = 1.0
"""Seconds to wait for another process that is writing. The store would answer meanwhile."""

TABLES: Final = """
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB, ends REAL);
    CREATE INDEX IF NOT EXISTS entries_by_end ON entries (ends);
    CREATE TABLE IF NOT EXISTS messages (number INTEGER PRIMARY KEY, message TEXT);
    CREATE TABLE IF NOT EXISTS generations (only INTEGER PRIMARY KEY, generation INTEGER);
    INSERT OR IGNORE INTO generations VALUES (1, 0);
    COMMIT;
"""


class FileCacheBackend:
    """Implements :class:`tenancy_core.CacheBackend`.

    It is opened by ``async with``, which Tenancy does. SQLite blocks, so all of it runs in worker
    threads, one at a time: a connection is not to be used by two.

    Args:
        path: The file; it is made if it is not there.
        poll_seconds: How often a subscriber looks for messages.
        clock: Seconds since the epoch. Not a monotonic one: other processes, and this one after
            a restart of the machine, must mean the same by it.
    """

    def __init__(
        self, path: Path, *, poll_seconds: float = 0.1, clock: Callable[[], float] = time
    ) -> None:
        self.poll_seconds = poll_seconds
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._used = threading.Lock()

    async def __aenter__(self) -> Self:
        self._turn = CapacityLimiter(1)
        try:
            self._connection = await to_thread.run_sync(self._open, limiter=self._turn)
        except (OSError, sqlite3.Error) as error:
            raise BackendUnavailable(
                "The file that TENANCY_ACME_CACHE_PATH names does not open."
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):  # also where the application is being cancelled
            connection, self._connection = self._connection, None
            if connection is not None:
                await to_thread.run_sync(self._alone, sqlite3.Connection.close, connection)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would let the umask decide who may read it. What it keeps beside follows the file.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            # Readers do not wait for a writer, and no write waits for the disk.
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(TABLES)
        except BaseException:
            connection.close()
            raise
        return connection

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a thread, when nothing else uses the connection.

        A caller that is cancelled may leave before it is done; the next one still waits for it, and
        never meets half of it.

        Raises:
            BackendUnavailable: The cache is not open, or SQLite fails.
        """
        connection = self._connection
        if connection is None:
            raise BackendUnavailable("The cache is not open.")
        try:
            return await to_thread.run_sync(self._alone, work, connection, limiter=self._turn)
        except sqlite3.Error as error:
            raise BackendUnavailable("The cache's file does not answer.") from error

    def _alone(self, work: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        with self._used:
            return work(connection)

    async def get(self, key: str, /) -> bytes | None:
        """Return the value, or None if it is absent or has expired."""
        select = "SELECT value FROM entries WHERE key = ? AND ends > ?"

        def work(connection: sqlite3.Connection) -> bytes | None:
            rows = connection.execute(select, (key.encode(), self._clock())).fetchall()
            return rows[0][0] if rows else None

        return await self.run(work)

    async def set(self, key: str, value: bytes, /, *, ttl: float) -> None:
        """Keep the value for at most ``ttl`` seconds."""

        def work(connection: sqlite3.Connection) -> None:
            now = self._clock()
            connection.execute("DELETE FROM entries WHERE ends <= ?", (now,))
            row = (key.encode(), value, now + ttl)
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", row)

        await self.run(work)

    async def delete(self, key: str, /) -> None:
        """Forget the value. No error if it is absent."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM entries WHERE key = ?", (key.encode(),))

        await self.run(work)

    async def generation(self, *, bump: bool = False) -> int:
        """Return the generation that is part of every key; ``bump`` makes all old keys unread."""
        statement = (
            "UPDATE generations SET generation = generation + 1 RETURNING generation"
            if bump
            else "SELECT generation FROM generations"
        )

        def work(connection: sqlite3.Connection) -> int:
            [(number,)] = connection.execute(statement).fetchall()
            return int(number)

        return await self.run(work)

    async def publish(self, message: str, /) -> None:
        """Tell every subscriber, in every process."""

        def work(connection: sqlite3.Connection) -> None:
            last = connection.execute(
                "INSERT INTO messages (message) VALUES (?)", (message,)
            ).lastrowid
            connection.execute(
                "DELETE FROM messages WHERE number <= ?", ((last or 0) - MESSAGES_KEPT,)
            )

        await self.run(work)

    def subscribe(self) -> Subscription:
        """Iterate over what is published from now on."""
        return Subscription(self)


def _write_ahead(connection: sqlite3.Connection) -> None:
    # SQLite does not wait where two processes change a file to WAL at once: neither may wait for
    # the other for ever. So one of them tries again.
    deadline = monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.005)
        else:
            return


class Subscription:
    """What one subscriber has not read yet."""

    def __init__(self, cache: FileCacheBackend) -> None:
        self._cache = cache
        self._seen = 0
        self._waiting: deque[str] = deque()

    async def __aenter__(self) -> Self:
        def work(connection: sqlite3.Connection) -> int:
            [(last,)] = connection.execute("SELECT max(number) FROM messages").fetchall()
            return last or 0

        self._seen = await self._cache.run(work)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Return the next message, as soon as there is one.

        Raises:
            BackendUnavailable: So many were published meanwhile that some are gone; or as
                :meth:`FileCacheBackend.run`.
        """
        while not self._waiting:
            found = await self._cache.run(self._unread)
            if not found:
                await anyio.sleep(self._cache.poll_seconds)
                continue
            first, last = found[0][0], found[-1][0]
            missed, self._seen = first > self._seen + 1, last
            self._waiting.extend(message for _, message in found)
            if missed:
                raise BackendUnavailable("The subscriber was too slow, and missed messages.")
        return self._waiting.popleft()

    def _unread(self, connection: sqlite3.Connection) -> list[tuple[int, str]]:
        select = "SELECT number, message FROM messages WHERE number > ? ORDER BY number"
        return connection.execute(select, (self._seen,)).fetchall()
