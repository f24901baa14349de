"""One LISTEN on a connection of its own, which is tried while nothing comes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg
from anyio import CancelScope
from sqlalchemy.exc import DBAPIError

from tenancy_core.errors import BackendUnavailable, ConfigurationError
from tenancy_core.sql.postgres import in_words
from tenancy_postgres.quoting import quote_identifier
from tenancy_postgres.server import facts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection

    from tenancy_postgres.invalidation.bus import PostgresBus

__all__ = ["Subscription"]

_MOST: Final = 10_000
"""Messages that wait to be read. Whoever is further behind had better ask the store."""

_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DBAPIError)
"""Of a link, and of a server; a time-out is an OSError."""


class Subscription:
    """Context manager and iterator in one; entered once.

    Args:
        bus: Whose channel it is.
    """

    __slots__ = ("_broken", "_bus", "_channel", "_connection", "_driver", "_messages", "_woken")

    def __init__(self, bus: PostgresBus) -> None:
        self._bus = bus
        self._channel = ""
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._messages: deque[str] = deque()
        self._woken = asyncio.Event()
        self._broken: str | None = None

    async def __aenter__(self) -> AsyncIterator[str]:
        engine = self._bus.listening()
        try:
            await self._open(await engine.connect())
        except BaseException as error:
            await self._close()
            if isinstance(error, (BackendUnavailable, *_FAILURES)):
                raise self._bus.note(_why(error)) from error
            if isinstance(error, ConfigurationError) and not self._bus.deaf:
                # What its role lacks may be given to it while this runs.
                raise self._bus.note(_why(error)) from error
            raise
        self._bus.flaw = None
        return self

    async def _open(self, connection: AsyncConnection) -> None:
        self._connection = connection
        async with asyncio.timeout(self._bus.patience):
            await self._bus.judge(await facts_of(connection))
            self._channel = await self._bus.channel()
            raw = await connection.get_raw_connection()
            self._driver = raw.driver_connection
            self._driver.add_termination_listener(self._end)
            await self._driver.add_listener(self._channel, self._hear)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._break("it is closed")
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with CancelScope(shield=True):
            # Nobody else is to get a connection that listens.
            await connection.invalidate()
            await connection.close()

    # -- what the driver calls -----------------------------------------------------------------

    def _hear(self, _connection: object, _pid: int, _channel: str, message: str) -> None:
        if len(self._messages) >= _MOST:
            self._break("more was published than could be read")
        elif self._broken is None:
            self._messages.append(message)
            self._woken.set()

    def _end(self, _connection: object) -> None:
        self._break("the connection was closed")

    def _break(self, why: str) -> None:
        if self._broken is None:
            self._broken = why
        self._woken.set()

    # -- reading -------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._messages:
            if self._broken is not None:
                raise self._bus.note(self._broken)
            self._woken.clear()
            try:
                async with asyncio.timeout(self._bus.interval):
                    await self._woken.wait()
            except TimeoutError:
                await self._try()
        return self._messages.popleft()

    async def _try(self) -> None:
        """See whether the other end is still there, which may vanish without a word.

        LISTEN again changes nothing, is refused by a server that has become a standby, and stands
        in ``pg_stat_activity`` as what the connection is for.
        """
        try:
            await self._driver.execute(
                f"LISTEN {quote_identifier(self._channel)}", timeout=self._bus.patience
            )
        except _FAILURES as error:
            self._break(_why(error))


def _why(error: BaseException) -> str:
    """Say what is wrong without the driver's words, which may hold a URL."""
    if isinstance(error, (BackendUnavailable, ConfigurationError)):
        return str(error).removesuffix(".")
    cause: BaseException = getattr(error, "orig", None) or error
    cause = cause.__cause__ or cause
    code = getattr(cause, "sqlstate", None)
    return in_words(code) if isinstance(code, str) else type(cause).__name__
